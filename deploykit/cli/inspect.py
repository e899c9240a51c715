"""`deploykit inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.summary import ModelSummary


@click.command(
    "inspect",
    cls=Command,
    epilog=examples(
        "deploykit inspect alexnet --num-classes 10 --input-size 256",
        "deploykit inspect torchvision:vit_b_16",
        "deploykit inspect engines/resnet50-fp16",
    ),
)
@click.argument("target")
@_options.num_classes
@_options.input_size
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Images that the figures are for.",
)
def command(target: str, num_classes: int | None, input_size: int | None, batch: int) -> Answer:
    """Show the layers of an architecture, of torchvision:NAME, an .onnx file or a bundle.

    Multiply-adds count convolutions and matrix products without bias. Activation memory counts
    every layer's output forward and backward in FP32, as torchsummary does.
    """
    from deploykit.cli._show import progress
    from deploykit.pipeline.inspect import inspect

    with progress().step("inspect"):
        summary = inspect(target, num_classes=num_classes, image_size=input_size, batch=batch)
    return Answer(summary.to_dict(), lambda out: _show(out, summary))


def _show(out: Console, summary: ModelSummary) -> None:
    from deploykit.cli._show import table

    numbers = ("output shape", "parameters", "multiply-adds")
    rows = table(("layer", "kind", *numbers), right=numbers)
    for layer in summary.layers:
        shape = ", ".join(str(dim) for dim in layer.output_shape)
        counts = (
            f"{layer.parameters:,}" if layer.parameters else "-",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "-",
        )
        rows.add_row(layer.name, layer.kind, f"({shape})", *counts)
    out.print(rows, "")
    totals = table(("", ""), right=("",))
    totals.show_header = False
    totals.add_row("parameters", f"{summary.parameters:,}")
    totals.add_row("multiply-adds", f"{summary.multiply_adds:,}")
    totals.add_row("input (MB)", f"{summary.input_mb:.2f}")
    totals.add_row("forward/backward (MB)", f"{summary.forward_backward_mb:.2f}")
    totals.add_row("parameters (MB)", f"{summary.parameters_mb:.2f}")
    totals.add_row("total (MB)", f"{summary.total_mb:.2f}")
    out.print(totals)

"""`deploykit inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.core.errors import UsageError
from deploykit.core.precision import OWN

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.precision import Precision
    from deploykit.costs.summary import ModelSummary
    from deploykit.verbs.inspect_precision import PrecisionOptions


@click.command(
    "inspect",
    cls=Command,
    epilog=examples(
        "deploykit inspect alexnet --num-classes 10 --input-size 256",
        "deploykit inspect torchvision:vit_b_16 --int8",
        "deploykit inspect resnet50 --fp16 --weights imagenet",
        "deploykit inspect engines/resnet50-int8 --precision",
    ),
)
@click.argument("target")
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Images that the figures are for.",
)
@click.option(
    "--precision",
    is_flag=True,
    help="What each node runs in and why: as it is, or if all is FP32 as --int8 would make it.",
)
@_options.precision_flags(
    {
        each: f"The same for what `export --{each}` would make of it."
        for each in OWN
        if not each.facts.is_source
    }
)
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Nodes to keep out of INT8: layer4.*"
)
@click.option("--all", "every_node", is_flag=True, help="Each node, not those alike in one row.")
@_options.weights
@_options.seed
@_options.data
@_options.choices
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    target: str,
    batch: int,
    precision: bool,
    flagged: tuple[Precision, ...],
    exclude: tuple[str, ...],
    every_node: bool,
    weights: str | None,
    seed: int,
    data: Path | None,
    choices: DefinitionChoices,
) -> Answer:
    """Show the layers of TARGET, or what of it is INT8, FP16 and FP32 and why.

    TARGET is all that `export` takes, or a bundle. Multiply-adds count convolutions and matrix
    products without bias. Activation memory counts every layer's output forward and backward in
    FP32, as torchsummary does.

    --fp16 and --int8 export a definition to a temporary folder and measure its activations, as
    `export` does: what comes near the end of FP16 stays FP32. Ranges of INT8 are not needed for
    it.
    """
    if not (precision or flagged):
        measuring = {
            "--exclude": exclude,
            "--all": every_node,
            "--weights": weights,
            "--data": data,
            "--side-inputs": choices.side_inputs,
            "--head": choices.head,
            **{f"--{name}": value for name, value in asdict(choices.preprocessing).items()},
        }
        _refuse_without_precision(measuring)
        from deploykit.costs.summary import summary_to_plain

        summary = _summary(target, choices, batch)
        return Answer(summary_to_plain(summary), lambda out: _show(out, summary))
    wanted = _options.one_precision("inspect", flagged=flagged, name=None)
    from deploykit.cli._show import progress

    with progress().step("start"):  # importing torch takes seconds
        from deploykit.sources.definition import SourceOptions
        from deploykit.verbs.inspect_precision import PrecisionOptions

    source_options = SourceOptions(weights, seed, choices, data)
    options = PrecisionOptions(wanted, exclude, batch, source_options)
    return _look(target, options, every_node=every_node)


def _look(target: str, options: PrecisionOptions, *, every_node: bool) -> Answer:
    from deploykit.cli._precision_show import show_precision
    from deploykit.cli._show import progress
    from deploykit.costs.summary import summary_to_plain
    from deploykit.verbs.inspect_precision import inspect_precision

    report = inspect_precision(target, options, progress())
    summary = _summary(target, options.source.choices, options.batch)
    return Answer(
        {**summary_to_plain(summary), "precision": report.to_dict()},
        lambda out: show_precision(out, report, every_node=every_node),
    )


def _summary(target: str, choices: DefinitionChoices, batch: int) -> ModelSummary:
    from deploykit.cli._show import progress

    with progress().step("inspect"):
        from deploykit.verbs.inspect import inspect

        return inspect(target, choices, batch=batch)


def _refuse_without_precision(given: dict[str, Any]) -> None:
    unused = next((name for name, value in given.items() if value), None)
    if unused is not None:
        raise UsageError(
            f"{unused} changes nothing in the table of layers\n"
            "it is for --precision, --fp16 and --int8"
        )


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

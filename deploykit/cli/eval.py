"""`deploykit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.stages.evaluate import Evaluation


@click.command(
    "eval", cls=Command, epilog=examples("deploykit eval engines/resnet20-fp16 --data test.npz")
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Labelled images: a folder per class, a CSV list, or an .npz.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="TARGET",
    help="Bundle or .onnx to agree with.  [default: the FP32 graph that the bundle keeps]",
)
@click.option(
    "--batch",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Images per run.",
)
def command(bundle: Path, data: Path, reference: Path | None, batch: int) -> Answer:
    """Measure a bundle's accuracy and its agreement with FP32.

    Runs the bundle's ONNX file on onnxruntime; no GPU is needed.
    """
    from deploykit.cli._show import progress
    from deploykit.pipeline.evaluate import evaluate_bundle

    found = evaluate_bundle(bundle, data, reference=reference, batch=batch, progress=progress())
    return Answer({"bundle": str(bundle), **found.to_dict()}, lambda out: _show(out, found))


def _show(out: Console, found: Evaluation) -> None:
    from deploykit.cli._show import table

    low, high = found.top1_interval
    rows = table(("", ""))
    rows.show_header = False
    rows.add_row("images", str(found.count))
    rows.add_row("top-1", f"{found.top1:.2%} (95 % interval {low:.2%} to {high:.2%})")
    rows.add_row("top-5", "-" if found.top5 is None else f"{found.top5:.2%}")
    agreement = "no reference: give one with --reference"
    if found.agreement is not None:
        agreement = f"{found.agreement:.2%} of the images have the reference's top-1"
    rows.add_row("agreement", agreement)
    out.print(rows)

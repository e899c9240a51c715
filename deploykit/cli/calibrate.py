"""`deploykit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, DetailedCommand, examples
from deploykit.cli._option_types import TARGET, PathOr
from deploykit.cli._show import progress, show_stages, table
from deploykit.core.precision import RANDOM
from deploykit.verbs.export import calibration_options, require_calibration

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.progress import Journal
    from deploykit.core.sizes import ShapeProfile
    from deploykit.precision.calibration.graphs import Calibrated


@click.command(
    "calibrate",
    cls=DetailedCommand,
    epilog=examples(
        "deploykit calibrate resnet50.onnx --data images/",
        "deploykit calibrate open.onnx --data images/ --height 224 --width 224",
        "deploykit calibrate engines/resnet50-fp32 --data images/ --calib-count 256",
        "deploykit calibrate torchvision:regnet_y_400mf --weights imagenet --data images/",
    ),
)
@click.argument("target", type=TARGET)
@click.option(
    "--data",
    required=True,
    type=PathOr(RANDOM),
    metavar="PATH",
    help="Images: a folder, a CSV list, an .npz or .npy; `random` for noise.",
)
@_options.calib_count
@_options.max_pixels
@_options.weights
@_options.choices
@_options.sizes
@_options.seed
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The table.  [default: NAME.calibration.json beside the bundle, of other targets in the "
    "current folder; calib/NAME.json where pyproject.toml has a table tool.deploykit]",
)
def command(  # noqa: PLR0913 - one parameter per option, click's way
    *,
    target: str,
    data: str,
    calib_count: int,
    max_pixels: int | None,
    weights: str | None,
    choices: DefinitionChoices,
    sizes: ShapeProfile,
    seed: int,
    output: Path | None,
) -> Answer:
    """Find the ranges of a model's activations for INT8.

    TARGET is a bundle, an FP32 .onnx file, or any definition that `export` takes. All methods are
    computed in one pass over the images, in memory that does not grow with their number. A later
    `export --int8` of the same model with the same images uses the table again: from the current
    folder or beside the new bundle. A file that is no table is never replaced.
    """
    require_calibration(target, data, calib_count, weights)
    with progress().step("start"):
        from deploykit.sources.definition import SourceOptions
        from deploykit.verbs.calibrate import calibrate_target

    options = calibration_options(data, calib_count, seed, table=output, max_pixels=max_pixels)
    source_options = SourceOptions(weights, seed, choices)
    calibrated, journal = calibrate_target(target, options, source_options, progress(), sizes)
    answer = {**calibrated.to_dict(), "path": str(calibrated.path), "notes": journal.notes}
    return Answer(
        answer,
        lambda out: _show(out, calibrated, journal),
        details=lambda out: _show_details(out, calibrated, journal),
        verdict=_verdict(calibrated),
    )


def _verdict(calibrated: Calibrated) -> str:
    table = calibrated.table
    return f"{calibrated.path}: ranges of {len(table.amax)} tensors from {table.images} images"


def _show(out: Console, calibrated: Calibrated, journal: Journal) -> None:
    out.print(_verdict(calibrated), style="bold", markup=False, soft_wrap=True)
    for note in journal.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    out.print("each range: the same with --verbose")


def _show_details(out: Console, calibrated: Calibrated, journal: Journal) -> None:
    show_stages(out, journal.times)
    amax = calibrated.table.amax
    methods = sorted({method for ranges in amax.values() for method in ranges})
    rows = table(("tensor", *methods), title="range by method", right=methods)
    for name, ranges in amax.items():
        rows.add_row(name, *(f"{ranges[method]:.4g}" for method in methods))
    out.print(rows, "")

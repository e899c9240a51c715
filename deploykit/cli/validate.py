"""`deploykit validate`."""

from __future__ import annotations

from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress, show_comparison, table

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.comparison.activation_figures import ValueComparison
    from deploykit.comparison.layerwise import Fault, LayerReport
    from deploykit.core.sizes import ShapeProfile
    from deploykit.verbs.validate import ComparisonReport

_FEW: Final = 2
"""Where more than every second activation has no partner, silence proves nothing."""

_WORST: Final = 8
"""Values of the largest losses that are shown without ``--all``."""


@click.command(
    "validate",
    cls=Command,
    epilog=examples(
        "deploykit validate engines/resnet50-int8 --layers",
        "deploykit validate engines/resnet50-fp16 classifier.onnx --data photographs/",
        "deploykit validate engines/resnet50-fp16 --device cuda",
    ),
)
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="[B]", required=False)
@_options.data
@_options.side_inputs
@_options.sizes
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images to compare, in one batch.  [default: batches of 1, 2 and 5]",
)
@_options.device
@_options.fast
@click.option("--layers", is_flag=True, help="Compare every activation; say where to look.")
@click.option("--all", "show_all", is_flag=True, help="With --layers: show every activation.")
def command(  # noqa: PLR0913 - one parameter per option
    *,
    first: Path,
    second: Path | None,
    data: Path | None,
    side_inputs: Path | None,
    sizes: ShapeProfile,
    batch: int | None,
    device: str,
    fast: bool,
    layers: bool,
    show_all: bool,
) -> Answer:
    """Compare what two artifacts of one network compute.

    A and B are bundles or .onnx files; without B, a bundle is compared with the FP32 graph that it
    keeps. The one of the higher precision is the reference, of equals B. Runs on onnxruntime, where
    no GPU is needed; with --device cuda the other one's engine runs in place of its graph. The exit
    code is 1 if the outputs are beyond the limits of the precision.
    """
    with progress().step("start"):
        from deploykit.verbs.validate import ComparisonOptions, compare_artifacts

    options = ComparisonOptions(data, side_inputs, batch, layers, fast, sizes, device)
    found = compare_artifacts(first, second, options, progress())
    return Answer(
        found.to_dict(),
        lambda out: _show(out, found, show_all=show_all),
        failed=not found.passed,
        verdict=_verdict(found) if found.passed else None,
    )


def _verdict(found: ComparisonReport) -> str:
    return f"the {found.outputs.head.noun} are within the limits of {found.outputs.precision}"


def _show(out: Console, found: ComparisonReport, *, show_all: bool) -> None:
    show_comparison(out, [one.to_dict() for one in (found.outputs, *found.others)])
    if found.layers is not None:
        _show_layers(out, found, found.layers, show_all=show_all)
    for note in found.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    if found.passed:
        out.print(_verdict(found))
    elif found.layers is None and found.has_layers:
        out.print("to see where it begins, add --layers")


def _show_layers(
    out: Console, found: ComparisonReport, layers: LayerReport, *, show_all: bool
) -> None:
    from rich.markup import escape

    faulty = {fault.value.name for fault in layers.faults}
    shown = layers.values if show_all else _interesting(layers)
    numbers = ("cosine", "SQNR", "lost", "range", "reference's range", "NaN, inf")
    title = f"{len(shown)} of {len(layers.values)} values, in graph order"
    rows = table(("value", "operator", "shape", *numbers), title=title, right=numbers)
    for value in shown:
        cells = (value.name, value.op_type, "x".join(map(str, value.shape)))
        figures = _figures(value, layers.drop_of(value))
        style = "red" if value.name in faulty else None
        rows.add_row(*map(escape, cells), *figures, style=style)
    out.print(rows, "")
    _show_matched(out, found, layers)
    if layers.first_fault is None:
        few = layers.matched * _FEW < layers.of_reference
        out.print(
            f"only {layers.matched} of {layers.of_reference} activations could be compared: "
            "this does not say that no value goes wrong"
            if few
            else "no value goes wrong: none loses more than its precision explains",
            style="bold red" if few else None,
        )
        return
    _show_fault(out, layers.first_fault)
    for fault in layers.faults[1:]:
        out.print(f"also: {fault.value.node} ({fault.reason})", markup=False)


def _interesting(layers: LayerReport) -> list[ValueComparison]:
    """Faults with their inputs, the largest losses, and the end."""
    by_loss = sorted(layers.values, key=lambda v: _rank(v, layers.drop_of(v)), reverse=True)
    chosen = {value.name for value in (*by_loss[:_WORST], layers.values[-1])}
    for fault in layers.faults[:_WORST]:
        chosen |= {fault.value.name, *(each.name for each in fault.inputs)}
    return [value for value in layers.values if value.name in chosen]


def _rank(value: ValueComparison, lost: float) -> tuple[float, float]:
    """The largest loss first, of equal ones the lowest ratio; NaN has no place in an order."""
    return (-inf, -inf) if isnan(lost) else (lost, -value.sqnr_db)


def _figures(value: ValueComparison, lost: float) -> tuple[str, ...]:
    from deploykit.comparison.layerwise import decibels

    bad = f"{value.non_finite}, {value.reference_non_finite}"
    return (
        "-" if isnan(value.cosine) else f"{value.cosine:.6f}",
        decibels(value.sqnr_db),
        decibels(lost),
        _range(value.range),
        _range(value.reference_range),
        bad if value.non_finite or value.reference_non_finite else "",
    )


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"


def _show_matched(out: Console, found: ComparisonReport, layers: LayerReport) -> None:
    out.print(
        f"matched {layers.matched} of {layers.of_reference} activations of {found.reference}, "
        f"on {layers.images} images",
        markup=False,
    )
    sides = (found.candidate, layers.candidate_only), (found.reference, layers.reference_only)
    for side, alone in sides:
        if alone:
            out.print(f"only in {side}: {', '.join(alone)}", style="yellow", markup=False)


def _show_fault(out: Console, fault: Fault) -> None:
    from deploykit.comparison.layerwise import decibels

    value = fault.value
    out.print("")
    out.print(f"it begins at {value.node} ({value.op_type})", style="bold red", markup=False)
    out.print(f"  {value.name}: {fault.reason}", markup=False)
    for each in fault.inputs:
        good = f"SQNR {decibels(each.sqnr_db)}, cosine {each.cosine:.6f}, {_range(each.range)}"
        out.print(f"  its input {each.name}: {good}", markup=False)
    if not fault.inputs:
        out.print("  its input is the graph's own", markup=False)
    for advice in fault.advice:
        out.print(f"  try: {advice}", markup=False)

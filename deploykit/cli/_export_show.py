"""Output of an export: the verdict with a line for each thing that decides, and all figures.

Apart from `export`, which `deploykit --help` imports: this needs numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from deploykit.bundle.manifest import doubts_of
from deploykit.cli._show import (
    census_line,
    head_line,
    show_comparison,
    show_doubts,
    show_engines,
    show_files,
    show_frontier,
    show_int8,
    show_kept,
    show_stages,
    table,
)
from deploykit.core.byte_sizes import byte_size
from deploykit.core.precision import Precision
from deploykit.core.sizes import AXIS_NAMES
from deploykit.core.specs import DEFAULT_HEAD
from deploykit.heads import head_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from deploykit.bundle.manifest import Manifest
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.progress import StageTime
    from deploykit.exporting.steps import ExportReport

    Line = tuple[str, str]

_STAGES_SHOWN: Final = 3
_LEFT_OUT: Final = ("batch", "max abs", "mean abs")
"""Columns of a comparison: the images are said before, and absolute errors need their scale."""


def verdict(report: ExportReport) -> str:
    """Where the bundle is, and what of it is proven."""
    manifest = report.bundle.manifest
    verified = "weakly verified" if doubts_of(manifest.validation) else "verified"
    proven = f"{manifest.precision.upper()}, {verified}"
    if not manifest.engines:
        proven += ", no engine"
    return f"{report.bundle.folder} is ready: {proven}"


def show_export(out: Console, report: ExportReport) -> None:
    """What came of it; the figures behind it are `show_export_details`."""
    manifest = report.bundle.manifest
    out.print(verdict(report), style="bold", markup=False)
    rows = table(("", ""))
    rows.show_header = False
    for name, what in _lines(report):
        rows.add_row(f"  {name}", escape(what))
    out.print(rows)
    if "budget" in manifest.conversion:
        out.print("")
        show_frontier(out, manifest.conversion["budget"])
    show_doubts(out, doubts_of(manifest.validation))
    for note in report.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    out.print(
        f"next: deploykit check {report.bundle.folder}; every figure: export with --verbose, or "
        f"deploykit inspect {report.bundle.folder} --precision",
        markup=False,
    )


def show_export_details(out: Console, report: ExportReport) -> None:
    """Every figure of it: times, comparisons, files, nodes that stay, trials, engines."""
    manifest = report.bundle.manifest
    show_stages(out, report.stages)
    show_comparison(out, manifest.validation)
    show_files(out, report.bundle)
    show_kept(out, manifest.conversion.get("kept_fp32", {}))
    if manifest.calibration is not None:
        show_int8(out, manifest.conversion, manifest.calibration)
    show_engines(out, manifest.engines)


def _lines(report: ExportReport) -> Iterator[Line]:
    manifest = report.bundle.manifest
    yield "network", _network(manifest)
    yield from _layers(manifest.conversion, manifest.precision)
    if manifest.calibration is not None:
        yield "ranges", _ranges(manifest.calibration)
    for found in manifest.validation:
        yield "compared", _comparison(found)
    for engine in manifest.engines:
        yield from _engine(engine)
    yield "input", _input(report)
    yield "head", head_line(manifest.head)
    yield "took", _times(report.stages)


def _input(report: ExportReport) -> str:
    preprocessing, found = report.bundle.manifest.preprocessing, report.input_range
    values = f"{found.min:.4g} to {found.max:.4g}, {preprocessing.channel_order.upper()}"
    pixels = preprocessing.pixels
    if pixels is None:
        return values
    given = f"{pixels.dtype}, {pixels.layout.upper()}, {pixels.order.upper()}"
    return f"{given}; the graph makes {values} of it; outside: {', '.join(pixels.outside)}"


def _network(manifest: Manifest) -> str:
    weights = manifest.weights
    source = weights.get("source", "")
    if weights.get("trained") is False:
        source += ", so its answers mean nothing"
    shapes = (_shape(spec.shape) for spec in manifest.onnx.inputs)
    return f"{manifest.model['name']}, {' and '.join(shapes)}; weights: {source}"


def _shape(shape: Sequence[int | str]) -> str:
    """A shape as papers write it.

    >>> _shape(("batch", 3, 224, 224))
    '(batch, 3, 224, 224)'
    """
    return f"({', '.join(map(str, shape))})"


def _layers(conversion: Mapping[str, Any], precision: Precision) -> Iterator[Line]:
    counts = conversion.get("layers")
    if counts:
        kinds = sorted(counts, key=lambda kind: Precision(kind).facts.operand_bits)
        words = ", ".join(f"{counts[kind]} {kind.upper()}" for kind in kinds if counts[kind])
        yield "layers", f"{words} (convolutions and matrix products)"
    kept = conversion.get("kept_fp32", {})
    if kept:
        first, reason = next(iter(kept.items()))
        more = f", and {len(kept) - 1} more" if len(kept) > 1 else ""
        yield f"not {precision.upper()}", f"{first}: {reason}{more}"


def _ranges(calibration: Mapping[str, Any]) -> str:
    parts = [f"by {calibration['method']}, from {calibration['images']} images"]
    sensitive = len(calibration["policy"]["sensitive"])
    if sensitive:
        parts.append(f"{sensitive} sensitive layers kept")
    equalised = len(calibration.get("equalised", ()))
    if equalised:
        parts.append(f"{equalised} values equalised")
    return ", ".join(parts)


def _comparison(found: Mapping[str, Any]) -> str:
    """The worst of every figure, over all images."""
    head = head_named(found.get("head", DEFAULT_HEAD))
    head = head.applied(found.get("activation", head.activation))
    values = dict(zip(head.comparison_columns, head.worst_row(found["batches"]), strict=True))
    told = [f"{name} {value}" for name, value in values.items() if name not in _LEFT_OUT]
    told = [each for each in told if not each.endswith(" -")]
    sides = f"{found['candidate']} with {found['reference']}"
    return f"{sides}, {values['batch']} images: {', '.join(told)}"


def _engine(engine: EngineRecord) -> Iterator[Line]:
    profile = engine.profile
    sizes = (
        [f"{len(profile.parts)} profiles"]
        if profile.parts
        else [
            f"{AXIS_NAMES[axis]} {sizes.min} to {sizes.max}"
            for axis, sizes in profile.ranges.items()
        ]
    )
    yield "engine", f"{engine.file}, {byte_size(engine.bytes)}, {', '.join(sizes)}"
    yield "", f"for compute capability {engine.targets}"
    yield "", f"parsed: {census_line(engine.precision_census)}"
    for warning in engine.warnings:
        yield "warning", warning


def _times(stages: Sequence[StageTime]) -> str:
    longest = sorted(stages, key=lambda stage: -stage.seconds)[:_STAGES_SHOWN]
    parts = ", ".join(f"{stage.name} {stage.seconds:.1f}" for stage in longest)
    return f"{sum(stage.seconds for stage in stages):.1f} s ({parts})"

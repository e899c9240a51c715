"""The HTML page of a run: one file with its data, style and script, which loads nothing.

Also where all reports of a run are written, beside its file of results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.report import facts
from deploykit.benchmarking.report.facts import figure
from deploykit.benchmarking.report.rows import LEVELS, Remark, latency_of, remarks_of, row_of
from deploykit.benchmarking.report.summary import common_remarks, sentence_of
from deploykit.benchmarking.report.table import csv_of, markdown_of
from deploykit.benchmarking.statistics.percentiles import CONFIDENCE, samples_needed
from deploykit.core.atomic import write_whole
from deploykit.core.errors import UsageError
from deploykit.core.precision import precisions
from deploykit.reporting.document import asset, document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.benchmarking.report.rows import Row
    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure
    from deploykit.costs.peaks import DevicePeak

    Facts = Mapping[str, str]


_MEDIAN: Final = 50
# Levels of the distribution: every percent from 0 to 90, then _TAIL more up to _LAST percent.
_BULK: Final = 91
_TAIL: Final = 60
_LAST: Final = 99.99
# Significant digits of a time; more would only make the page larger.
_DIGITS: Final = 6
_STEP_NAMES: Final = {
    "wall_ms": "Wall time",
    "h2d_ms": "Copy to the device",
    "compute_ms": "Computing",
    "d2h_ms": "Copy to the host",
    "enqueue_ms": "Enqueueing",
}


def page_data(run: BenchmarkRun) -> dict[str, Any]:
    """Everything on the page; ``rows`` has the results and then the failures."""
    machines, common = facts.machines_of(run), facts.common_switches(run.results)
    peaks = facts.peaks_of(run)
    shown = [row_of(result) for result in run.results]
    shared = common_remarks(shown)
    said = frozenset[Remark]().union(*(alike for _, alike in shared))
    results = [
        _row(result, row, common, machines, peaks)
        | {"remarks": [_plain(each) for each in remarks_of(row) if each not in said]}
        for result, row in zip(run.results, shown, strict=True)
    ]
    rows = results + [_failed(failure) for failure in run.failures]
    names = dict.fromkeys(facts.machine_name(result.environment) for result in run.results)
    return {
        "machine": ", ".join(names) or "no result",
        "sentence": sentence_of(shown),
        "shared": [_plain(remark) for remark, _ in shared],
        "period": facts.period_of(run),
        "deploykit": ", ".join(facts.versions_of(run)),
        "machines": list(map(_pairs, machines)),
        "switches": _pairs(common),
        "peak_facts": [facts.peak_text(peak) for peak in peaks],
        "peaks": [_roofs(peak) for peak in peaks],
        "confidence": CONFIDENCE,
        "percentiles": [_name(level) for level in LEVELS],
        "samples_needed": {_name(level): samples_needed(level) for level in LEVELS},
        "levels": _levels(),
        "rows": [{"id": number, **row} for number, row in enumerate(rows)],
    }


def _plain(remark: Remark) -> list[str]:
    return [remark.kind, remark.sentence]


def _row(
    result: BenchmarkResult,
    row: Row,
    common: Facts,
    machines: Sequence[Facts],
    peaks: list[DevicePeak],
) -> dict[str, Any]:
    latency_ms = latency_of(result)
    return {
        "model": row.model,
        "backend": row.backend,
        "precision": row.precision,
        "batch": row.batch,
        "scenario": row.scenario,
        "failed": None,
        "proven": row.precision_proven,
        "samples": row.samples,
        "median_ms": row.median_ms,
        "p99_ms": row.p99_ms,
        "percentiles": {
            _name(level): [found.value, found.low, found.high]
            for level, found in row.latency_ms.items()
        },
        "images_per_s": row.throughput_per_s,
        "variation": row.variation,
        "limit": _limit(result, row, peaks),
        "quantiles": _quantiles(latency_ms),
        "largest_ms": _short(float(latency_ms.max())),
        "details": _pairs(_details(result, row, common, machines)),
    }


def _failed(failure: CellFailure) -> dict[str, Any]:
    return {
        "model": failure.model,
        "backend": failure.backend,
        "precision": failure.precision,
        "batch": failure.batch,
        "scenario": None,
        "failed": failure.kind,
        "remarks": [["failure", f"{failure.kind} after {failure.seconds:.3g} s: {failure.reason}"]],
        "percentiles": {},
        "details": [],
    }


def _limit(result: BenchmarkResult, row: Row, peaks: list[DevicePeak]) -> dict[str, Any] | None:
    if result.limit is None or row.achieved is None:
        return None
    peak = facts.peak_of(result.environment)
    return {
        "limit_ms": result.limit.limit_ms,
        "share": row.achieved.share,
        "binds": row.binds,
        "flop_per_s": row.achieved.flop_per_s,
        "bytes_per_s": row.achieved.bytes_per_s,
        "flop": result.limit.flop,
        "bytes": result.limit.required_bytes,
        "peak": None if peak is None else peaks.index(peak),
    }


def _roofs(peak: DevicePeak) -> dict[str, Any]:
    """Best rates by precision; a network may be computed in a wider one where that is faster.

    Winograd's algorithm is left out, since only 3x3 convolutions gain by it.
    """
    return {
        "name": peak.name,
        "bytes_per_s": peak.bytes_per_s,
        "flop_per_s": {precision: peak.flop_per_s(precision) for precision in precisions()},
        "winograd": sorted(peak.winograd),
        "measured": peak.measured is not None,
    }


def _details(
    result: BenchmarkResult, row: Row, common: Facts, machines: Sequence[Facts]
) -> dict[str, str]:
    subject, cells = result.subject, row.latency_ms.items()
    percentiles = {
        f"p{_name(level)}": f"{figure(p.value)} ms ({figure(p.low)} to {figure(p.high)})"
        for level, p in cells
    }
    steps = {
        f"{_STEP_NAMES[step]}, median": f"{figure(ms)} ms" for step, ms in row.steps_ms.items()
    }
    switches = facts.switch_facts(result.switches).items()
    others = {label: text for label, text in switches if common.get(label) != text}
    machine = facts.machine_facts(result.environment)
    given = {
        "Median": "" if _MEDIAN in row.latency_ms else f"({figure(row.median_ms)} ms), no interval",
        "Measured at": result.created,
        "Duration": f"{result.duration_s:.3g} s",
        "Limit": "" if row.limit_ms is None else f"{figure(row.limit_ms)} ms, {row.binds} binds",
        "Precision proven": subject.precision_proven or "not known",
        "Compiler": " ".join(filter(None, (subject.compiler, subject.compiler_version))),
        "ONNX sha256": subject.onnx_sha256 or "",
        "Engine sha256": subject.engine_sha256 or "",
        "Machine": f"number {machines.index(machine) + 1}" if len(machines) > 1 else "",
    }
    known = {label: text for label, text in given.items() if text}
    return {**percentiles, **steps, **others, **known}


def _levels() -> list[float]:
    """Levels of the distribution in percent: every one of the bulk, then the tail by its nines."""
    import numpy as np

    bulk = np.arange(_BULK, dtype=np.float64)
    nines = np.geomspace(100 - bulk[-1], 100 - _LAST, _TAIL + 1)[1:]
    return [round(float(level), 4) for level in (*bulk, *(100 - nines))]


def _quantiles(latency_ms: Any) -> list[float]:
    """Quantiles at the levels of the page, up to the last that the number of samples allows."""
    import numpy as np

    levels = [level for level in _levels() if level <= 100 * (1 - 1 / len(latency_ms))]
    # Samples themselves, nothing in between: six of them are six steps.
    found = np.percentile(latency_ms, levels, method="inverted_cdf")
    return [_short(float(value)) for value in found]


def _short(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _name(level: float) -> str:
    return f"{level:g}"


def _pairs(labelled: Facts) -> list[list[str]]:
    return [[label, text] for label, text in labelled.items()]


SCRIPTS: Final = (
    "state.js",
    "series.js",
    "ranked.js",
    "curves.js",
    "distribution.js",
    "roofline.js",
    "precisions.js",
    "columns.js",
    "table.js",
    "page.js",
)
"""Scripts of the page in the order in which they depend on one another."""

_STYLE: Final = "bench.css"


def page_of(run: BenchmarkRun) -> str:
    """A whole HTML document; nothing of the data is read as HTML."""
    data = page_data(run)
    return document(
        title=f"Benchmark: {data['machine']}",
        template=_asset("page.html"),
        scripts=tuple(map(_asset, SCRIPTS)),
        style=_asset(_STYLE),
        data=data,
    )


def _asset(name: str) -> str:
    return asset(__package__, name)


_RESULTS: Final = ".json"


def write_reports(run: BenchmarkRun, path: Path) -> tuple[Path, ...]:
    """Write ``X.md``, ``X.csv`` and ``X.html`` beside the file of results ``X.json``.

    Each is written whole or not at all, and none before all of them are made.

    Raises:
        UsageError: ``path`` does not end in ``.json``.
        BundleError: the place cannot be written to; files that were there are as they were.
    """
    require_results_name(path)
    # All texts before the first file: a failure leaves no half of a set of reports.
    texts = {".md": markdown_of(run), ".csv": csv_of(run), ".html": page_of(run)}
    reports = {path.with_suffix(suffix): text for suffix, text in texts.items()}
    for report, text in reports.items():
        # A name from a file system may hold bytes that are no text; UTF-8 has no place for them.
        write_whole(report, text.encode("utf-8", "replace").decode("utf-8"))
    return tuple(reports)


def require_results_name(path: Path) -> None:
    """Check that the name of a results file leaves room for its reports.

    Raises:
        UsageError: ``path`` does not end in ``.json``.
    """
    if path.suffix != _RESULTS:
        raise UsageError(f"{path} is no file of results\nexpected a name that ends in {_RESULTS}")

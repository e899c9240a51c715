"""Measurements in a terminal.

Apart from `bench`, which `deploykit --help` imports: this needs numpy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.benchmarking.report.facts import figure, tail_text
from deploykit.benchmarking.report.rows import BRACKETS, remarks_of
from deploykit.benchmarking.statistics.comparing import Verdict
from deploykit.cli._show import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

    from deploykit.benchmarking.matrix.ab_run import AbRun
    from deploykit.benchmarking.report.rows import Row
    from deploykit.benchmarking.report.two_runs import ComparedPair, CompareReport
    from deploykit.benchmarking.statistics.percentiles import Percentile
    from deploykit.verbs.bench import BenchReport, Ranked

_WIDE = 120
"""Columns of a terminal that shows all of a row's figures at once."""

_CELL = ("model", "backend", "precision", "batch")
_FIGURES = ("p50 ms", "p99", "images/s", "of limit", "")
_MORE = ("99 % interval", "p90", "GFLOP/s", "binds")
_ESTIMATED = "estimated ms"
"""Of GPUs that are in the table; shown where a row has it."""
_NUMBERS = {"batch", *_FIGURES, *_MORE, _ESTIMATED} - {"binds", ""}

_NUMBER = re.compile(r"[0-9][0-9.,]*")
_SHOWN = 3
_COLOURS = {Verdict.FASTER: "green", Verdict.SLOWER: "red", Verdict.NO_DIFFERENCE: "default"}
_UNITS = {"latency_ms": "p50 ms", "throughput_per_s": "images/s"}
_TWO_RUNS = (
    "! these runs were made at different times, and a shared machine changes its speed; "
    "to be sure: deploykit bench --ab A B"
)


def show_run(out: Console, report: BenchReport) -> None:
    """The rows, what to doubt about them, the rankings, what failed, and where it all is.

    A narrow terminal shows the figures that decide; `show_details` has the others.
    """
    if report.rows:
        more = _MORE if out.width >= _WIDE else ()
        if any(row.estimated_ms is not None for row in report.rows):
            more = (*more, _ESTIMATED)
        out.print(_rows(report.rows, (*_FIGURES[:-1], *more, _FIGURES[-1])), "")
        _show_machine(out, report)
        _show_remarks(out, report.rows)
    for ranked in report.rankings:
        _show_ranking(out, ranked)
    for failure in report.run.failures:
        text = f"failed: {failure.key}: {failure.kind}: {_line(failure.reason)}"
        out.print(text, style="red", markup=False)
    for note in report.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    if report.resumed:
        out.print(f"{report.resumed} of these were measured by an earlier start of this run")
    out.print("written: " + ", ".join(map(str, report.files)), markup=False, soft_wrap=True)


def show_details(out: Console, report: BenchReport) -> None:
    """The figures that a narrow terminal has no room for."""
    if report.rows and out.width < _WIDE:
        out.print(_rows(report.rows, _MORE), "")


def _rows(rows: Iterable[Row], figures: Sequence[str]) -> Table:
    shown = table((*_CELL, *figures), right=tuple(_NUMBERS))
    for row in rows:
        cells = _cells(row)
        shown.add_row(
            row.model,
            row.backend,
            str(row.precision),
            str(row.batch),
            *(cells[name] for name in figures),
        )
    return shown


def _cells(row: Row) -> dict[str, str]:
    middle, share = row.latency_ms.get(50), row.achieved
    return {
        "p50 ms": f"({figure(row.median_ms)})" if middle is None else _ms(middle),
        "99 % interval": "" if middle is None else f"{figure(middle.low)} - {figure(middle.high)}",
        "p90": _ms(row.latency_ms.get(90)),
        "p99": _p99(row),
        "images/s": figure(row.throughput_per_s),
        "GFLOP/s": "" if share is None else figure(share.flop_per_s / 1e9),
        "of limit": "" if share is None else f"{share.share:.0%}",
        "binds": row.binds or "",
        _ESTIMATED: "" if row.estimated_ms is None else figure(row.estimated_ms.value),
        "": _mark(row),
    }


def _p99(row: Row) -> str:
    found = row.latency_ms.get(99)
    return tail_text(None if found is None else found.value, row.p99_ms)


def _ms(found: Percentile | None) -> str:
    return "" if found is None else figure(found.value)


def _mark(row: Row) -> str:
    """A sign for what is said below the table."""
    return "!" if any(remark.kind != "note" for remark in remarks_of(row)) else ""


def _show_machine(out: Console, report: BenchReport) -> None:
    here = report.run.results[0].environment
    gpus = ", ".join(gpu["name"] for gpu in here["gpus"]) or "no GPU"
    out.print(f"{here['cpu']}, {here['logical_cores']} logical cores, {gpus}", markup=False)


def _show_remarks(out: Console, rows: Sequence[Row]) -> None:
    """Each kind of remark once: the files say what holds for which cell."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        few = (BRACKETS,) if row.has_brackets else ()
        for text in (*(remark.sentence for remark in remarks_of(row)), *few):
            kinds.setdefault(_NUMBER.sub("#", text), []).append((text, row.key))
    for found in kinds.values():
        text = found[0][0]
        alike = [key for each, key in found if each == text]
        others = len(found) - len(alike)
        where = "every cell" if len(alike) == len(rows) > 1 else _some(alike)
        more = f"; likewise, with other figures, {others} more" if others else ""
        out.print(f"! {text} ({where}{more})", style="yellow", markup=False)


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return f"{shown} and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown


def _show_ranking(out: Console, ranked: Ranked) -> None:
    places = ", ".join(f"{rank}. {name} {figure(ms)} ms" for rank, name, ms in ranked.places)
    out.print(f"ranking, {ranked.title} (10th percentile): {places}", markup=False)


def show_comparison(out: Console, found: CompareReport) -> None:
    """A row for each pair, then what only one of the files has."""
    numbers = ("old", "new", "ratio", "99 % interval")
    rows = table(("cell", "", *numbers, "verdict"), right=numbers)
    for pair in found.pairs:
        ratio = pair.comparison.ratio
        interval = f"{ratio.low:.3f} - {ratio.high:.3f}"
        figures = figure(pair.old), figure(pair.new), f"{ratio.value:.3f}", interval
        verdict = f"[{_COLOURS[pair.verdict]}]{pair.verdict}[/]"
        rows.add_row(pair.key, _UNITS[pair.measure], *figures, verdict)
    out.print(rows, "")
    for text in _differences(found.pairs):
        out.print(f"! compared all the same: {text}", style="yellow", markup=False)
    for cell in found.not_compared:
        out.print(f"not compared: {cell.key}: {_line(cell.reason)}", style="yellow", markup=False)
    for failed in found.failed:
        before = "measured before" if failed.measured_before else "new"
        text = f"failed: {failed.key} ({before}): {failed.kind}: {_line(failed.reason)}"
        out.print(text, style="red", markup=False)
    for title, keys in (("only in the old", found.only_old), ("only in the new", found.only_new)):
        if keys:
            out.print(f"{title} file: {', '.join(keys)}", markup=False)
    if any(pair.verdict != Verdict.NO_DIFFERENCE for pair in found.pairs):
        out.print(_TWO_RUNS, style="yellow", markup=False)
    if found.fails:
        limit = f"{found.fail_above:.1%}"
        text = f"slower by more than {limit}, or failed: {', '.join(found.regressions)}"
        out.print(text, style="red", markup=False)


def show_in_turn(out: Console, found: AbRun) -> None:
    """Both medians, the ratio with its interval, the noise floor, the verdict."""
    report, ratio, noise = found.report, found.report.comparison.ratio, found.report.noise
    rows = table(("", "cell", "median ms", "queries"), right=("median ms", "queries"))
    rows.add_row("A", found.a.key, figure(report.a_ms), str(report.queries_a))
    rows.add_row("B", found.b.key, figure(report.b_ms), str(report.queries_b))
    out.print(rows, "")
    out.print(
        f"B takes {ratio.value:.3f} x the time of A ({ratio.low:.3f} to {ratio.high:.3f}, 99 %), "
        f"in {report.rounds} pairs",
        f"A against A: {noise.value:.3f} ({noise.low:.3f} to {noise.high:.3f}); "
        f"a verdict needs {report.comparison.min_effect:.1%}",
        f"B is [{_COLOURS[report.verdict]}]{report.verdict}[/]"
        if report.verdict != Verdict.NO_DIFFERENCE
        else "no difference",
        sep="\n",
    )
    for text in (*found.notes, *found.condition, *report.notes):
        out.print(f"! {text}", style="yellow", markup=False)
    out.print(f"written: {found.file}", markup=False, soft_wrap=True)


def _differences(pairs: Iterable[ComparedPair]) -> Iterable[str]:
    """What had to be overlooked, each once."""
    return dict.fromkeys(text for pair in pairs for text in pair.comparison.differences)


def _line(text: str) -> str:
    return "; ".join(text.splitlines())

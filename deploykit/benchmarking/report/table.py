"""A run as a table: CSV for spreadsheets and scripts, Markdown for people.

The one place of the package that writes CSV; no text in it is taken for a formula.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.report import facts
from deploykit.benchmarking.report.facts import figure
from deploykit.benchmarking.report.rows import BRACKETS, KINDS, LEVELS, STEPS, remarks_of, row_of
from deploykit.benchmarking.statistics.percentiles import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from deploykit.benchmarking.report.rows import Row
    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure
    from deploykit.benchmarking.statistics.percentiles import Percentile


_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
# OWASP, "CSV Injection": these begin a formula, the wide ones in some languages. After ";" and tab
# too: a spreadsheet that separates cells by them begins another one there.
_SIGNS: Final = r"=+\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA: Final = re.compile(rf"^(?=[{_SIGNS}\t\r\n])|(?<=[;\t])(?=[{_SIGNS}])")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A line with the names of the columns, then one for each row; what a row lacks is empty.

    Raises:
        ValueError: a row has a column that ``columns`` does not name.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def plain_text(text: str) -> str:
    """``text`` with a single quote before what a spreadsheet would run as a formula.

    A number is none, and stays one:

    >>> plain_text("=1+1"), plain_text("@SUM(A1)"), plain_text("-nan"), plain_text("-1.5e-3")
    ("'=1+1", "'@SUM(A1)", "'-nan", '-1.5e-3')
    """
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub("'", text)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    # The csv module leaves a lone carriage return unquoted, and readers end the row there.
    return plain_text(value.replace("\r\n", "\n").replace("\r", "\n"))


_MEDIAN: Final = 50
_SWITCHES: Final = (
    "preset",
    "cuda_graph",
    "transfers",
    "spin",
    "threads",
    "warmup_s",
    "rate_per_s",
    "bound_ms",
    "seed",
    "queue",
)
_SUBJECT: Final = ("onnx_sha256", "engine_sha256", "compiler", "compiler_version")
_COLUMNS: Final = (
    "model",
    "backend",
    "precision",
    "precision_proven",
    "batch",
    "scenario",
    "streams",
    "samples",
    "median_ms",
    *(f"p{level:g}{bound}_ms" for level in LEVELS for bound in ("", "_low", "_high")),
    "images_per_s",
    "variation_share",
    *(f"{step.removesuffix('_ms')}_p50_ms" for step in STEPS),
    "limit_ms",
    "limit_share",
    "binds",
    "estimated_ms",
    "estimated_low_ms",
    "estimated_high_ms",
    "flop_per_s",
    "bytes_per_s",
    *(f"{kind}s" for kind in KINDS),
    "failure",
    "failure_reason",
    "failure_s",
    "duration_s",
    "created",
    "machine",
    *_SWITCHES,
    *_SUBJECT,
)
_HEADINGS: Final = {
    "doubt": "Doubts",
    "condition": "State of the machine",
    "warning": "Warnings",
    "note": "Notes",
}


def csv_of(run: BenchmarkRun) -> str:
    """CSV with a header, one line for each result, then one for each failure.

    Units are in the names of the columns. A field is empty where nothing is known, as percentiles
    that the samples do not support; ``median_ms`` is there in any case. Several sentences in a
    field have "; " between them. A single quote stands before text that would be a formula.
    """
    rows = [*map(_fields, run.results), *map(_failed_fields, run.failures)]
    return csv_text(_COLUMNS, rows)


def markdown_of(run: BenchmarkRun) -> str:
    """Tables for GitHub, one for each backend and scenario, and below them all that qualifies them.

    Names and sentences are escaped: none of them is read as Markdown or HTML.
    """
    rows = [row_of(result) for result in run.results]
    lines = [f"# Benchmark{_of_machine(run)}", "", *_summary(run)]
    lines += ["", BRACKETS] if any(row.has_brackets for row in rows) else []
    common = facts.common_switches(run.results)
    for group in _groups(run.results):
        lines += ["", *_group_lines(group, common)]
    for kind in KINDS:
        lines += _remark_lines(rows, kind)
    lines += _failure_lines(run.failures)
    for machine in facts.machines_of(run):
        lines += ["", "## Machine", "", *_bullets(machine)]
    peaks = [f"- {escaped(facts.peak_text(peak))}" for peak in facts.peaks_of(run)]
    lines += ["", "## Peaks of the devices", "", *peaks] if peaks else []
    if common:
        lines += ["", "## Switches", "", *_bullets(common)]
    return "\n".join(lines) + "\n"


def _fields(result: BenchmarkResult) -> dict[str, Any]:
    row = row_of(result)
    given = {
        "images_per_s": row.throughput_per_s,
        "variation_share": row.variation,
        "duration_s": result.duration_s,
        "created": result.created,
        "machine": facts.machine_name(result.environment),
    }
    cell = ("model", "backend", "precision", "precision_proven", "batch", "scenario", "streams")
    figures = ("samples", "median_ms", "limit_ms", "binds")
    given |= {name: getattr(row, name) for name in (*cell, *figures)}
    given |= {f"{name.removesuffix('_ms')}_p50_ms": ms for name, ms in row.steps_ms.items()}
    for level, found in row.latency_ms.items():
        name = f"p{level:g}"
        given |= {f"{name}_ms": found.value, f"{name}_low_ms": found.low}
        given[f"{name}_high_ms"] = found.high
    if row.achieved is not None:
        given["limit_share"] = row.achieved.share
        given |= {name: getattr(row.achieved, name) for name in ("flop_per_s", "bytes_per_s")}
    if row.estimated_ms is not None:
        found_ms = row.estimated_ms
        given |= {"estimated_ms": found_ms.value}
        given |= {"estimated_low_ms": found_ms.low, "estimated_high_ms": found_ms.high}
    for kind in KINDS:
        sentences = (each.sentence for each in remarks_of(row) if each.kind == kind)
        given[f"{kind}s"] = "; ".join(map(_one_line, sentences))
    given |= {name: getattr(result.switches, name) for name in _SWITCHES}
    return given | {name: getattr(result.subject, name) for name in _SUBJECT}


def _failed_fields(failure: CellFailure) -> dict[str, Any]:
    return {
        "model": failure.model,
        "backend": failure.backend,
        "precision": failure.precision,
        "batch": failure.batch,
        "failure": failure.kind,
        "failure_reason": _joined(failure.reason),
        "failure_s": failure.seconds,
    }


def _of_machine(run: BenchmarkRun) -> str:
    names = dict.fromkeys(facts.machine_name(result.environment) for result in run.results)
    return "".join(f"{mark} {escaped(name)}" for mark, name in zip(_marks(), names, strict=False))


def _marks() -> Iterator[str]:
    yield ":"
    while True:
        yield ","


def _summary(run: BenchmarkRun) -> list[str]:
    counts = f"{_count(len(run.results), 'result')}, {_count(len(run.failures), 'failure')}"
    versions = ", ".join(facts.versions_of(run))
    about = (f"deploykit {versions}" if versions else "", facts.period_of(run), counts)
    return [". ".join(escaped(part) for part in about if part) + "."]


def _groups(results: Iterable[BenchmarkResult]) -> list[list[BenchmarkResult]]:
    """Results by backend and scenario, in the order in which they were measured."""
    groups: dict[tuple[str, str], list[BenchmarkResult]] = {}
    for result in results:
        key = result.subject.backend, result.switches.scenario
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _group_lines(results: Sequence[BenchmarkResult], common: Mapping[str, str]) -> list[str]:
    first = results[0]
    heading = f"## {escaped(first.subject.backend)}, {first.switches.scenario}"
    own = {
        k: v for k, v in facts.common_switches(results).items() if k not in {*common, "Scenario"}
    }
    said = [f"{label}: {text}." for label, text in own.items()]
    # A switch that differs within the group stands beside its row.
    varies = [k for k in facts.switch_facts(first.switches) if k not in {*common, *own, "Scenario"}]
    columns = [*_TABLE, *varies]
    align = ["---", "---", *["---:"] * (len(_TABLE) - 3), "---", *["---"] * len(varies)]
    lines = [heading, "", *([" ".join(said), ""] if said else []), _table_line(columns)]
    lines.append(_table_line(align))
    for result in results:
        switches = facts.switch_facts(result.switches)
        cells = [*_cells(row_of(result)), *(switches.get(label, "") for label in varies)]
        lines.append(_table_line(map(escaped, cells)))
    return lines


_TABLE: Final = (
    "Model",
    "Precision",
    "Batch",
    f"p50 ({100 * CONFIDENCE:g} % interval), ms",
    "p90, ms",
    "p99, ms",
    "Images/s",
    "Of the limit",
    "Binds",
)


def _cells(row: Row) -> list[str]:
    middle = row.latency_ms.get(_MEDIAN)
    return [
        row.model,
        row.precision,
        str(row.batch),
        f"({figure(row.median_ms)})" if middle is None else _interval(middle),
        _ms(row.latency_ms.get(90)),
        _p99(row),
        figure(row.throughput_per_s),
        "" if row.achieved is None else f"{row.achieved.share:.1%}".replace("%", " %"),
        row.binds or "",
    ]


def _p99(row: Row) -> str:
    found = row.latency_ms.get(99)
    return facts.tail_text(None if found is None else found.value, row.p99_ms)


def _ms(found: Percentile | None) -> str:
    return "" if found is None else figure(found.value)


def _interval(found: Percentile) -> str:
    return f"{figure(found.value)} ({figure(found.low)} to {figure(found.high)})"


def _remark_lines(rows: Iterable[Row], kind: str) -> list[str]:
    """A section with each sentence once, after the cells it applies to."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for remark in remarks_of(row):
            if remark.kind == kind:
                said.setdefault(remark.sentence, []).append(row.key)
    lines = [f"- {escaped(', '.join(keys))}: {escaped(text)}" for text, keys in said.items()]
    return ["", f"## {_HEADINGS[kind]}", "", *lines] if lines else []


def _failure_lines(failures: Sequence[CellFailure]) -> list[str]:
    lines = [
        f"- {escaped(each.key)}: {each.kind} after {each.seconds:.3g} s: "
        f"{escaped(_joined(each.reason))}"
        for each in failures
    ]
    return ["", "## Failures", "", *lines] if lines else []


def _bullets(labelled: Mapping[str, str]) -> list[str]:
    return [f"- {label}: {escaped(text)}" for label, text in labelled.items()]


def _table_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _joined(text: str) -> str:
    """The lines of a message as one line."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> escaped("a|b\n<i>_c_</i> snake_case")
    'a\\|b &lt;i>\\_c\\_&lt;/i> snake_case'
    """
    text = re.sub(r"[\\`*~|\[\]]", r"\\\g<0>", _one_line(text))
    # Between letters an underscore is no emphasis, and names are full of them.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    # The ampersands first, as the other replacement makes new ones.
    return text.replace("&", "&amp;").replace("<", "&lt;")

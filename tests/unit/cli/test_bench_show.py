from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from deploykit.benchmarking.results import BenchmarkRun, CellFailure
from deploykit.cli._bench_show import show_details, show_run
from deploykit.core.precision import Precision
from deploykit.verbs.bench import BenchReport
from tests.unit.benchmarking.statistics.noise import SUBJECT, independent, result_of

WALL_MS = independent(np.random.default_rng(0), 600, 0.01)


def shown(*results: Any, **changes: Any) -> str:
    known: dict[str, Any] = {"files": (Path("r.json"),), "resumed": 0, "notes": ()}
    report = BenchReport(BenchmarkRun(results, changes.pop("failures", ())), **{**known, **changes})
    text = StringIO()
    show_run(Console(file=text, width=160), report)
    return text.getvalue()


def result(batch: int, *condition: str, times: Any = WALL_MS) -> Any:
    subject = replace(SUBJECT, batch=batch)
    return result_of(times, subject=subject, condition=condition)


def test_a_row_has_its_figures_with_their_interval() -> None:
    text = shown(result(8))
    (row,) = (line for line in text.splitlines() if line.startswith("resnet50"))
    assert row.split()[:4] == ["resnet50", "tensorrt", "fp16", "8"]
    assert f"{np.median(WALL_MS):.4g}" in row
    assert "Some CPU @ 2 GHz, 2 logical cores, NVIDIA L4" in text
    assert "written: r.json" in text
    assert "!" not in row


def test_remarks_that_differ_in_a_figure_are_said_once() -> None:
    conditions = ("busy: others used 12% meanwhile", "busy: others used 34.5% meanwhile")
    text = shown(*(result(2**each, conditions[each % 2]) for each in range(6)))
    (line,) = (line for line in text.splitlines() if line.startswith("! busy"))
    cells = ", ".join(f"resnet50/tensorrt/fp16/b{batch}" for batch in (1, 4, 16))
    assert line == f"! {conditions[0]} ({cells}; likewise, with other figures, 3 more)"


def test_a_remark_of_every_cell_or_of_many_is_short() -> None:
    every = shown(result(1, "throttled"), result(2, "throttled"))
    assert "! throttled (every cell)" in every
    many = shown(*(result(2**each, *(["hot"] if each else [])) for each in range(6)))
    assert "b2, resnet50/tensorrt/fp16/b4, resnet50/tensorrt/fp16/b8 and 2 more)" in many


def test_a_median_without_an_interval_stands_in_brackets() -> None:
    text = shown(result(1, times=[2.0, 3.0, 2.5]))
    assert "(2.5)" in text
    assert "! A median in brackets has no interval" in text


def test_failures_and_notes_are_shown_without_any_result() -> None:
    failure = CellFailure("[b]nin", Precision.FP32, "ort", 1, "error", "line one\nline two", 1.0)
    text = shown(failures=(failure,), notes=("no physical limits",), resumed=1)
    assert "failed: [b]nin/ort/fp32/b1: error: line one; line two" in text
    assert "note: no physical limits" in text
    assert "1 of these were measured by an earlier start of this run" in text


def test_a_narrow_terminal_has_the_figures_that_decide_and_the_others_below() -> None:
    report = BenchReport(BenchmarkRun((result(8),), ()), (Path("r.json"),), 0, ())
    text = StringIO()
    console = Console(file=text, width=80)
    show_run(console, report)
    show_details(console, report)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith("resnet50")]
    assert len(rows) == 2  # none is folded
    assert lines[0].split()[:6] == ["model", "backend", "precision", "batch", "p50", "ms"]
    assert f"{np.median(WALL_MS):.4g}" in rows[0]
    assert "99 % interval" not in lines[0]
    assert any("99 % interval" in line for line in lines[1:])

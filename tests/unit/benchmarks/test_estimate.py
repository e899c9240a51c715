"""The judgement of estimates: what rows say, and that the committed figures can be had again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.estimate import (
    RESULTS,
    Problem,
    coverage,
    intervals_of,
    medians,
    network_key,
    networks,
    page,
    read_rows,
)
from deploykit.costs.intervals import half_width, interval, quantile
from deploykit.costs.latency import fitted, fitted_constants
from deploykit.costs.peaks import gpu_names


def test_every_published_row_has_its_network_and_its_gpu() -> None:
    rows = read_rows()
    assert len(rows) == 791
    assert {network_key(row) for row in rows} <= set(networks())
    assert {row.gpu for row in rows} <= set(gpu_names())


def test_how_a_row_was_timed_is_read_from_what_its_source_says() -> None:
    by_source = {row.source: row for row in read_rows()}
    graph = {name for name, row in by_source.items() if row.is_graph_timed}
    assert graph == {"mlperf-1.1", "mlperf-3.0", "wb-3090"}
    assert by_source["paddleclas-t4"].copied_bytes_per_s == "pageable"
    assert by_source["dle-paddle"].copied_bytes_per_s is None
    assert by_source["wb-3090"].size == (2144, 3840)
    assert replace(by_source["oneflow"], model="SE_ResNeXt50_32x4d").family == "se_resnext"


def test_the_committed_constants_give_the_committed_errors() -> None:
    rows = [row for row in read_rows() if row.source in {"mlperf-3.0", "oneflow"}]
    problem = Problem(rows)
    found = problem.estimated_ms(fitted_constants())
    assert (found >= problem.limit_ms).all()
    told = json.loads(RESULTS.read_text())["source"]
    for source in ("mlperf-3.0", "oneflow"):
        of_source = problem.labels("source") == source
        error = np.median(np.abs(found / problem.measured_ms - 1)[of_source])
        assert error == pytest.approx(told[source]["fitted on all"], abs=0.002)
    assert medians(problem, problem.measured_ms) == {"all": 0.0, "graph": 0.0}


def test_the_page_and_the_intervals_are_those_of_the_figures() -> None:
    found = json.loads(RESULTS.read_text())
    assert RESULTS.with_suffix(".md").read_text() == page(found)
    groups = {(gpu, each): errors for gpu, each, errors in fitted()["errors"]}
    again = intervals_of(groups)
    assert again["coverage"] == pytest.approx(found["coverage"])
    assert again["coverage by GPU"] == pytest.approx(found["coverage by GPU"])
    assert all(0.85 <= share <= 0.95 for share in again["coverage"].values())


def test_a_group_with_few_rows_lies_between_its_own_and_the_unseen() -> None:
    many = {("a", "fp16"): [0.1] * 100, ("b", "fp16"): [0.3] * 100, ("c", "fp16"): [0.2] * 100}
    unseen = half_width(("d", "fp16"), many)
    assert unseen == 0.3
    few = half_width(("d", "fp16"), {**many, ("d", "fp16"): [0.1, 0.1]})
    assert 0.1 < half_width(("a", "fp16"), many) < few < unseen
    assert quantile([0.5] * 8 + [1.0]) == 1.0
    assert interval(2.0, 0.0) == (2.0, 2.0)
    assert set(coverage(many).values()) == {1.0, 2 / 3}

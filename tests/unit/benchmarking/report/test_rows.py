from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.report.rows import (
    latency_of,
    percentile_value,
    ranking,
    row_of,
    row_to_plain,
)
from deploykit.benchmarking.results import CellFailure
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.costs.limits import Limit
from tests.unit.benchmarking.statistics.noise import (
    SUBJECT,
    SWITCHES,
    independent,
    result_of,
    samples_of,
)

if TYPE_CHECKING:
    from deploykit.benchmarking.results import BenchmarkResult

RNG = np.random.default_rng(5)
WALL_MS = independent(RNG, 2000, 0.01)
LIMIT = Limit(
    flop=8_000_000,
    required_bytes=2_000_000,
    compute_ms=2.0,
    memory_ms=2.5,
    uncached_ms=0.5,
    peak_measured=False,
)


def gpu_result(**changes: Any) -> BenchmarkResult:
    """Compute, copies and waiting make up the wall time."""
    steps = {"compute_ms": WALL_MS * 0.5, "h2d_ms": WALL_MS * 0.2, "d2h_ms": WALL_MS * 0.1}
    enqueue = {"enqueue_ms": WALL_MS * 0.01}
    return result_of(WALL_MS, samples=samples_of(WALL_MS, **steps, **enqueue), **changes)


def test_a_row_has_numpys_percentiles_of_the_latency() -> None:
    row = row_of(result_of(WALL_MS))
    for level in (10, 50, 90, 99):
        assert row.latency_ms[level].value == np.percentile(WALL_MS, level)
    assert row.latency_ms[50].low < row.latency_ms[50].value < row.latency_ms[50].high
    assert row.variation == pytest.approx(np.std(WALL_MS, ddof=1) / np.mean(WALL_MS))
    assert row.throughput_per_s == pytest.approx(2000 * 8 / (WALL_MS.sum() / 1e3))
    assert row.key == "resnet50/tensorrt/fp16/b8"


def test_a_percentile_that_the_samples_do_not_carry_is_left_out() -> None:
    assert 99.9 not in row_of(result_of(WALL_MS)).latency_ms
    assert list(row_of(result_of(WALL_MS[:20])).latency_ms) == [50]
    few = row_of(result_of(WALL_MS[:3]))
    assert not few.latency_ms
    assert few.median_ms == np.median(WALL_MS[:3])
    assert row_to_plain(few)["latency_ms"] == {"p50": few.median_ms, "p50_interval": None}


def test_latency_is_the_sum_of_the_steps_where_they_were_timed() -> None:
    result = gpu_result()
    assert latency_of(result) == pytest.approx(WALL_MS * 0.8)
    row = row_of(result)
    assert row.steps_ms["wall_ms"] == np.median(WALL_MS)
    assert row.steps_ms["compute_ms"] == np.median(WALL_MS * 0.5)
    assert set(row.steps_ms) == {"wall_ms", "compute_ms", "h2d_ms", "d2h_ms", "enqueue_ms"}


def test_latency_of_queries_that_arrive_is_what_they_waited() -> None:
    served = replace(SWITCHES, scenario="server", rate_per_s=100.0)
    assert latency_of(gpu_result(switches=served)) == pytest.approx(WALL_MS)


def test_the_limit_stands_beside_the_median() -> None:
    row = row_of(result_of(WALL_MS, limit=LIMIT))
    assert row.achieved is not None
    assert (row.limit_ms, row.binds) == (2.5, "memory")
    assert row.achieved.share == pytest.approx(2.5 / np.median(WALL_MS))
    assert row.achieved.flop_per_s == pytest.approx(8e6 / (np.median(WALL_MS) / 1e3))
    assert row_of(result_of(WALL_MS)).achieved is None


def test_a_latency_under_the_limit_is_doubted() -> None:
    row = row_of(result_of(WALL_MS / 10, limit=LIMIT))
    assert row.achieved is not None
    assert str(row.achieved.doubt).startswith("0.5 ms is probably an error: the arithmetic alone")


def test_warnings_conditions_and_notes_come_along() -> None:
    streams = replace(SWITCHES, scenario="offline", streams=4)
    row = row_of(result_of(WALL_MS, switches=streams, notes=("calibrated with noise",)))
    assert [text.partition(":")[0] for text in row.warnings] == ["4 streams"]
    assert row.condition == ("load average 3.1 on 2 cores before the start",)
    assert row.notes == ("calibrated with noise",)


def test_a_row_is_plain_data_for_machines() -> None:
    data = json.loads(json.dumps(row_to_plain(row_of(result_of(WALL_MS, limit=LIMIT)))))
    p50 = np.median(WALL_MS)
    assert data["latency_ms"]["p50"] == p50
    low, high = data["latency_ms"]["p50_interval"]
    assert low < p50 < high
    assert (data["model"], data["precision"], data["backend"], data["batch"]) == (
        "resnet50",
        "fp16",
        "tensorrt",
        8,
    )
    assert data["throughput_per_s"] > 0
    assert data["achieved"]["share"] == pytest.approx(2.5 / p50)


def model(name: str, latency_ms: float) -> BenchmarkResult:
    return result_of(WALL_MS / 5 * latency_ms, subject=replace(SUBJECT, model=name))


def test_models_are_ranked_from_the_fastest_and_near_ones_share_a_rank() -> None:
    given = [model("slow", 30), model("b", 10.5), model("a", 10), model("fast", 1)]
    assert [(rank, name) for rank, name, _ in ranking(given)] == [
        (1, "fast"),
        (2, "a"),
        (2, "b"),
        (4, "slow"),
    ]
    assert ranking([]) == []


def test_a_disturbance_does_not_change_the_rank() -> None:
    disturbed = WALL_MS.copy()
    disturbed[: len(disturbed) // 2] *= 3
    given = [model("b", 8), result_of(disturbed, subject=replace(SUBJECT, model="a"))]
    assert [name for _, name, _ in ranking(given)] == ["a", "b"]
    assert percentile_value(disturbed) > percentile_value(WALL_MS) * 1.1


def test_a_failure_is_named_as_its_cell() -> None:
    failure = CellFailure("nin", Precision.FP32, "ort", 1, "error", "it broke", 1.0)
    assert failure.key == "nin/ort/fp32/b1"
    assert from_plain(CellFailure, to_plain(failure), Source("failure")) == failure

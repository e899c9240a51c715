"""A row above the CPU's peak: the peak is measured again, or nothing has a limit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.matrix.cpu_peak import AFTER_S, CACHED, with_settled_peak
from deploykit.benchmarking.report.facts import peak_of
from deploykit.benchmarking.report.rows import remarks_of, row_of
from deploykit.benchmarking.results import BenchmarkRun
from deploykit.core.errors import DeviceError
from deploykit.costs.limits import Limit
from deploykit.costs.peaks import DevicePeak, peak_to_plain
from tests.unit.benchmarking.report.reported import CPU, measured, on_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.benchmarking.results import BenchmarkResult

FLOP = 1_000_000_000
BYTES = 100_000_000


def peak(fp32: float, memory: float = 1e11) -> DevicePeak:
    return DevicePeak(
        name="Some CPU",
        fp32_flop_per_s=fp32,
        tf32_flop_per_s=None,
        fp16_flop_per_s=None,
        int8_op_per_s=None,
        bytes_per_s=memory,
        cache_bytes=0,
        winograd=frozenset(),
        source=f"measured at {fp32:g}",
        measured="2026-11-29T00:00:00+00:00",
    )


def on_cpu(latency_ms: float, by: DevicePeak, **changes: Any) -> BenchmarkResult:
    limit = Limit(
        flop=FLOP,
        required_bytes=BYTES,
        compute_ms=FLOP / by.fp32_flop_per_s * 1e3,
        memory_ms=BYTES / by.bytes_per_s * 1e3,
        uncached_ms=0.0,
        peak_measured=True,
    )
    return measured(
        "nin",
        np.full(30, latency_ms),
        environment=CPU | {"peak": peak_to_plain(by)},
        limit=replace(limit, **changes),
    )


class Trials:
    """Answers trials in turn, the last again and again; keeps how long each was to take."""

    def __init__(self, *found: float) -> None:
        self.found, self.seconds = list(found), list[float]()

    def __call__(self, seconds: float) -> DevicePeak:
        self.seconds.append(seconds)
        return peak(self.found.pop(0) if len(self.found) > 1 else self.found[0])


def test_the_best_of_all_trials_is_the_peak_of_every_row() -> None:
    run = BenchmarkRun((on_cpu(100.0, peak(5e10)), on_cpu(80.0, peak(4e10, 2e11))))
    trials = Trials(8e10)
    settled = with_settled_peak(run, trials).results
    assert trials.seconds == [AFTER_S[0]]
    for result in settled:
        assert peak_of(result.environment) == peak(8e10, 2e11)
        assert result.limit is not None
        assert result.limit.compute_ms == pytest.approx(FLOP / 8e10 * 1e3)
        assert result.limit.memory_ms == pytest.approx(BYTES / 2e11 * 1e3)
    assert row_of(settled[0]).achieved is not None


def test_a_row_without_a_limit_is_of_the_same_machine() -> None:
    uncounted = replace(on_cpu(100.0, peak(5e10)), limit=None)
    run = BenchmarkRun((on_cpu(100.0, peak(5e10)), uncounted))
    settled = with_settled_peak(run, Trials(8e10)).results
    assert [peak_of(result.environment) for result in settled] == [peak(8e10)] * 2
    assert settled[1].limit is None


def test_a_slower_trial_afterwards_changes_nothing() -> None:
    run = BenchmarkRun((on_cpu(100.0, peak(5e10)),))
    assert with_settled_peak(run, Trials(1e10)) == run


def test_a_row_above_the_peak_has_it_measured_again() -> None:
    run = BenchmarkRun((on_cpu(10.0, peak(5e10)),))  # 1e11 FLOP/s
    trials = Trials(6e10, 2e11)
    (result,) = with_settled_peak(run, trials).results
    assert trials.seconds == list(AFTER_S[:2])
    row = row_of(result)
    assert row.achieved is not None
    assert row.achieved.share == pytest.approx(0.5)
    assert remarks_of(row) == ()


def test_where_a_row_stays_above_no_row_has_a_limit_and_a_note_says_why() -> None:
    run = BenchmarkRun((on_cpu(100.0, peak(5e10)), on_cpu(10.0, peak(5e10))))
    trials = Trials(6e10)
    settled = with_settled_peak(run, trials)
    assert trials.seconds == list(AFTER_S)
    for result in settled.results:
        row = row_of(result)
        assert (row.achieved, row.limit_ms, row.binds) == (None, None, None)
        assert remarks_of(row)[-1].sentence == (
            "no physical limit: nin/ort/fp32/b1 computes 100 GFLOP/s, more than the 60 GFLOP/s "
            "that trials found before and after; measure again when the machine is idle"
        )


def test_a_network_that_stays_in_the_cache_has_no_limit_by_memory() -> None:
    run = BenchmarkRun((on_cpu(20.0, peak(1e12, 1e9)),))
    (result,) = with_settled_peak(run, lambda _: peak(1e12, 1e9)).results
    assert row_of(result).achieved is None
    assert result.notes == (CACHED,)


def fails(_seconds: float) -> DevicePeak:
    raise DeviceError("busy")


@pytest.mark.parametrize("measure", [fails, Trials(1e9)])
def test_what_was_found_before_holds_where_nothing_is_found_afterwards(
    measure: Callable[[float], DevicePeak],
) -> None:
    run = BenchmarkRun((on_cpu(100.0, peak(5e10)),))
    assert with_settled_peak(run, measure) == run


def test_rows_of_a_gpu_and_rows_without_a_limit_stay_as_they_are() -> None:
    run = BenchmarkRun((on_gpu("nin", "fp16", 1, [1.0, 2.0]), measured("nin", [1.0, 2.0])))
    assert with_settled_peak(run, fails) == run


def test_a_precision_without_a_rate_has_no_limit_though_memory_would_have_one() -> None:
    result = on_cpu(100.0, peak(5e10), compute_ms=None)
    row = row_of(result)
    assert (row.achieved, row.limit_ms, row.binds) == (None, None, None)
    (remark,) = remarks_of(row)
    assert remark.sentence == (
        "no physical limit: the best rate of this device in fp32 is not known"
    )
    (settled,) = with_settled_peak(BenchmarkRun((result,)), Trials(9e10)).results
    assert row_of(settled).achieved is None

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.benchmarking.results import BenchmarkResult, Samples
from deploykit.benchmarking.statistics.comparing import (
    Comparison,
    Ratio,
    Verdict,
    query_times_ms,
    ratio_of_means,
    ratio_of_query_times,
)
from deploykit.core.errors import DataError
from tests.unit.benchmarking.statistics.noise import SWITCHES, dependent, lognormal, result_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Series = NDArray[np.float64]
    Draw = Callable[[np.random.Generator], tuple[Series, int]]


def closed_loop(times_ms: Series, streams: int) -> BenchmarkResult:
    """Each stream begins its next query when its last has ended; times in order of the begin."""
    free_ms = [0.0] * streams
    begins_ms = []
    for time_ms in times_ms.tolist():
        stream = free_ms.index(min(free_ms))
        begins_ms.append(free_ms[stream])
        free_ms[stream] += time_ms
    samples = Samples(
        wall_ms=times_ms,
        compute_ms=None,
        h2d_ms=None,
        d2h_ms=None,
        enqueue_ms=None,
        start_s=np.array(begins_ms) / 1e3,
        warmup_ms=np.array([9.0]),
    )
    switches = replace(SWITCHES, scenario="offline", streams=streams)
    return result_of(times_ms, samples=samples, switches=switches, duration_s=max(free_ms) / 1e3)


def stalls(rng: np.random.Generator, count: int) -> Series:
    """One query in fifty takes three times as long."""
    return lognormal(rng, count, 0.05) * np.where(rng.random(count) < 0.02, 3.0, 1.0)


NOISE: dict[str, Draw] = {
    "few rounds": lambda rng: (lognormal(rng, 200, 0.1), 4),
    "two streams": lambda rng: (lognormal(rng, 600, 0.3), 2),
    "slow and fast phases": lambda rng: (dependent(rng, 1000, 0.05, 0.8), 2),
    "in step": lambda rng: (np.repeat(lognormal(rng, 200, 0.1), 4), 4),
    "stalls": lambda rng: (stalls(rng, 1000), 2),
}


PAIRS, FEW_PAIRS = 100, 30
"""The few are for what is found in nearly every pair, with a rate that need not be known well."""


@cache
def ratios(name: str, slowdown: float, pairs: int) -> list[Ratio]:
    """Of seeded pairs of runs, the second slower by the factor."""
    found = []
    for seed in range(pairs):
        rng = np.random.default_rng(seed)
        (old, streams), (new, _) = NOISE[name](rng), NOISE[name](rng)
        runs = closed_loop(old, streams), closed_loop(new * slowdown, streams)
        found.append(ratio_of_query_times(*runs))
    return found


def verdicts(name: str, slowdown: float, pairs: int) -> list[Verdict]:
    found = ratios(name, slowdown, pairs)
    return [Comparison(ratio, min_effect=0.02).verdict for ratio in found]


@pytest.mark.parametrize("name", NOISE)
def test_the_interval_holds_the_true_ratio(name: str) -> None:
    assert sum(ratio.low <= 1 <= ratio.high for ratio in ratios(name, 1.0, PAIRS)) >= 0.95 * PAIRS


@pytest.mark.parametrize("name", NOISE)
def test_the_same_thing_twice_is_no_difference(name: str) -> None:
    assert verdicts(name, 1.0, PAIRS).count(Verdict.NO_DIFFERENCE) >= 0.95 * PAIRS


@pytest.mark.parametrize("name", NOISE)
def test_a_slowdown_of_a_tenth_is_found(name: str) -> None:
    assert verdicts(name, 1.1, FEW_PAIRS).count(Verdict.SLOWER) >= 0.9 * FEW_PAIRS


def test_the_interval_of_means_has_the_width_of_the_theory() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(20):
        ratio = ratio_of_means(*(5 + 0.25 * rng.standard_normal(1000) for _ in range(2)))
        widths.append(np.log(ratio.high / ratio.low) / 2)
    expected = 2.5758 * np.sqrt(2) * 0.05 / np.sqrt(1000)
    assert np.mean(widths) == pytest.approx(expected, rel=0.15)


def test_the_ratio_is_that_of_the_throughputs() -> None:
    rng = np.random.default_rng(0)
    old = closed_loop(lognormal(rng, 400, 0.3), 4)
    new = closed_loop(lognormal(rng, 600, 0.3) * 1.3, 4)
    ratio = ratio_of_query_times(old, new)
    expected = old.throughput_per_s / new.throughput_per_s
    assert ratio.value == pytest.approx(expected, rel=0.02)
    assert ratio.low < expected < ratio.high


def test_a_stall_counts_for_the_throughput_and_not_for_the_median() -> None:
    times = np.full(200, 5.0)
    slow = times.copy()
    slow[::20] = 15.0
    assert ratio_of_query_times(closed_loop(times, 1), closed_loop(slow, 1)).value == pytest.approx(
        1.1
    )


def test_rounds_add_up_to_the_measurement() -> None:
    """Two streams: one ends at 2, 4, 6, the other at 3, 6, 9."""
    run = closed_loop(np.array([2.0, 3.0, 2.0, 3.0, 2.0, 3.0]), 2)
    assert run.samples.start_s * 1e3 == pytest.approx([0, 0, 2, 3, 4, 6])
    assert query_times_ms(run) == pytest.approx([3 / 2, 3 / 2, 3 / 2])


def test_what_is_left_of_the_last_round_does_not_count() -> None:
    assert query_times_ms(closed_loop(np.full(7, 4.0), 3)) == pytest.approx([4 / 3, 4 / 3])
    assert len(query_times_ms(closed_loop(np.full(2, 4.0), 3))) == 0


def test_too_few_rounds_are_not_compared() -> None:
    enough, few = closed_loop(np.full(80, 4.0), 4), closed_loop(np.full(79, 4.0), 4)
    assert ratio_of_query_times(enough, enough) == Ratio(1.0, 1.0, 1.0)
    with pytest.raises(DataError, match="the new result has 19 samples, a comparison needs 20"):
        ratio_of_query_times(enough, few)

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.report.rows import (
    drifting,
    launch_bound,
    mann_kendall,
    overlapping,
    stall_bound,
    stalled,
    transfer_bound,
    trend_of,
    unstable_compute,
    warnings_of,
)
from tests.unit.benchmarking.statistics.noise import (
    SWITCHES,
    dependent,
    independent,
    lognormal,
    mixture,
    samples_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Series = NDArray[np.float64]
    Draw = Callable[[np.random.Generator], Series]

STEADY = [4.0] * 40


def test_a_steady_measurement_gives_no_warning() -> None:
    samples = samples_of(
        STEADY, compute_ms=STEADY, h2d_ms=[1.0] * 40, d2h_ms=[0.5] * 40, enqueue_ms=[0.3] * 40
    )
    assert warnings_of(samples, SWITCHES) == []


def test_every_warning_is_given_once_and_in_order() -> None:
    wall = np.concatenate([np.linspace(4, 6, 200), [90.0]])
    samples = samples_of(wall, compute_ms=wall, h2d_ms=wall, d2h_ms=wall, enqueue_ms=wall)
    found = warnings_of(samples, replace(SWITCHES, streams=3))
    names = ["launch-bound", "transfer-bound", "unstable", "3 streams", "drift", "stalls"]
    assert [sentence.partition(":")[0] for sentence in found] == names


@pytest.mark.parametrize("graph", [False, True])
def test_launches_bind_above_four_fifths_of_the_computing(graph: bool) -> None:
    switches = replace(SWITCHES, cuda_graph=graph)
    bound = samples_of([5.0] * 3, compute_ms=[1.0, 4.0, 90.0], enqueue_ms=[3.21, 3.21, 0.0])
    remedy = "use a larger batch" if graph else "use a CUDA graph"
    assert launch_bound(bound, switches) == (
        "launch-bound: enqueueing takes 3.21 ms, computing 4 ms, so the GPU may wait for the host; "
        f"{remedy}"
    )
    assert launch_bound(samples_of([5], compute_ms=[4], enqueue_ms=[3.2]), switches) is None
    assert launch_bound(samples_of([5], compute_ms=[4]), switches) is None
    assert launch_bound(samples_of([5], enqueue_ms=[4]), switches) is None


def test_copies_bind_from_the_time_of_the_computing_on() -> None:
    steps = {"compute_ms": [2.0]}
    assert transfer_bound(samples_of([5], **steps, h2d_ms=[1.9], d2h_ms=[1.9])) is None
    assert transfer_bound(samples_of([5], **steps)) is None
    assert transfer_bound(samples_of([5], h2d_ms=[1.9])) is None
    sentence = transfer_bound(samples_of([5], **steps, h2d_ms=[2.0], d2h_ms=[0.1]))
    assert sentence is not None
    assert sentence.startswith("transfer-bound: H2D 2 ms, computing 2 ms; measure without")
    both = transfer_bound(samples_of([5], **steps, h2d_ms=[2.5], d2h_ms=[3.0]))
    assert both is not None
    assert both.startswith("transfer-bound: H2D 2.5 ms and D2H 3 ms, computing 2 ms; ")


def test_compute_times_may_vary_by_a_fortieth() -> None:
    rough, smooth = [9.7, 10.0, 10.3], [9.8, 10.0, 10.2]
    assert unstable_compute(samples_of(rough)) is None
    assert unstable_compute(samples_of(rough, compute_ms=smooth, enqueue_ms=[0, 0, 0])) is None
    assert unstable_compute(samples_of([1], compute_ms=[1], enqueue_ms=[0])) is None
    assert unstable_compute(samples_of(smooth, compute_ms=rough)) is None  # a CPU
    assert unstable_compute(samples_of(smooth, compute_ms=rough, enqueue_ms=[0, 0, 0])) == (
        "unstable: GPU compute times vary by 3.0% (coefficient of variation, limit 2.5%); "
        "lock the GPU's clocks, or wait for it by spinning"
    )


def test_streams_overlap() -> None:
    assert overlapping(SWITCHES) is None
    assert overlapping(replace(SWITCHES, streams=4)) == (
        "4 streams: each latency includes waiting for the queries beside it; "
        "believe the throughput, and take latencies from one stream"
    )


@pytest.mark.parametrize("distinct", [5, 1000])
@pytest.mark.parametrize("count", [8, 20, 57])
def test_mann_kendall_is_kendalls_tau_against_time(count: int, distinct: int) -> None:
    from scipy import stats

    for seed in range(10):
        rng = np.random.default_rng(seed)
        series = rng.integers(distinct, size=count) + 0.05 * distinct * np.arange(count) / count
        series = np.round(series)
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        score = abs(sum(np.sign(series[j] - series[i]) for i, j in pairs))
        uncorrected = stats.kendalltau(np.arange(count), series, method="asymptotic").pvalue
        z = stats.norm.isf(uncorrected / 2) * (score - 1) / score if score > 1 else 0
        assert mann_kendall(series) == pytest.approx(2 * stats.norm.sf(z))


def test_a_series_without_order_has_no_trend() -> None:
    assert mann_kendall(np.full(20, 3.0)) == 1
    assert mann_kendall(np.array([1.0, 3.0, 2.0, 2.0, 3.0, 1.0])) == 1


def test_the_size_of_a_trend_is_the_median_slope() -> None:
    from scipy import stats

    trend = trend_of(np.linspace(9.5, 10.5, 2000))
    assert trend is not None
    assert trend.change == pytest.approx(0.1, rel=5e-3)
    assert trend.p_value < 1e-6
    noisy = independent(np.random.default_rng(0), 2000, 0.05) * np.linspace(1, 1.1, 2000)
    found = trend_of(noisy)
    assert found is not None
    medians = [np.median(part) for part in np.array_split(noisy, 30)]
    slope = stats.theilslopes(medians).slope
    assert found.change == pytest.approx(slope * 30 / np.median(noisy))


def test_too_few_samples_have_no_trend() -> None:
    assert trend_of(np.arange(39.0)) is None
    assert trend_of(np.arange(40.0)) is not None
    assert trend_of(np.zeros(40)) is not None
    assert drifting(samples_of(np.arange(39.0))) is None


def flagged(draw: Draw, judge: Callable[[Any], str | None]) -> int:
    """How many of 100 seeded measurements the judge has something to say about."""
    drawn = (samples_of(draw(np.random.default_rng(seed))) for seed in range(100))
    return sum(judge(samples) is not None for samples in drawn)


PLAIN: dict[str, Draw] = {
    "fixed": lambda rng: np.full(1000, 5.0),
    "steady": lambda rng: independent(rng, 1000, 0.03),
    "noisy": lambda rng: independent(rng, 1000, 0.1),
    "short": lambda rng: independent(rng, 60, 0.1),
    "lognormal": lambda rng: lognormal(rng, 1000, 0.25),
    "bimodal": lambda rng: mixture(rng, 1000, ((0.8, 4.0, 0.1), (0.2, 9.0, 0.3))),
    "dependent": lambda rng: dependent(rng, 1000, 0.1, 0.5),
    "very dependent": lambda rng: dependent(rng, 1000, 0.05, 0.9),
}


@pytest.mark.parametrize("judge", [drifting, stalled])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_noise_is_not_flagged(name: str, judge: Callable[[Any], str | None]) -> None:
    assert flagged(PLAIN[name], judge) <= 5


def with_stalls(rng: np.random.Generator, variation: float) -> Series:
    latencies = independent(rng, 1000, variation)
    latencies[rng.choice(1000, 3, replace=False)] *= 4
    return latencies


@pytest.mark.parametrize("variation", [0.03, 0.1])
def test_stalls_are_flagged_and_are_no_drift(variation: float) -> None:
    assert flagged(lambda rng: with_stalls(rng, variation), stalled) >= 95
    assert flagged(lambda rng: with_stalls(rng, variation), drifting) <= 5


RISE = np.linspace(1, 1.1, 1000)
DRIFTS: dict[str, Draw] = {
    "rise": lambda rng: independent(rng, 1000, 0.05) * RISE,
    "rise in much noise": lambda rng: independent(rng, 1000, 0.1) * RISE,
    "fall": lambda rng: independent(rng, 1000, 0.05) * RISE[::-1],
    "throttled halfway": lambda rng: independent(rng, 1000, 0.05) * np.repeat([1, 1.1], 500),
    "warming up": lambda rng: (
        independent(rng, 1000, 0.03) * (1 + 0.3 * np.exp(-np.arange(1000) / 300))
    ),
    "rise of dependent samples": lambda rng: dependent(rng, 1000, 0.05, 0.5) * RISE,
    "rise with stalls": lambda rng: with_stalls(rng, 0.05) * RISE,
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_is_flagged(name: str) -> None:
    assert flagged(DRIFTS[name], drifting) >= 95


def test_the_sentences_say_how_much() -> None:
    assert drifting(samples_of(np.linspace(10.5, 9.5, 2000))) == (
        "drift: latency changed by -10.0% from begin to end; "
        "warm up for longer, and look at clocks and temperature"
    )
    assert stalled(samples_of([4.0] * 98 + [40.0, 25.0])) == (
        "stalls: 2 of 100 queries took over 8 ms, the longest 40 ms, the median 4 ms; "
        "look for other load on this machine"
    )


def test_a_certain_but_small_trend_is_not_worth_a_word() -> None:
    series = np.linspace(10, 10.19, 2000)
    trend = trend_of(series)
    assert trend is not None
    assert trend.p_value < 1e-6
    assert drifting(samples_of(series)) is None


def test_the_bound_of_a_stall_is_above_the_bulk() -> None:
    series = np.linspace(10, 20, 101)
    assert stall_bound(series) == pytest.approx(15 + 4 * 4.5)
    assert stall_bound(np.full(20, 3.0)) == 6
    assert stall_bound(np.full(19, 3.0)) is None
    assert stalled(samples_of([1.0] * 18 + [99.0])) is None

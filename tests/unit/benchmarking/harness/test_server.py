"""Queries that arrive at their own time, against queueing theory; all in virtual time."""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.benchmarking.harness.open_loop import arrivals_ns
from deploykit.benchmarking.harness.rates import RateSearch, bisect_rate, highest_rate
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.results import Samples, Switches
from deploykit.core.errors import UsageError
from tests.virtual_time import FEEDS, MS, RecordingTask, ScriptedRunner, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

SERVER = Switches(
    scenario="server",
    cuda_graph=False,
    transfers=True,
    streams=1,
    spin=False,
    warmup_s=0.0,
    duration_s=1.0,
    min_samples=1,
    seed=7,
)


def serve(
    script: Iterable[float] | Callable[[int, int], float], rate_per_s: float, switches: Switches
) -> tuple[Samples, float]:
    clock = VirtualClock()
    runner = ScriptedRunner(clock, script)
    return benchmark(
        runner, FEEDS, switches, clock=clock, task=RecordingTask(), rate_per_s=rate_per_s
    )


def latencies_ms(
    arrivals: NDArray[np.int64], services_ns: Iterable[int], workers: int
) -> list[float]:
    """First come, first served by several workers: Kiefer and Wolfowitz (1955), literally."""
    free_ns = [0] * workers
    latencies = []
    for arrival, service_ns in zip(arrivals.tolist(), services_ns, strict=False):
        end = max(arrival, heapq.heappop(free_ns)) + service_ns
        heapq.heappush(free_ns, end)
        latencies.append((end - arrival) / MS)
    return latencies


# Arrivals


def test_gaps_are_exponential_with_the_rate() -> None:
    gaps_s = np.diff(arrivals_ns(200_000, 50.0, 3), prepend=0) / 1e9
    assert gaps_s.mean() == pytest.approx(0.02, rel=0.01)
    assert gaps_s.std() == pytest.approx(0.02, rel=0.01)
    # The distribution function at three points, and no memory from one gap to the next.
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(gaps_s, share) == pytest.approx(-0.02 * np.log(1 - share), rel=0.02)
    assert abs(np.corrcoef(gaps_s[:-1], gaps_s[1:])[0, 1]) < 0.01


def test_a_seed_is_one_pattern_at_every_rate_and_length() -> None:
    slow, fast = arrivals_ns(1000, 10.0, 3), arrivals_ns(500, 40.0, 3)
    assert np.abs(slow[:500] / 4 - fast).max() <= 1
    assert (arrivals_ns(1000, 10.0, 3) == slow).all()
    assert (arrivals_ns(1000, 10.0, 4) != slow).all()


# Queueing


@pytest.mark.parametrize(("workers", "rate_per_s"), [(1, 70.0), (1, 130.0), (2, 190.0), (4, 350.0)])
def test_latencies_are_those_of_the_queue(workers: int, rate_per_s: float) -> None:
    script_ms = np.random.default_rng(11).choice([4.0, 9.5, 26.0], 2000, p=[0.3, 0.6, 0.1])
    switches = replace(SERVER, streams=workers, min_samples=2000)
    samples, duration_s = serve(script_ms.tolist(), rate_per_s, switches)
    arrivals = arrivals_ns(2000, rate_per_s, 7)
    expected = latencies_ms(arrivals, (round(ms * MS) for ms in script_ms), workers)
    assert samples.wall_ms.tolist() == expected
    assert samples.start_s.tolist() == (arrivals / 1e9).tolist()
    assert duration_s == pytest.approx(max(arrivals / 1e9 + np.array(expected) / 1e3), abs=1e-12)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waiting_times_agree_with_the_theory_of_m_d_1(load: float) -> None:
    service_ms = 10.0
    switches = replace(SERVER, min_samples=30_000)
    samples, _ = serve(repeat(service_ms), load * 100, switches)
    waits_ms = samples.wall_ms - service_ms
    assert waits_ms.min() == 0.0
    # Pollaczek and Khinchine, for a service that takes always the same time.
    expected_ms = load * service_ms / (2 * (1 - load))
    assert waits_ms.mean() == pytest.approx(expected_ms, rel=0.08)
    # Arrivals at random see the server busy for the share of time in which it is.
    assert (waits_ms > 0).mean() == pytest.approx(load, rel=0.03)


def test_a_stall_is_in_every_query_that_was_due_meanwhile() -> None:
    """No coordinated omission: nothing is left out because the model was not ready."""
    clock = VirtualClock(start_ns=0)
    stall_begin, stall_end = 1_000 * MS, 1_600 * MS

    def script(number: int, now_ns: int) -> float:
        stalled = stall_begin <= now_ns < stall_end
        return 1.0 + ((stall_end - now_ns) / MS if stalled else 0.0)

    switches = replace(SERVER, streams=2, duration_s=3.0)
    runner = ScriptedRunner(clock, script)
    samples, _ = benchmark(
        runner, FEEDS, switches, clock=clock, task=RecordingTask(), rate_per_s=200.0
    )
    assert len(samples) == 600
    # All that is due while both workers stand still; the schedule begins after a short lead.
    lead_s = runner.begun_ns[0] / 1e9 - samples.start_s[0]
    due_ms = (samples.start_s + lead_s) * 1e3
    meanwhile = (due_ms >= 1_000) & (due_ms < 1_600)
    assert 90 < meanwhile.sum() < 150
    shortest_ms = 1_600 - due_ms[meanwhile] + 1.0
    assert (samples.wall_ms[meanwhile] >= shortest_ms - 1e-6).all()
    # A harness that waits for its last answer would have seen the stall twice.
    assert (samples.wall_ms > 100).sum() > 80


def test_as_many_queries_as_the_time_or_the_minimum_asks() -> None:
    samples, duration_s = serve(repeat(1.0), 50.0, replace(SERVER, duration_s=4.0))
    assert len(samples) == 200
    assert duration_s == pytest.approx(4.0, rel=0.2)
    samples, _ = serve(repeat(1.0), 50.0, replace(SERVER, min_samples=333))
    assert len(samples) == 333


def test_the_workers_warm_up_first() -> None:
    samples, _ = serve(repeat(10.0), 50.0, replace(SERVER, streams=2, warmup_s=0.1))
    assert samples.warmup_ms.tolist() == [10.0] * 20
    assert len(samples) == 50


def test_a_seed_repeats_a_measurement() -> None:
    first, again, other = (
        serve(repeat(10.0), 80.0, replace(SERVER, seed=seed))[0] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("rate_per_s", "found"),
    [
        (None, "no rate for the server scenario"),
        (0.0, "a rate of 0 for the server scenario"),
        (-1.0, "a rate of -1 for"),
        (float("nan"), "a rate of nan for"),
        (float("inf"), "a rate of inf for"),
    ],
)
def test_a_server_without_a_rate_is_refused(rate_per_s: float | None, found: str) -> None:
    clock = VirtualClock()
    runner = ScriptedRunner(clock, [1.0])
    with pytest.raises(UsageError, match=found):
        benchmark(runner, FEEDS, SERVER, clock=clock, task=RecordingTask(), rate_per_s=rate_per_s)
    assert not runner.begun_ns


# The highest rate


def search(
    switches: Switches,
    bound_ms: float,
    percentile: float = 99.0,
    script: Iterable[float] | Callable[[int, int], float] | None = None,
) -> tuple[RateSearch, RecordingTask]:
    clock, task = VirtualClock(), RecordingTask()
    runner = ScriptedRunner(clock, repeat(10.0) if script is None else script)
    found = highest_rate(
        runner,
        FEEDS,
        switches,
        bound_ms=bound_ms,
        percentile=percentile,
        clock=clock,
        task=task,
    )
    return found, task


def percentile_ms(rate_per_s: float, workers: int, count: int, late: int) -> float:
    """The oracle's latency with exactly ``late`` above it, at a constant 10 ms of service."""
    latencies = latencies_ms(arrivals_ns(count, rate_per_s, 7), repeat(10 * MS), workers)
    return sorted(latencies)[count - late - 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_highest_rate_keeps_the_bound_and_a_little_more_does_not(workers: int) -> None:
    switches = replace(SERVER, streams=workers, min_samples=1000, duration_s=0.0, warmup_s=0.1)
    found, _ = search(switches, bound_ms=40.0)
    assert found.rate_per_s is not None
    assert percentile_ms(found.rate_per_s, workers, 1000, late=10) <= 40.0
    assert percentile_ms(found.rate_per_s * 1.021, workers, 1000, late=10) > 40.0
    assert 40 * workers < found.rate_per_s < 100 * workers
    assert found.samples is not None
    assert len(found.samples) == 1000
    assert found.samples.warmup_ms.tolist() == [10.0] * (10 * workers + (5 if workers == 1 else 0))
    assert found.duration_s == pytest.approx(1000 / found.rate_per_s, rel=0.1)


def test_every_trial_is_recorded_with_its_figures() -> None:
    found, task = search(replace(SERVER, min_samples=1000, duration_s=0.0), bound_ms=40.0)
    assert found.trials[0].rate_per_s == 50.0  # half of what a closed loop of 10 ms does
    passed = [trial for trial in found.trials if trial.passed]
    failed = [trial for trial in found.trials if not trial.passed]
    assert passed
    assert failed
    assert max(trial.rate_per_s for trial in passed) == found.rate_per_s
    for trial in passed:
        assert trial.queries == 1000
        assert trial.late <= 10
        assert trial.latency_ms == percentile_ms(trial.rate_per_s, 1, 1000, late=10)
    for trial in failed:
        assert trial.late == 11
    assert {detail for _, _, detail in task.shown} >= {"capacity", "trial 1: 50/s"}


def test_a_hopeless_trial_ends_early() -> None:
    found, _ = search(replace(SERVER, min_samples=1000, duration_s=0.0), bound_ms=100.0)
    overloaded = next(trial for trial in found.trials if trial.rate_per_s == 100.0)
    assert overloaded.queries < 500
    assert overloaded.latency_ms is None


def test_no_rate_keeps_a_bound_below_the_service_time() -> None:
    found, _ = search(replace(SERVER, min_samples=100, duration_s=0.0), bound_ms=9.0)
    assert found.rate_per_s is None
    assert found.samples is None
    assert found.duration_s is None
    assert [trial.rate_per_s for trial in found.trials] == [50.0 / 2**n for n in range(7)]
    assert [trial.queries for trial in found.trials] == [2] * 7


def test_another_percentile_allows_more_to_be_late() -> None:
    switches = replace(SERVER, min_samples=1000, duration_s=0.0)
    strict, _ = search(switches, bound_ms=40.0, percentile=99.0)
    lenient, _ = search(switches, bound_ms=40.0, percentile=90.0)
    assert strict.rate_per_s is not None
    assert lenient.rate_per_s is not None
    assert lenient.rate_per_s > strict.rate_per_s * 1.05


def test_bisection_stops_after_so_many_trials() -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return True

    assert bisect_rate(passes, 1.0, max_trials=4) == 8.0
    assert tried == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("limit", [1.7, 49.0, 50.0, 73.2, 99.99, 640.0])
def test_bisection_finds_the_border_to_its_tolerance(limit: float) -> None:
    found = bisect_rate(lambda rate: rate <= limit, 50.0)
    assert found is not None
    assert found <= limit < found * 1.02 + 1e-9


@pytest.mark.parametrize(
    ("switches", "bound_ms", "percentile", "message"),
    [
        (replace(SERVER, scenario="offline"), 10.0, 99.0, "highest rate of the offline scenario"),
        (SERVER, 0.0, 99.0, "a latency bound of 0 ms, expected more than 0"),
        (SERVER, float("nan"), 99.0, "a latency bound of nan ms"),
        (SERVER, float("inf"), 99.0, "a latency bound of inf ms"),
        (SERVER, 10.0, 100.0, "percentile 100, expected more than 0 and less than 100"),
        (SERVER, 10.0, 0.0, "percentile 0, expected"),
        (
            replace(SERVER, min_samples=99),
            10.0,
            99.0,
            "99 queries do not carry the percentile 99\nexpected min_samples of 100 or more",
        ),
        (replace(SERVER, min_samples=999), 10.0, 99.9, "expected min_samples of 1000 or more"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    switches: Switches, bound_ms: float, percentile: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search(switches, bound_ms, percentile)


@pytest.mark.parametrize(("count", "percentile"), [(100, 99.0), (1000, 99.9)])
def test_the_number_of_queries_that_is_asked_for_is_enough(count: int, percentile: float) -> None:
    switches = replace(SERVER, min_samples=count, duration_s=0.0)
    found, _ = search(switches, 100.0, percentile)
    assert found.rate_per_s is not None

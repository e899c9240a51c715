"""Single stream and offline, the warm-up and what is refused; all in virtual time."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.benchmarking.harness.closed_loop import is_stable
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.results import Samples, Switches
from deploykit.core.errors import UsageError
from tests.virtual_time import FEEDS, MS, RecordingTask, ScriptedRunner, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COLD = Switches(
    scenario="single-stream",
    cuda_graph=False,
    transfers=True,
    streams=1,
    spin=False,
    warmup_s=0.0,
    duration_s=1.0,
    min_samples=1,
    seed=0,
)
OFFLINE = replace(COLD, scenario="offline", streams=3)

# ResNet-50 by onnxruntime on one core of a shared machine, a bare loop, in ns: three runs.
RECORDED_NS = [
    *(153741189, 157847816, 162168586, 166321967),
    *(85907669, 86135541, 106033297, 76700163, 80908040, 86149932),
    *(84527835, 98855276, 149172853, 103081866, 100563677),
]


def measure(
    script: Iterable[float] | Callable[[int, int], float],
    switches: Switches = COLD,
    *,
    steps: bool = True,
) -> tuple[Samples, float]:
    clock = VirtualClock()
    runner = ScriptedRunner(clock, script, steps=steps)
    return benchmark(runner, FEEDS, switches, clock=clock, task=RecordingTask())


def bimodal(count: int) -> list[float]:
    return [float(ms) for ms in np.random.default_rng(1).choice([4.0, 31.0], count, p=[0.9, 0.1])]


def drifting(count: int) -> list[float]:
    return [5.0 + 0.125 * number for number in range(count)]


def stalling(count: int) -> list[float]:
    return [400.0 if number % 25 == 24 else 3.5 for number in range(count)]


@pytest.mark.parametrize(
    "script",
    [[7.25] * 60, bimodal(60), drifting(60), stalling(60)],
    ids=["fixed", "bimodal", "drifting", "stalls"],
)
def test_the_samples_are_the_script_in_its_order(script: list[float]) -> None:
    switches = replace(COLD, duration_s=0.0, min_samples=60)
    samples, duration_s = measure(script, switches)
    assert samples.wall_ms.tolist() == script
    assert samples.compute_ms is not None
    assert samples.compute_ms.tolist() == [ms * 0.9 for ms in script]
    assert samples.h2d_ms is not None
    assert samples.h2d_ms.tolist() == [ms * 0.05 for ms in script]
    assert samples.d2h_ms is not None
    assert samples.d2h_ms.tolist() == [ms * 0.05 for ms in script]
    assert samples.enqueue_ms is not None
    assert samples.enqueue_ms.tolist() == [0.125] * 60
    assert samples.start_s.tolist() == pytest.approx(np.cumsum([0.0, *script[:-1]]) / 1e3)
    assert duration_s == pytest.approx(sum(script) / 1e3)
    assert not samples.warmup_ms.size


def test_recorded_timings_are_replayed_to_the_nanosecond() -> None:
    script = [ns / MS for ns in RECORDED_NS]
    samples, duration_s = measure(script, replace(COLD, duration_s=0.0, min_samples=15))
    assert samples.wall_ms.tolist() == script
    assert round(duration_s * 1e9) == sum(RECORDED_NS)


def test_a_step_that_the_backend_does_not_have_is_none() -> None:
    samples, _ = measure(repeat(10.0), steps=False)
    assert samples.compute_ms is samples.h2d_ms is samples.d2h_ms is samples.enqueue_ms is None
    assert len(samples) == 100


@pytest.mark.parametrize(
    ("duration_s", "min_samples", "count"),
    [(1.0, 1, 100), (1.0, 250, 250), (0.0, 1, 1), (0.995, 100, 100), (1.001, 100, 101)],
)
def test_lasts_for_the_duration_and_for_the_number_of_queries(
    duration_s: float, min_samples: int, count: int
) -> None:
    switches = replace(COLD, duration_s=duration_s, min_samples=min_samples)
    samples, measured_s = measure(repeat(10.0), switches)
    assert len(samples) == count
    assert measured_s == pytest.approx(count * 0.01)


def test_streams_have_a_query_under_way_each() -> None:
    clock = VirtualClock()
    runner = ScriptedRunner(clock, repeat(10.0))
    samples, duration_s = benchmark(runner, FEEDS, OFFLINE, clock=clock, task=RecordingTask())
    assert runner.most_running == 3
    assert len(samples) == 300
    assert duration_s == 1.0
    assert samples.start_s[:6].tolist() == [0, 0, 0, 0.01, 0.01, 0.01]


def test_what_is_under_way_at_the_end_is_finished_and_counted() -> None:
    # Stream A: 0-400, 400-800, 800-1200. B: 0-700, 700-1400 (is the first to see 1 s gone by).
    script = iter([400.0, 700.0, 400.0, 700.0, 400.0])
    samples, duration_s = measure(script, replace(OFFLINE, streams=2, duration_s=1.0))
    assert samples.wall_ms.tolist() == [400.0, 700.0, 400.0, 700.0, 400.0]
    assert samples.start_s.tolist() == [0.0, 0.0, 0.4, 0.7, 0.8]
    assert duration_s == 1.4


def test_one_offline_stream_is_a_single_stream() -> None:
    one, one_s = measure(bimodal(1000), replace(OFFLINE, streams=1))
    single, single_s = measure(bimodal(1000))
    assert one == single
    assert one_s == single_s


def test_virtual_threads_are_deterministic() -> None:
    script = np.random.default_rng(5).lognormal(2.0, 0.3, 5000).tolist()
    first, second = (measure(script, replace(OFFLINE, warmup_s=0.2)) for _ in range(2))
    assert first == second


# Warm-up


def test_the_warm_up_lasts_until_the_medians_agree_and_is_kept_apart() -> None:
    # A window is 20 ms or more and at least 5 queries: 5 x 10, 5 x 8, 5 x 6, then 5 x 5 and so on.
    # At 100 ms the medians are 10 and 8; the last three agree after the third window of 5.
    falling = chain([10.0] * 5, [8.0] * 5, [6.0] * 5, repeat(5.0))
    switches = replace(COLD, warmup_s=0.1, duration_s=0.5)
    samples, _ = measure(falling, switches)
    assert samples.warmup_ms.tolist() == [10.0] * 5 + [8.0] * 5 + [6.0] * 5 + [5.0] * 15
    assert samples.wall_ms.tolist() == [5.0] * 100
    assert samples.start_s[0] == 0.0
    assert is_stable(samples.warmup_ms, switches)


def test_medians_within_five_percent_agree() -> None:
    switches = replace(COLD, warmup_s=0.1)
    agreeing = [10.0] * 5 + [10.5] * 5 + [10.25] * 5
    assert is_stable(agreeing, switches)
    assert not is_stable(agreeing[:-1], switches)
    assert not is_stable([10.0] * 5 + [10.51] * 5 + [10.25] * 5, switches)


def test_one_slow_query_in_a_window_does_not_count() -> None:
    script = [10.0, 10.0, 900.0, 10.0, 10.0] * 3
    assert is_stable(script, replace(COLD, warmup_s=0.1))


def test_a_steady_model_warms_up_for_the_time_asked() -> None:
    samples, _ = measure(repeat(1.0), replace(COLD, warmup_s=0.1))
    assert samples.warmup_ms.tolist() == [1.0] * 100


def test_a_model_that_never_settles_is_measured_after_ten_times_the_time() -> None:
    switches = replace(COLD, warmup_s=0.1)
    script = (10.0 * 1.02**number for number in range(10_000))
    samples, _ = measure(script, switches)
    warm_s = samples.warmup_ms / 1e3
    assert warm_s.sum() >= 1.0 > warm_s[:-1].sum()
    assert not is_stable(samples.warmup_ms, switches)


def test_a_preset_of_trtexec_warms_up_for_the_time_alone() -> None:
    switches = replace(COLD, warmup_s=0.2, preset="trtexec10")
    script = (10.0 * 1.1**number for number in range(100))
    samples, _ = measure(script, switches)
    assert samples.warmup_ms.sum() >= 200.0 > samples.warmup_ms[:-1].sum()


def test_all_streams_warm_up() -> None:
    clock = VirtualClock()
    runner = ScriptedRunner(clock, repeat(10.0))
    switches = replace(OFFLINE, warmup_s=0.1)
    samples, _ = benchmark(runner, FEEDS, switches, clock=clock, task=RecordingTask())
    assert runner.begun_ns[:3] == [runner.begun_ns[0]] * 3
    assert samples.warmup_ms.tolist() == [10.0] * 30
    assert is_stable(samples.warmup_ms, switches)


def test_the_slow_first_query_of_a_stream_is_in_the_warm_up() -> None:
    slow_first = chain([300.0] * 3, repeat(10.0))
    samples, _ = measure(slow_first, replace(OFFLINE, warmup_s=0.1))
    assert samples.warmup_ms.max() == 300.0
    assert np.median(samples.warmup_ms) == 10.0
    assert set(samples.wall_ms) == {10.0}


# What is shown, and what is refused


@pytest.mark.parametrize("switches", [COLD, OFFLINE], ids=["one", "three"])
def test_the_display_goes_up_to_its_end_and_is_left_alone_between(switches: Switches) -> None:
    clock, task = VirtualClock(), RecordingTask()
    runner = ScriptedRunner(clock, repeat(2.0))
    benchmark(runner, FEEDS, replace(switches, warmup_s=1.0), clock=clock, task=task)
    warm = [done for done, _, detail in task.shown if detail == "warm-up"]
    measured = [done for done, _, detail in task.shown if detail == "measure"]
    assert len(warm) + len(measured) == len(task.shown)
    for shown in (warm, measured):
        assert shown == sorted(shown)
        assert shown[-1] == 1.0
        # Four times a second, for a second; the queries that end with the last one are the end too.
        assert 4 <= len(shown) <= 8
    assert {total for _, total, _ in task.shown} == {1.0}


def test_several_single_streams_are_refused() -> None:
    with pytest.raises(UsageError, match="2 streams in the single-stream scenario, which has one"):
        measure([1.0], replace(COLD, streams=2))


@pytest.mark.parametrize("switches", [COLD, OFFLINE], ids=["single-stream", "offline"])
def test_a_rate_without_a_server_is_refused(switches: Switches) -> None:
    clock = VirtualClock()
    runner = ScriptedRunner(clock, [1.0])
    with pytest.raises(UsageError, match=rf"a rate of 50 .* {switches.scenario} scenario"):
        benchmark(runner, FEEDS, switches, clock=clock, task=RecordingTask(), rate_per_s=50.0)
    assert not runner.begun_ns

"""Threads that fail or are interrupted, in real time; nothing here says how long anything takes."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.harness.rates import highest_rate
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.harness.system import SystemClock
from deploykit.benchmarking.results import Switches
from deploykit.core.errors import DeviceError
from deploykit.core.specs import StepTimes
from tests.virtual_time import FEEDS, MS, RecordingTask, ScriptedRunner, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from deploykit.core.specs import Array

SWITCHES = Switches(
    scenario="offline",
    cuda_graph=False,
    transfers=True,
    streams=3,
    spin=False,
    warmup_s=0.0,
    duration_s=60.0,
    min_samples=1,
    seed=0,
)
RATES = {"single-stream": None, "offline": None, "server": 1000.0}
STREAMS = {"single-stream": 1, "offline": 3, "server": 3}


class CallingRunner(ScriptedRunner):
    """Sleeps a moment of real time, then calls something with the number of the query."""

    def __init__(self, call: Callable[[int], None]) -> None:
        super().__init__(VirtualClock(), [])
        self._call = call
        self._count_lock = threading.Lock()
        self.calls = 0

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        with self._count_lock:
            self.calls += 1
            number = self.calls
        time.sleep(0.0005)
        self._call(number)
        return {}, StepTimes(0.5)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def fail_at_the_twentieth(number: int) -> None:
    if number >= 20:
        raise DeviceError(f"query {number}: the GPU is gone")


def measure(runner: ScriptedRunner, scenario: str) -> None:
    switches = replace(SWITCHES, scenario=scenario, streams=STREAMS[scenario])
    benchmark(
        runner,
        FEEDS,
        switches,
        clock=SystemClock(),
        task=RecordingTask(),
        rate_per_s=RATES[scenario],
    )


@pytest.mark.parametrize("scenario", RATES)
def test_an_error_of_the_runner_ends_all_threads_and_is_raised_once(scenario: str) -> None:
    runner = CallingRunner(fail_at_the_twentieth)
    with pytest.raises(DeviceError, match=r"query \d+: the GPU is gone") as caught:
        measure(runner, scenario)
    assert 20 <= runner.calls <= 22  # the others may have been under way, and fail too
    assert caught.value.__context__ is None


def test_an_error_in_the_warm_up_is_raised_too() -> None:
    runner = CallingRunner(fail_at_the_twentieth)
    with pytest.raises(DeviceError, match="the GPU is gone"):
        benchmark(
            runner,
            FEEDS,
            replace(SWITCHES, warmup_s=3600.0),
            clock=SystemClock(),
            task=RecordingTask(),
        )


def test_an_error_in_a_trial_ends_the_search() -> None:
    runner = CallingRunner(fail_at_the_twentieth)
    switches = replace(SWITCHES, scenario="server", duration_s=0.0, min_samples=1000, streams=1)
    with pytest.raises(DeviceError, match="the GPU is gone"):
        highest_rate(
            runner, FEEDS, switches, bound_ms=1e6, clock=SystemClock(), task=RecordingTask()
        )


def interrupt_at_the_twentieth(number: int) -> None:
    if number == 20:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="Python delivers interrupts to the main thread, and the tests run in another",
)
@pytest.mark.parametrize("scenario", RATES)
def test_an_interrupt_leaves_no_thread(scenario: str) -> None:
    runner = CallingRunner(interrupt_at_the_twentieth)
    with pytest.raises(KeyboardInterrupt):
        measure(runner, scenario)
    assert runner.calls >= 20


def test_a_worker_that_waits_for_a_far_query_stops_with_the_others() -> None:
    """At one query in ten minutes nobody has time to wait for the schedule."""
    interrupted = Event()

    class ImpatientClock(SystemClock):
        def sleep_ns(self, duration_ns: int) -> None:
            super().sleep_ns(duration_ns)
            if not interrupted.is_set():
                interrupted.set()
                raise DeviceError("no patience")

    with pytest.raises(DeviceError, match="no patience"):
        benchmark(
            CallingRunner(lambda number: None),
            FEEDS,
            replace(SWITCHES, scenario="server"),
            clock=ImpatientClock(),
            task=RecordingTask(),
            rate_per_s=1 / 600,
        )


def test_the_machines_own_clock_goes_forward_and_waits() -> None:
    clock = SystemClock()
    before = clock.now_ns()
    clock.sleep_ns(1 * MS)
    assert clock.now_ns() - before >= 1 * MS


@pytest.mark.parametrize("scenario", RATES)
def test_measures_in_real_time(scenario: str) -> None:
    switches = replace(
        SWITCHES,
        scenario=scenario,
        streams=STREAMS[scenario],
        warmup_s=0.005,
        duration_s=0.03,
        min_samples=30,
    )
    samples, duration_s = benchmark(
        CallingRunner(lambda number: None),
        FEEDS,
        switches,
        clock=SystemClock(),
        task=RecordingTask(),
        rate_per_s=RATES[scenario],
    )
    assert len(samples) >= 30
    assert len(samples.warmup_ms) > 0
    assert (samples.wall_ms >= 0.5).all()  # the runner sleeps for as long
    ends_s = samples.start_s + samples.wall_ms / 1e3
    assert duration_s == pytest.approx(ends_s.max())
    assert (samples.start_s[1:] >= samples.start_s[:-1]).all()

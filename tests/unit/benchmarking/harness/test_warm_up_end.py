"""Who watches the machine is told when the warm-up has ended, in every kind of measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.harness.interleaved import interleave
from deploykit.benchmarking.harness.rates import highest_rate
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.harness.system import SystemUnderTest
from tests.unit.benchmarking.harness.test_scenarios import COLD
from tests.virtual_time import FEEDS, RecordingTask, ScriptedRunner, VirtualClock

if TYPE_CHECKING:
    from deploykit.benchmarking.results import Switches

WARM = replace(COLD, warmup_s=0.5)
SERVER = replace(WARM, scenario="server", streams=2, min_samples=100)


class Told:
    """How many queries had been asked at each call, of all that a runner was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.at: list[int] = []
        self.clock = VirtualClock()
        self.runner = ScriptedRunner(self.clock, self._latency_ms)

    def _latency_ms(self, number: int, now_ns: int) -> float:
        self.asked += 1
        return 10.0

    def __call__(self) -> None:
        self.at.append(self.asked)


@pytest.mark.parametrize(
    ("switches", "rate_per_s"),
    [
        (COLD, None),
        (WARM, None),
        (replace(WARM, scenario="offline", streams=3), None),
        (SERVER, 20.0),
    ],
    ids=["none", "single-stream", "offline", "server"],
)
def test_once_between_warm_up_and_measurement(switches: Switches, rate_per_s: float | None) -> None:
    told = Told()
    samples, _ = benchmark(
        told.runner,
        FEEDS,
        switches,
        clock=told.clock,
        task=RecordingTask(),
        rate_per_s=rate_per_s,
        on_warm=told,
    )
    assert told.at == [len(samples.warmup_ms)]
    assert told.asked == len(samples.warmup_ms) + len(samples)


def test_before_the_first_trial_of_a_rate() -> None:
    told = Told()
    found = highest_rate(
        told.runner,
        FEEDS,
        SERVER,
        bound_ms=100.0,
        clock=told.clock,
        task=RecordingTask(),
        on_warm=told,
    )
    assert found.samples is not None
    assert told.at == [len(found.samples.warmup_ms)]


def test_after_the_warm_up_of_each_of_two() -> None:
    told = Told()
    side = SystemUnderTest(told.runner, FEEDS, told.clock, told)
    rounds = interleave(side, side, WARM, rounds=20, task=RecordingTask())
    first = len(rounds.warmup_a_ms)
    assert told.at == [first, first + len(rounds.warmup_b_ms)]

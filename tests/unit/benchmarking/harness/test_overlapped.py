"""A queue of queries in computed time: full while it is measured, empty at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.benchmarking.harness.interleaved import interleave
from deploykit.benchmarking.harness.scenarios import benchmark, check_switches
from deploykit.benchmarking.harness.system import SystemUnderTest
from deploykit.core.errors import UsageError
from deploykit.core.specs import StepTimes
from tests.unit.benchmarking.harness.test_scenarios import COLD
from tests.virtual_time import FEEDS, MS, RecordingTask, ScriptedRunner, VirtualClock


class Device:
    """A queue whose device takes ``compute_ms`` for each query, one after the other."""

    def __init__(self, clock: VirtualClock, compute_ms: float, depth: int = 2) -> None:
        self.depth = depth
        self.most = self.submitted = 0
        self._clock = clock
        self._compute_ns = round(compute_ms * MS)
        self._ends_ns: list[int] = []
        self._free_ns = 0

    def submit(self) -> None:
        self._free_ns = max(self._free_ns, self._clock.now_ns()) + self._compute_ns
        self._ends_ns.append(self._free_ns)
        self.submitted += 1
        self.most = max(self.most, len(self._ends_ns))

    def finish(self) -> StepTimes:
        self._clock.sleep_ns(max(0, self._ends_ns.pop(0) - self._clock.now_ns()))
        return StepTimes(1.0, self._compute_ns / MS, 0.5, 0.25, 0.125)

    @property
    def is_empty(self) -> bool:
        return not self._ends_ns

    def close(self) -> None: ...


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_as_many_are_under_way_as_the_queue_is_deep(depth: int) -> None:
    clock = VirtualClock()
    device = Device(clock, 4.0, depth)
    runner = ScriptedRunner(clock, [])
    switches = replace(COLD, queue=depth, min_samples=50, duration_s=0.0, warmup_s=0.04)
    samples, duration_s = benchmark(
        runner, FEEDS, switches, clock=clock, task=RecordingTask(), queue=device
    )
    assert not runner.begun_ns  # the queue was asked in its place
    assert device.most == depth
    assert device.is_empty
    assert device.submitted == len(samples) + len(samples.warmup_ms)
    assert len(samples) == 50 + depth - 1  # what was under way at the goal is finished and counted
    assert duration_s == pytest.approx(len(samples) * 4.0 / 1e3)
    # The first finds the device free, the others wait for those before them.
    assert samples.wall_ms.tolist()[:3] == [4.0, *(4.0 * min(n, depth) for n in (2, 3))]
    assert samples.wall_ms[10] == 4.0 * depth
    assert samples.latency_ms.tolist() == [4.75] * len(samples)


def test_two_models_are_compared_in_their_queues() -> None:
    clock = VirtualClock()
    queues = Device(clock, 2.0), Device(clock, 3.0)
    runner = ScriptedRunner(clock, [])
    a, b = (SystemUnderTest(runner, FEEDS, clock, queue=queue) for queue in queues)
    rounds = interleave(a, b, replace(COLD, queue=2), rounds=20, task=RecordingTask())
    assert len(rounds.ab) == 20
    assert all(queue.is_empty for queue in queues)
    assert not runner.begun_ns


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_a_queue_is_of_the_single_stream(scenario: str) -> None:
    switches = replace(COLD, scenario=scenario, queue=2)
    with pytest.raises(
        UsageError, match=f"overlapped queries in the {scenario} scenario\nonly single-stream has"
    ):
        check_switches(switches)

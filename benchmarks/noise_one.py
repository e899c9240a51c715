"""One process of `noise.py`: a network on one thread, as it is or slowed down, measured.

``python -m benchmarks.noise --one OUT.json --model FILE --slower 0.1`` ends here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from benchmarks.harness_check import THREADS, bare_loop, feeds_of
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.benchmarking.harness.interleaved import interleave
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.harness.system import SystemClock, SystemUnderTest
from deploykit.benchmarking.machine.conditions import watch
from deploykit.benchmarking.results import BenchmarkResult, Subject
from deploykit.core.environment import describe
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from deploykit.benchmarking.results import Switches
    from deploykit.benchmarking.statistics.ab import Rounds
    from deploykit.core.specs import Array, Runner, StepTimes, TensorSpec

MODEL: Final = "resnet20"
CALIBRATION_S: Final = 0.05


class Slowed(Closing):
    """A runner that keeps the processor busy for a while after each of its queries."""

    def __init__(self, runner: Runner, extra_ns: int) -> None:
        self._runner = runner
        self.extra_ns = extra_ns

    @classmethod
    def by_share(cls, runner: Runner, share: float) -> Self:
        """Slower by a share of the median that the open runner has now."""
        feeds = feeds_of(runner)
        bare_loop(lambda: runner.run(feeds), CALIBRATION_S)
        median_ms, _ = bare_loop(lambda: runner.run(feeds), CALIBRATION_S)
        return cls(runner, round(median_ms * share * 1e6))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Those of the runner."""
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the runner."""
        return self._runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As the runner, later."""
        return self.run_timed(feeds)[0]

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As the runner, later, as if the computing had taken longer."""
        outputs, steps = self._runner.run_timed(feeds)
        begin_ns = time.perf_counter_ns()
        while (waited_ns := time.perf_counter_ns() - begin_ns) < self.extra_ns:
            pass
        waited_ms = waited_ns / 1e6
        computed_ms = None if steps.compute_ms is None else steps.compute_ms + waited_ms
        return outputs, replace(steps, wall_ms=steps.wall_ms + waited_ms, compute_ms=computed_ms)

    def close(self) -> None:
        """Close the runner."""
        self._runner.close()


def opened(stack: ExitStack, model: Path, slower: float = 0.0) -> SystemUnderTest:
    """A side with a session of its own, which ends with the stack."""
    runner: Runner = stack.enter_context(OrtRunner(model, GraphOptions(threads=THREADS)))
    feeds = feeds_of(runner)
    slowed = Slowed.by_share(runner, slower) if slower else runner
    return SystemUnderTest(slowed, feeds, SystemClock())


def rounds_of(
    a: SystemUnderTest, b: SystemUnderTest, switches: Switches
) -> tuple[Rounds, tuple[str, ...]]:
    """The rounds, and whether the machine was busy meanwhile."""
    with SilentProgress().step("measure") as task:
        rounds, conditions = watch(
            lambda _warm: interleave(a, b, switches, task=task), on_gpu=False
        )
    return rounds, conditions.sentences()


def result_of(side: SystemUnderTest, switches: Switches) -> BenchmarkResult:
    with SilentProgress().step("measure") as task:
        (samples, duration_s), conditions = watch(
            lambda warm: benchmark(
                side.runner, side.feeds, switches, clock=side.clock, task=task, on_warm=warm
            ),
            on_gpu=False,
        )
    return BenchmarkResult(
        subject=Subject(MODEL, Precision.FP32, None, "ort", batch=1),
        switches=switches,
        samples=samples,
        duration_s=duration_s,
        environment=to_plain(describe()),
        condition=conditions.sentences(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )

"""Time that is computed instead of waited for, with threads in it, and a runner that takes it.

Real threads, but only one of them runs at any moment: each sleeper waits for its turn, and when
the running one sleeps or ends, time jumps to the next sleeper's moment. So the harness runs its own
code, in no time, and two runs give the same nanoseconds.
"""

from __future__ import annotations

from heapq import heappop, heappush
from threading import Lock, Thread, local
from typing import TYPE_CHECKING, Self

import numpy as np

from deploykit.core.specs import StepTimes, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from deploykit.core.specs import Array

MS = 1_000_000
FEEDS: Mapping[str, Array] = {"input": np.zeros((1, 3, 2, 2), np.float32)}


class VirtualClock:
    """Starts at a moment that is not zero, so that nobody relies on it."""

    def __init__(self, start_ns: int = 5_000 * MS) -> None:
        self._now_ns = start_ns
        self._sleepers: list[tuple[int, int, Lock]] = []
        self._number = 0
        self._somebody_runs = False
        self._guard = Lock()
        self._mine = local()
        self.threads: list[Thread] = []

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_ns(self, duration_ns: int) -> None:
        assert duration_ns >= 0
        if not getattr(self._mine, "is_participant", False):
            self._now_ns += duration_ns
            return
        turn = self._line_up(self._now_ns + duration_ns)
        self._let_next_run()
        turn.acquire()

    def thread(self, work: Callable[[], None]) -> Thread:
        turn = self._line_up(self._now_ns)

        def live() -> None:
            self._mine.is_participant = True
            with self._guard:
                first, self._somebody_runs = not self._somebody_runs, True
            if first:
                self._let_next_run()
            turn.acquire()
            try:
                work()
            finally:
                self._let_next_run()

        self.threads.append(Thread(target=live, daemon=True))
        return self.threads[-1]

    def _line_up(self, wake_ns: int) -> Lock:
        turn = Lock()
        turn.acquire()
        self._number += 1
        heappush(self._sleepers, (wake_ns, self._number, turn))
        return turn

    def _let_next_run(self) -> None:
        if not self._sleepers:
            self._somebody_runs = False
            return
        wake_ns, _, turn = heappop(self._sleepers)
        self._now_ns = max(self._now_ns, wake_ns)
        turn.release()


class ScriptedRunner:
    """Takes the times of a script, one query after the other, in the order of their begin.

    The script is a series of latencies in ms, or a function that gives the latency in ms of a
    query by its number and the moment of its begin in ns. Compute is nine tenths of it, the copies
    a twentieth each; ``steps`` off: only the wall time, as of a backend without events.
    """

    inputs = (TensorSpec("input", "float32", ("batch", 3, 2, 2)),)
    outputs = (TensorSpec("logits", "float32", ("batch", 10)),)

    def __init__(
        self,
        clock: VirtualClock,
        script: Iterable[float] | Callable[[int, int], float],
        *,
        steps: bool = True,
    ) -> None:
        self._clock = clock
        self._next: Callable[[int, int], float]
        if callable(script):
            self._next = script
        else:
            rest: Iterator[float] = iter(script)
            self._next = lambda number, now_ns: next(rest)
        self._steps = steps
        self.begun_ns: list[int] = []
        self.running = self.most_running = 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self.run_timed(feeds)[0]

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        assert feeds is FEEDS
        begin_ns = self._clock.now_ns()
        self.begun_ns.append(begin_ns)
        latency_ms = self._next(len(self.begun_ns) - 1, begin_ns)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._clock.sleep_ns(round(latency_ms * MS))
        self.running -= 1
        steps = (latency_ms * 0.9, latency_ms * 0.05, latency_ms * 0.05, 0.125)
        return {}, StepTimes(latency_ms, *steps) if self._steps else StepTimes(latency_ms)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class RecordingTask:
    """Keeps what a progress display would show."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, float | None, str]] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.shown.append((done, total, detail))

"""One query after the other, in one stream or in several at the same time."""

from __future__ import annotations

from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, Final, Protocol

from deploykit.stages.benchmark.crew import run_together
from deploykit.stages.benchmark.recording import Recorder, Recording

if TYPE_CHECKING:
    from deploykit.specs import ProgressTask
    from deploykit.stages.benchmark.sut import SystemUnderTest

_SHOW_EVERY_NS: Final = 250_000_000


class Goal(Protocol):
    """Decides when a loop has enough; one thread at a time asks."""

    def reached(self, begin_ns: int, end_ns: int) -> bool:
        """Take note of one more query, and say whether it is the last that is needed."""


class Display:
    """Tells a progress task, four times a second at most: telling takes time from the model."""

    def __init__(self, task: ProgressTask, detail: str) -> None:
        self._task = task
        self._detail = detail
        self._shown_ns: int | None = None

    def show(self, now_ns: int, done: float, total: float) -> None:
        """``done`` of ``total``; shown when it is the end, or has not been for a while."""
        due = self._shown_ns is None or now_ns - self._shown_ns >= _SHOW_EVERY_NS
        if due or done >= total:
            self._shown_ns = now_ns
            self._task.update(min(done, total), total, self._detail)


class Enough:
    """A minimum duration and a minimum number of queries, both."""

    def __init__(self, duration_s: float, min_samples: int, display: Display) -> None:
        self._duration_s = duration_s
        self._min_samples = min_samples
        self._display = display
        self._start_ns: int | None = None
        self._count = 0

    def reached(self, begin_ns: int, end_ns: int) -> bool:
        """Whether both are fulfilled."""
        if self._start_ns is None:
            self._start_ns = begin_ns
        self._count += 1
        elapsed_s = (end_ns - self._start_ns) / 1e9
        time_share = elapsed_s / self._duration_s if self._duration_s else 1.0
        share = min(time_share, self._count / self._min_samples)
        self._display.show(end_ns, share, 1.0)
        return share >= 1.0


def closed_loop(sut: SystemUnderTest, streams: int, goal: Goal) -> Recording:
    """Query the runner from ``streams`` threads, each its own, until the goal is reached.

    The queries that are under way at that moment are finished and counted. With one stream there
    is no thread but the caller's.

    Raises:
        BaseException: the first error of the runner; all threads have ended.
    """
    loop = _Loop(sut, goal)
    recorders = [Recorder() for _ in range(streams)]
    if streams == 1:
        loop.stream(recorders[0])
    else:
        run_together([partial(loop.stream, one) for one in recorders], sut.clock, loop.stop)
    return Recording(recorders)


class _Loop:
    """What the streams of one measurement share."""

    def __init__(self, sut: SystemUnderTest, goal: Goal) -> None:
        self.stop = Event()
        self._sut = sut
        self._goal = goal
        self._asking = Lock()

    def stream(self, recorder: Recorder) -> None:
        """Query until somebody says that it is enough."""
        clock, run_timed, feeds = self._sut.clock, self._sut.runner.run_timed, self._sut.feeds
        while not self.stop.is_set():
            begin_ns = clock.now_ns()
            _, steps = run_timed(feeds)
            end_ns = clock.now_ns()
            recorder.add(begin_ns, end_ns, steps)
            with self._asking:
                if self._goal.reached(begin_ns, end_ns):
                    self.stop.set()

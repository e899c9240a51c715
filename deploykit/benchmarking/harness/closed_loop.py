"""Closed loop: one query after the other, in one stream or several; and the warm-up before it."""

from __future__ import annotations

from collections import deque
from functools import partial
from statistics import median
from threading import Event, Lock
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from deploykit.benchmarking.harness.recording import Recorder, Recording, run_threads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from deploykit.benchmarking.harness.system import SystemUnderTest
    from deploykit.benchmarking.results import Switches
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import QueryQueue, StepTimes


_SHOW_EVERY_NS: Final = 250_000_000


class Goal(Protocol):
    """A condition that ends a loop; called by one thread at a time."""

    def reached(self, wall_ns: int, elapsed_ns: int) -> bool:
        """Count one more query; return True if it is the last that is needed.

        ``wall_ns`` is what the query took, ``elapsed_ns`` the time since the loop began.
        """


class Display:
    """Updates a progress task four times a second at most, as updates take time from the model."""

    def __init__(self, task: ProgressTask, detail: str) -> None:
        self._task = task
        self._detail = detail
        self._shown_ns: int | None = None

    def show(self, now_ns: int, done: float, total: float) -> None:
        """Show ``done`` of ``total``, if it is the end or the last update is a while ago."""
        due = self._shown_ns is None or now_ns - self._shown_ns >= _SHOW_EVERY_NS
        if due or done >= total:
            self._shown_ns = now_ns
            self._task.update(min(done, total), total, self._detail)


class Enough:
    """A goal of a minimum duration and a minimum number of queries, both."""

    def __init__(self, duration_s: float, min_samples: int, display: Display) -> None:
        self._duration_s = duration_s
        self._min_samples = min_samples
        self._display = display
        self._count = 0

    def reached(self, wall_ns: int, elapsed_ns: int) -> bool:  # noqa: ARG002
        """True if both are reached."""
        self._count += 1
        elapsed_s = elapsed_ns / 1e9
        time_share = elapsed_s / self._duration_s if self._duration_s else 1.0
        share = min(time_share, self._count / self._min_samples)
        self._display.show(elapsed_ns, share, 1.0)
        return share >= 1.0


def closed_loop(
    system: SystemUnderTest, streams: int, goal: Goal, *, origin_ns: int | None = None
) -> Recording:
    """Query the runner from ``streams`` threads, each its own, until the goal is reached.

    The queries that are under way at that moment are finished and counted. With one stream there
    is no thread but the caller's, and where the system has a queue its queries overlap.
    ``origin_ns`` is that of `Recording`.

    Raises:
        BaseException: the first error of the runner; all threads have ended.
    """
    loop = _Loop(system, goal)
    recorders = [Recorder() for _ in range(streams)]
    if system.queue is not None:
        loop.overlapped(recorders[0], system.queue)
    elif streams == 1:
        loop.stream(recorders[0])
    else:
        run_threads([partial(loop.stream, one) for one in recorders], system.clock, loop.stop)
    return Recording(recorders, origin_ns)


class _Loop:
    """State that the streams of one measurement share."""

    def __init__(self, system: SystemUnderTest, goal: Goal) -> None:
        self.stop = Event()
        self._system = system
        self._goal = goal
        self._start_ns: int | None = None
        self._asking = Lock()

    def stream(self, recorder: Recorder) -> None:
        """Query until the goal is reached or another stream stops."""
        # Local names: attributes looked up in the loop would take time between two queries.
        system = self._system
        clock, run_timed, feeds = system.clock, system.runner.run_timed, system.feeds
        while not self.stop.is_set():
            begin_ns = clock.now_ns()
            _, steps = run_timed(feeds)
            end_ns = clock.now_ns()
            self._note(recorder, begin_ns, end_ns, steps)

    def overlapped(self, recorder: Recorder, queue: QueryQueue) -> None:
        """Keep the queue full until the goal is reached, then finish what is under way."""
        now_ns = self._system.clock.now_ns
        begun_ns: deque[int] = deque()
        while begun_ns or not self.stop.is_set():
            if not self.stop.is_set():
                begun_ns.append(now_ns())
                queue.submit()
                if len(begun_ns) < queue.depth:
                    continue
            steps = queue.finish()
            self._note(recorder, begun_ns.popleft(), now_ns(), steps)

    def _note(self, recorder: Recorder, begin_ns: int, end_ns: int, steps: StepTimes) -> None:
        # Behind the end of the query, so that recording it is in no latency.
        recorder.add(begin_ns, end_ns, steps)
        # A goal counts, which is not thread safe.
        with self._asking:
            if self._start_ns is None:
                self._start_ns = begin_ns
            if self._goal.reached(end_ns - begin_ns, end_ns - self._start_ns):
                self.stop.set()


# The warm-up ends when the medians of the last WINDOWS windows agree within SPREAD, at the latest
# after PATIENCE times its own length.
WINDOWS: Final = 3
WINDOW_QUERIES: Final = 5
WINDOWS_PER_WARM_UP: Final = 5
SPREAD: Final = 0.05
PATIENCE: Final = 10


class Windows:
    """Medians of successive windows of queries, each of ``window_ms`` or longer."""

    def __init__(self, window_ms: float) -> None:
        self._window_ms = window_ms
        self._open: list[float] = []
        self._open_ms = 0.0
        self._medians: list[float] = []

    def add(self, wall_ms: float) -> None:
        """Add the time of one query."""
        self._open.append(wall_ms)
        self._open_ms += wall_ms
        if len(self._open) >= WINDOW_QUERIES and self._open_ms >= self._window_ms:
            self._medians = [*self._medians, median(self._open)][-WINDOWS:]
            self._open, self._open_ms = [], 0.0

    @property
    def stable(self) -> bool:
        """True if the last three medians are within 5 % of one another."""
        if len(self._medians) < WINDOWS:
            return False
        return max(self._medians) <= min(self._medians) * (1 + SPREAD)


def windows_of(switches: Switches) -> Windows:
    """Empty windows of the length that follows from the switches.

    Queries of several streams, or of a queue, overlap, so that their durations add up faster than
    the clock runs.
    """
    together = switches.streams * switches.queue
    return Windows(switches.warmup_s * 1e3 / WINDOWS_PER_WARM_UP * together)


def is_stable(warmup_ms: Iterable[float], switches: Switches) -> bool:
    """True if the warm-up of a result ended with stable times, not at its time limit."""
    windows = windows_of(switches)
    for wall_ms in warmup_ms:
        windows.add(wall_ms)
    return windows.stable


def warm_up(system: SystemUnderTest, switches: Switches, task: ProgressTask) -> NDArray[np.float64]:
    """Warm up in as many streams as are measured; return the duration of each query in ms."""
    if not switches.warmup_s:
        system.on_warm()
        return np.empty(0, np.float64)
    goal = _Warm(switches, Display(task, "warm-up"))
    recording = closed_loop(system, switches.streams, goal)
    system.on_warm()
    # In the order of their ends, in which the rule saw them.
    return recording.wall_ms[np.argsort(recording.end_ns, kind="stable")]


class _Warm:
    def __init__(self, switches: Switches, display: Display) -> None:
        self._windows = windows_of(switches)
        self._wanted_s = switches.warmup_s
        # A preset has a warm-up of fixed length, as trtexec has.
        self._patience_s = switches.warmup_s * (PATIENCE if switches.preset is None else 1)
        self._display = display

    def reached(self, wall_ns: int, elapsed_ns: int) -> bool:
        self._windows.add(wall_ns / 1e6)
        elapsed_s = elapsed_ns / 1e9
        self._display.show(elapsed_ns, min(elapsed_s / self._wanted_s, 1.0), 1.0)
        if elapsed_s < self._wanted_s:
            return False
        return self._windows.stable or elapsed_s >= self._patience_s

"""Queries that come at their own time, whether or not the model is ready for them.

Each is timed from the moment for which it was scheduled. A harness that sends the next query when
the last one has come back slows down with the model it measures, and leaves out the very queries
that would have waited ("coordinated omission").
"""

from __future__ import annotations

from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.benchmarking.harness.recording import Recorder, Recording, run_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.benchmarking.harness.closed_loop import Display
    from deploykit.benchmarking.harness.system import SystemUnderTest

_LEAD_NS: Final = 20_000_000
"""Delay of the schedule, until all threads run."""

_NAP_NS: Final = 50_000_000
"""Longest sleep of a thread before it checks for the end."""


def arrivals_ns(count: int, rate_per_s: float, seed: int) -> NDArray[np.int64]:
    """Moments (count,) of a Poisson process, in ns since its start.

    The gaps are one seeded series of exponential numbers divided by the rate: another rate
    stretches the same pattern, so that rates are compared on the same luck, and a longer
    measurement begins as a shorter one does.

    >>> arrivals_ns(3, 100.0, 0).tolist() == (arrivals_ns(5, 50.0, 0)[:3] // 2).tolist()
    True
    """
    gaps = np.random.default_rng(seed).exponential(size=count)
    return np.asarray(np.cumsum(gaps) * (1e9 / rate_per_s), np.int64)


def open_loop(
    system: SystemUnderTest,
    workers: int,
    schedule_ns: NDArray[np.int64],
    display: Display,
    is_hopeless: Callable[[float], bool],
) -> Recording:
    """Serve a schedule of queries with ``workers`` threads, in the order of the schedule.

    A worker that is free takes the next query and waits for its moment; a query whose moment has
    passed starts at once, and its latency holds the time that it waited. Ends early when
    ``is_hopeless`` is true of the latency of a query, in ms; it is called by one thread at a time.

    Raises:
        BaseException: the first error of the runner; all threads have ended.
    """
    service = _Service(system, schedule_ns, display, is_hopeless)
    recorders = [Recorder() for _ in range(workers)]
    run_threads([partial(service.work, one) for one in recorders], system.clock, service.stop)
    return Recording(recorders, service.origin_ns)


class _Service:
    """State that the workers of one measurement share."""

    def __init__(
        self,
        system: SystemUnderTest,
        schedule_ns: NDArray[np.int64],
        display: Display,
        is_hopeless: Callable[[float], bool],
    ) -> None:
        self.stop = Event()
        self.origin_ns = system.clock.now_ns() + _LEAD_NS
        self._system = system
        self._display = display
        self._is_hopeless = is_hopeless
        self._due_ns: list[int] = (schedule_ns + self.origin_ns).tolist()
        self._next = 0
        self._done = 0
        self._lock = Lock()

    def work(self, recorder: Recorder) -> None:
        """Serve queries until the schedule ends or another worker stops."""
        system = self._system
        clock, run_timed, feeds = system.clock, system.runner.run_timed, system.feeds
        while (due_ns := self._take()) is not None and self._wait_for(due_ns):
            _, steps = run_timed(feeds)
            end_ns = clock.now_ns()
            # From the scheduled moment on: the time in the queue is part of the latency.
            recorder.add(due_ns, end_ns, steps)
            self._note(due_ns, end_ns)

    def _take(self) -> int | None:
        """Take the next query and return when it is due; ``None`` after the last."""
        with self._lock:
            if self._next == len(self._due_ns):
                return None
            self._next += 1
            return self._due_ns[self._next - 1]

    def _wait_for(self, due_ns: int) -> bool:
        """Wait until ``due_ns``; False if the measurement stops before."""
        clock = self._system.clock
        while not self.stop.is_set():
            left_ns = due_ns - clock.now_ns()
            if left_ns <= 0:
                return True
            clock.sleep_ns(min(left_ns, _NAP_NS))
        return False

    def _note(self, due_ns: int, end_ns: int) -> None:
        with self._lock:
            self._done += 1
            self._display.show(end_ns, self._done, len(self._due_ns))
            if self._is_hopeless((end_ns - due_ns) / 1e6):
                self.stop.set()

"""The system under test and the clock that times it, in the words of MLPerf's load generator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.core.specs import Array, QueryQueue, Runner


class Clock(Protocol):
    """A source of time: the present, waiting, and threads that wait by it.

    Nanoseconds are integers, so that sums and differences are exact.
    """

    def now_ns(self) -> int:
        """Time since any fixed moment; never goes back."""

    def sleep_ns(self, duration_ns: int) -> None:
        """Wait at least this long."""

    def thread(self, work: Callable[[], None]) -> Thread:
        """A thread, not yet started, that calls ``work`` once; ``work`` must not raise."""


class SystemClock:
    """The clock of the machine, by its finest counter."""

    def now_ns(self) -> int:
        """The performance counter, which no change of the date moves."""
        return time.perf_counter_ns()

    def sleep_ns(self, duration_ns: int) -> None:
        """Wait; the system wakes a thread some 50 to 100 us late."""
        time.sleep(duration_ns / 1e9)

    def thread(self, work: Callable[[], None]) -> Thread:
        """An ordinary thread; a daemon, so that a query that hangs cannot keep Python alive."""
        return Thread(target=work, name="deploykit-benchmark", daemon=True)


def ignored() -> None:
    """Do nothing at the end of a warm-up."""


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """An open runner, the one batch of all its queries, and the clock that times them.

    ``on_warm`` is called when its warm-up has ended, before what counts begins. With a ``queue``
    the queries of a closed loop overlap in it, and the runner itself is not asked.
    """

    runner: Runner
    feeds: Mapping[str, Array]
    clock: Clock
    on_warm: Callable[[], None] = ignored
    queue: QueryQueue | None = None

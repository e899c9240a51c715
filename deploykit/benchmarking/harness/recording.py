"""Samples while threads take them, and the noun made of them afterwards."""

from __future__ import annotations

from array import array
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.benchmarking.results import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from threading import Thread

    from numpy.typing import NDArray

    from deploykit.benchmarking.harness.system import Clock
    from deploykit.core.specs import StepTimes

    Milliseconds = NDArray[np.float64]


_STEPS: Final = ("compute_ms", "h2d_ms", "d2h_ms", "enqueue_ms")
_MISSING: Final = float("nan")
_NS_PER_MS: Final = 1e6
_NS_PER_S: Final = 1e9


class Recorder:
    """The queries of one thread.

    Columns of plain numbers: a list of objects would grow what Python's garbage collector walks
    through, and its pauses would be in the samples.
    """

    def __init__(self) -> None:
        self.begin_ns = array("q")
        self.end_ns = array("q")
        self.steps = {name: array("d") for name in _STEPS}

    def add(self, begin_ns: int, end_ns: int, steps: StepTimes) -> None:
        """Add one query; its latency counts from ``begin_ns``."""
        self.begin_ns.append(begin_ns)
        self.end_ns.append(end_ns)
        for name, column in self.steps.items():
            duration_ms = getattr(steps, name)
            column.append(_MISSING if duration_ms is None else duration_ms)


class Recording:
    """The queries of all threads in the order in which they began.

    ``origin_ns`` is the start of the measurement, by default that of the first query.
    """

    def __init__(self, recorders: Sequence[Recorder], origin_ns: int | None = None) -> None:
        begin_ns = np.concatenate([np.array(one.begin_ns, np.int64) for one in recorders])
        end_ns = np.concatenate([np.array(one.end_ns, np.int64) for one in recorders])
        self._recorders = recorders
        self._order = np.argsort(begin_ns, kind="stable")
        self.begin_ns: NDArray[np.int64] = begin_ns[self._order]
        self.end_ns: NDArray[np.int64] = end_ns[self._order]
        self._origin_ns = int(self.begin_ns[0]) if origin_ns is None else origin_ns

    @property
    def wall_ms(self) -> Milliseconds:
        """Latency of each query (queries,), from its begin to its end."""
        return (self.end_ns - self.begin_ns) / _NS_PER_MS

    @property
    def duration_s(self) -> float:
        """Time from the start of the measurement to the end of the last query."""
        return float(self.end_ns.max() - self._origin_ns) / _NS_PER_S

    def samples(self, warmup_ms: Milliseconds) -> Samples:
        """The samples of all queries, with those of the warm-up."""
        return Samples(
            wall_ms=self.wall_ms,
            start_s=(self.begin_ns - self._origin_ns) / _NS_PER_S,
            warmup_ms=warmup_ms,
            **{name: self._step(name) for name in _STEPS},
        )

    def _step(self, name: str) -> Milliseconds | None:
        """One column of all threads; ``None`` unless every query had this step."""
        columns = [np.array(one.steps[name], np.float64) for one in self._recorders]
        values = np.concatenate(columns)[self._order]
        # A step that some queries lack cannot be compared with the others, sample by sample.
        return None if np.isnan(values).any() else values


def run_threads(works: Iterable[Callable[[], None]], clock: Clock, stop: Event) -> None:
    """Run each work in a thread of its own, and return when all have ended.

    Every work must check ``stop`` often and end when it is set. It is set here when one of them
    fails, and when the caller is interrupted.

    Raises:
        BaseException: the first error of any work, as it was raised there, after all have ended.
        KeyboardInterrupt: the caller was interrupted; no thread is left.
    """
    errors: list[BaseException] = []
    started: list[tuple[Thread, Event]] = []
    pairs = [(work, Event()) for work in works]
    threads = [clock.thread(partial(_guarded, work, ended, errors, stop)) for work, ended in pairs]
    try:
        for thread, (_, ended) in zip(threads, pairs, strict=True):
            thread.start()
            started.append((thread, ended))
        _wait_for(started)
    except BaseException:
        stop.set()
        _wait_for(started)
        raise
    if errors:
        raise errors[0]


def _wait_for(started: list[tuple[Thread, Event]]) -> None:
    # Not by `join` alone: Python 3.11 takes a thread for ended when an interrupt comes while it
    # is being joined, and a second `join` then returns at once though the thread still runs.
    for _, ended in started:
        ended.wait()
    for thread, _ in started:
        thread.join()


def _guarded(
    work: Callable[[], None], ended: Event, errors: list[BaseException], stop: Event
) -> None:
    try:
        work()
    except BaseException as error:  # kept for the caller: nobody sees it here
        errors.append(error)
        stop.set()
    finally:
        # Last, so that who waits for it finds the error in the list.
        ended.set()

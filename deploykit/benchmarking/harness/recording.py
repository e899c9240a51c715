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
        self.compute_ms = array("d")
        self.h2d_ms = array("d")
        self.d2h_ms = array("d")
        self.enqueue_ms = array("d")

    def add(self, begin_ns: int, end_ns: int, steps: StepTimes) -> None:
        """Add one query; its latency counts from ``begin_ns``."""
        self.begin_ns.append(begin_ns)
        self.end_ns.append(end_ns)
        self.compute_ms.append(_MISSING if steps.compute_ms is None else steps.compute_ms)
        self.h2d_ms.append(_MISSING if steps.h2d_ms is None else steps.h2d_ms)
        self.d2h_ms.append(_MISSING if steps.d2h_ms is None else steps.d2h_ms)
        self.enqueue_ms.append(_MISSING if steps.enqueue_ms is None else steps.enqueue_ms)


class Recording:
    """The queries of all threads in the order in which they began."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        begin_ns = np.concatenate([np.array(one.begin_ns, np.int64) for one in recorders])
        end_ns = np.concatenate([np.array(one.end_ns, np.int64) for one in recorders])
        self._recorders = recorders
        self._order = np.argsort(begin_ns, kind="stable")
        self.begin_ns: NDArray[np.int64] = begin_ns[self._order]
        self.end_ns: NDArray[np.int64] = end_ns[self._order]

    @property
    def wall_ms(self) -> Milliseconds:
        """Latency of each query (queries,), from its begin to its end."""
        return (self.end_ns - self.begin_ns) / _NS_PER_MS

    def duration_s(self, origin_ns: int) -> float:
        """Time from ``origin_ns`` to the end of the last query."""
        return float(self.end_ns.max() - origin_ns) / _NS_PER_S

    def samples(self, origin_ns: int, warmup_ms: Milliseconds) -> Samples:
        """The samples of all queries; ``origin_ns`` is the start of the measurement."""
        return Samples(
            wall_ms=self.wall_ms,
            compute_ms=self._step([one.compute_ms for one in self._recorders]),
            h2d_ms=self._step([one.h2d_ms for one in self._recorders]),
            d2h_ms=self._step([one.d2h_ms for one in self._recorders]),
            enqueue_ms=self._step([one.enqueue_ms for one in self._recorders]),
            start_s=(self.begin_ns - origin_ns) / _NS_PER_S,
            warmup_ms=warmup_ms,
        )

    def _step(self, columns: list[array[float]]) -> Milliseconds | None:
        """One column of all threads; ``None`` unless every query had this step."""
        values = np.concatenate([np.array(one, np.float64) for one in columns])[self._order]
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

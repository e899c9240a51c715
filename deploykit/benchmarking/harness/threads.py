"""Thread group: several threads that end together."""

from __future__ import annotations

from functools import partial
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from threading import Thread

    from deploykit.benchmarking.harness.system import Clock


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

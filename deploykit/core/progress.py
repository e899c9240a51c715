"""Progress of long steps, and the record of a run: the time of each stage, notes for the user."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


class ProgressTask(Protocol):
    """One running step of a progress display."""

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Say how far the step is; ``total`` ``None`` keeps what was said before."""


class Progress(Protocol):
    """Where long steps report to; the command line shows a bar, a library call nothing."""

    def step(self, name: str) -> AbstractContextManager[ProgressTask]:
        """Open the display of one step; it ends with the ``with`` block."""


class _SilentTask:
    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Nothing to show."""


class SilentProgress:
    """Shows nothing: the default of every verb."""

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:  # noqa: ARG002
        """A step that nobody watches."""
        yield _SilentTask()


class LineProgress:
    """Lines on standard error for each step that is still going on after a second.

    One when it has gone on for a second, one when it ends, and while it lasts one every half
    minute of how far it is: for logs, where nobody sees a bar.
    """

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        """A step whose lines say its name, how far it is, and how long it took."""
        task = _LineTask(name)
        try:
            with _once_slow(lambda: say_line(f"{name} ...")):
                yield task
        finally:
            if task.seconds > _SLOW_S:
                say_line(f"{name}: {task.seconds:.1f} s")


@contextmanager
def _once_slow(say: Callable[[], None]) -> Iterator[None]:
    """Call ``say`` from another thread, if the block goes on for a second."""
    timer = threading.Timer(_SLOW_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _LineTask:
    def __init__(self, name: str) -> None:
        self._name = name
        self._start = self._said = time.perf_counter()
        self._total: float | None = None

    @property
    def seconds(self) -> float:
        """How long the step has taken."""
        return time.perf_counter() - self._start

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Say how far the step is, if the last line is long ago."""
        self._total = self._total if total is None else total
        if (now := time.perf_counter()) - self._said < _BETWEEN_LINES_S:
            return
        self._said = now
        far = f" {done:g}" if self._total is None else f" {done:g} of {self._total:g}"
        say_line(f"{self._name}:{far}{detail and f', {detail}'}, {self.seconds:.0f} s")


class BarLineProgress:
    """One line that is written over and over, for a terminal or a notebook that a person watches.

    Its bar shows how far a step is that is still going on after a second; then how long it took.
    """

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        """A step with a line of its own."""
        task = _BarTask(name)
        try:
            with _once_slow(task.begin):
                yield task
        finally:
            task.end()


class _BarTask:
    def __init__(self, name: str) -> None:
        self._name = name
        self._start = time.perf_counter()
        self._next = self._start + _SLOW_S
        self._total: float | None = None
        self._width = 0

    def begin(self) -> None:
        """The line of a step that has said nothing for a second: it may never say how far it is."""
        if not self._width:
            self._write(f"{self._name} ...")

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Write the line anew, a few times a second."""
        self._total = self._total if total is None else total
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + _BETWEEN_BARS_S
        bar = ""
        if self._total:
            full = min(_BAR, int(_BAR * done / self._total))
            bar = f" [{'#' * full}{'.' * (_BAR - full)}] {done:g} of {self._total:g}"
        self._write(f"{self._name}{bar}{detail and f', {detail}'}, {now - self._start:.0f} s")

    def end(self) -> None:
        """The last state of the line; none of a quick step."""
        seconds = time.perf_counter() - self._start
        if self._width or seconds > _SLOW_S:
            self._write(f"{self._name}: {seconds:.1f} s", "\n")

    def _write(self, text: str, end: str = "") -> None:
        shown = text[:_COLUMNS]
        _put(f"\r{shown.ljust(self._width)}{end}")
        self._width = len(shown)


def watched_progress() -> Progress:
    """For a program: a bar where a terminal or a notebook shows one, lines in a log."""
    is_watched = type(sys.stderr).__module__.startswith("ipykernel")
    with suppress(ValueError, AttributeError):  # it is closed, or there is none
        is_watched = is_watched or sys.stderr.isatty()
    return BarLineProgress() if is_watched else LineProgress()


def say_notes(notes: Iterable[str]) -> None:
    """A line on standard error for each."""
    for note in notes:
        say_line(f"note: {note}")


def say_line(text: str) -> None:
    """A line on standard error."""
    _put(f"{text}\n")


def _put(text: str) -> None:
    # What standard error is now: a notebook replaces it. It may be closed, or not there at all.
    with suppress(ValueError, OSError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


_SLOW_S: Final = 1.0
_BETWEEN_LINES_S: Final = 30.0
_BETWEEN_BARS_S: Final = 0.2
_BAR: Final = 24
_COLUMNS: Final = 79
"""Of the line that is written over: one that folds would leave its first part behind."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall time of one stage."""

    name: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"name": self.name, "seconds": round(self.seconds, 3)}


@dataclass
class Journal:
    """Times each stage, shows its progress, and collects notes for the user."""

    progress: Progress
    times: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[ProgressTask]:
        """Show and time the block as stage ``name``; a failed stage is not recorded."""
        with self.timed(name), self.progress.step(name) as task:
            yield task

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a block that shows its progress itself."""
        start = time.perf_counter()
        yield
        self.times.append(StageTime(name, time.perf_counter() - start))

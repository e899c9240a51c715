"""How far a run has come, and how long the rest will take."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.specs import ProgressTask

_FIRST: Final = 2
"""Steps after which their mean says something about the next ones."""

WARM_UP: Final = "warm-up"
"""What the harness calls the part of a measurement that does not count."""

_WARM_UP_SHARE: Final = 0.3

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


class Countdown:
    """Shows ``total`` steps on one progress task; all are expected to take equally long."""

    def __init__(
        self, task: ProgressTask, total: int, *, now_s: Callable[[], float] = monotonic
    ) -> None:
        self._task = task
        self._total = total
        self._done = 0
        self._now_s = now_s
        self._begin_s = now_s()

    def add(self, count: int) -> None:
        """More steps than were expected."""
        self._total += count

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        """One step; what it reports itself moves the bar within it."""
        self._show(0.0, name)
        yield _Step(self._show, name)
        self._done += 1
        self._show(0.0, name)

    def _show(self, share: float, detail: str) -> None:
        done = self._done + share
        self._task.update(done, self._total, f"{detail}{self._left(done)}")

    def _left(self, done: float) -> str:
        if self._done < _FIRST:
            return ""
        elapsed_s = self._now_s() - self._begin_s
        return f", about {duration(elapsed_s / done * (self._total - done))} left"


@dataclass
class _Step:
    show: Callable[[float, str], None]
    name: str
    share: float = 0.0

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Move the bar within the step, never back; a step without a total stands still."""
        share = min(1.0, done / total) if total else 0.0
        if detail == WARM_UP:
            share *= _WARM_UP_SHARE
        self.share = max(self.share, share)
        self.show(self.share, f"{self.name} {detail}".rstrip())


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(42.3), duration(150), duration(5400)
    ('43 s', '3 min', '1.5 h')
    """
    if seconds < _MINUTE_S:
        return f"{ceil(seconds)} s"
    if seconds < _HOUR_S:
        return f"{ceil(seconds / _MINUTE_S)} min"
    return f"{seconds / _HOUR_S:.1f} h"

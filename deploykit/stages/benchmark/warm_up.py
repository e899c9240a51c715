"""Queries that do not count, until the model answers at a steady pace.

The rule: warm up for the time that was asked, then until the medians of three windows in a row lie
within 5 % of one another, for at most ten times the time that was asked. A window is at least
five queries and at least a fifth of that time. A run that imitates trtexec (`Switches.preset`)
warms up for the time alone, as trtexec does. No time is no warm-up.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.stages.benchmark.closed_loop import Display, closed_loop

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from deploykit.benchmarking.results import Switches
    from deploykit.specs import ProgressTask
    from deploykit.stages.benchmark.sut import SystemUnderTest

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
        """One more query."""
        self._open.append(wall_ms)
        self._open_ms += wall_ms
        if len(self._open) >= WINDOW_QUERIES and self._open_ms >= self._window_ms:
            self._medians = [*self._medians, median(self._open)][-WINDOWS:]
            self._open, self._open_ms = [], 0.0

    @property
    def stable(self) -> bool:
        """Whether the last three medians lie within 5 % of one another."""
        if len(self._medians) < WINDOWS:
            return False
        return max(self._medians) <= min(self._medians) * (1 + SPREAD)


def windows_of(switches: Switches) -> Windows:
    """Empty windows of the length that these switches ask for.

    Queries of several streams overlap, so that their durations add up faster than the time.
    """
    return Windows(switches.warmup_s * 1e3 / WINDOWS_PER_WARM_UP * switches.streams)


def is_stable(warmup_ms: Iterable[float], switches: Switches) -> bool:
    """Whether the warm-up of a result ended because the model was steady, not for its time."""
    windows = windows_of(switches)
    for wall_ms in warmup_ms:
        windows.add(wall_ms)
    return windows.stable


def warm_up(sut: SystemUnderTest, switches: Switches, task: ProgressTask) -> NDArray[np.float64]:
    """Warm up in as many streams as will be measured; the duration of each query in ms."""
    if not switches.warmup_s:
        return np.empty(0, np.float64)
    goal = _Warm(switches, Display(task, "warm-up"))
    recording = closed_loop(sut, switches.streams, goal)
    # In the order of their ends, in which the rule saw them.
    return recording.wall_ms[np.argsort(recording.end_ns, kind="stable")]


class _Warm:
    def __init__(self, switches: Switches, display: Display) -> None:
        self._windows = windows_of(switches)
        self._wanted_s = switches.warmup_s
        self._patience_s = switches.warmup_s * (PATIENCE if switches.preset is None else 1)
        self._display = display
        self._start_ns: int | None = None

    def reached(self, begin_ns: int, end_ns: int) -> bool:
        if self._start_ns is None:
            self._start_ns = begin_ns
        self._windows.add((end_ns - begin_ns) / 1e6)
        elapsed_s = (end_ns - self._start_ns) / 1e9
        self._display.show(end_ns, min(elapsed_s / self._wanted_s, 1.0), 1.0)
        if elapsed_s < self._wanted_s:
            return False
        return self._windows.stable or elapsed_s >= self._patience_s

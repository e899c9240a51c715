"""How figures look in a terminal: tables, sizes, a progress bar."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars
from rich.table import Table

from deploykit.specs import Progress, ProgressTask, SilentProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.progress import TaskID

_WIDTH_OF_A_FILE = 160
"""Where there is no terminal to ask; rich would fold at 80 columns."""


def console(*, stderr: bool = False) -> Console:
    """Where answers (or, with ``stderr``, everything else) are shown."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    # The stream itself: what catches a library's own words meanwhile must not catch the bar.
    return Console(file=stream, stderr=stderr, highlight=False, width=width)


def progress() -> Progress:
    """A bar on standard error if a person watches it, otherwise silence."""
    return BarProgress(console(stderr=True)) if sys.stderr.isatty() else SilentProgress()


def table(columns: Sequence[str], *, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns named in ``right`` hold numbers."""
    result = Table(title=title, title_justify="left", header_style="bold", pad_edge=False, box=None)
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes, the unit of disks and of download pages.

    >>> megabytes(51_600_000)
    '51.6 MB'
    """
    return f"{count / 1e6:.1f} MB"


def short_count(count: int) -> str:
    """A count in thousands, millions or billions, three digits.

    >>> short_count(25_557_032), short_count(4_089_184_256), short_count(269_722)
    ('25.6 M', '4.09 G', '270 k')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            value = count / limit
            digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004 - three digits
            return f"{value:.{digits}f} {unit}"
    return str(count)


def census_line(census: Mapping[str, int]) -> str:
    """The layers of a network by kind and type, most frequent first.

    >>> census_line({"MATRIX_MULTIPLY HALF": 1, "CONVOLUTION HALF": 53})
    '53 CONVOLUTION HALF, 1 MATRIX_MULTIPLY HALF'
    """
    ordered = sorted(census.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {kind}" for kind, count in ordered)


class BarProgress:
    """One line per running step, gone when it has ended."""

    def __init__(self, target: Console) -> None:
        self._console = target

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        """Show a bar until the block ends; it pulses as long as no total is known."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        with RichBars(*columns, console=self._console, transient=True) as bars:
            yield _Bar(bars, bars.add_task(name, total=None, detail=""))


class _Bar:
    def __init__(self, bars: RichBars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=done, total=total, detail=detail)

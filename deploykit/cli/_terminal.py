"""A terminal as rich shows it: a console that escapes control characters, and a bar of progress."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

from deploykit.cli._printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import ConsoleOptions, RenderableType
    from rich.progress import TaskID
    from rich.segment import Segment
    from rich.text import Text

    from deploykit.core.progress import ProgressTask


_WIDTH_OF_A_FILE = 160
"""Where there is no terminal to ask; rich would fold at 80 columns."""


class PrintableConsole(Console):
    """Shows control characters in what it prints as escapes, and obeys its own styles alone."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it is measured and shown; rich would drop some controls and pass others on."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The pieces of what is shown; also of texts that others than a console made."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else piece._replace(text=printable(piece.text))


def console(*, stderr: bool = False) -> Console:
    """Where answers (or, with ``stderr``, everything else) are shown."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    # The stream itself: what catches a library's own words meanwhile must not catch the bar.
    return PrintableConsole(file=stream, stderr=stderr, highlight=False, width=width)


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

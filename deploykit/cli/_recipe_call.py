"""``deploykit.run_recipe``: `deploykit run` for programs.

It is in the room of the command line, as the keys of a recipe are options of the commands.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._as_steps import COMMANDS
from deploykit.cli._command import QUIET
from deploykit.cli._report import write_page
from deploykit.core.progress import SilentProgress, say_line, say_notes, watched_progress
from deploykit.recipes.running import plan_recipe, run_planned
from deploykit.verbs.argument_names import with_argument_names

if TYPE_CHECKING:
    import os

    from deploykit.recipes.running import RecipeReport

    PathLike = str | os.PathLike[str]


@with_argument_names
def run_recipe(
    recipe: PathLike,
    *,
    output: PathLike | None = None,
    again: bool = False,
    report: PathLike | None = None,
    quiet: bool = False,
) -> RecipeReport:
    """Export, check, evaluate and measure what a recipe names, as ``deploykit run`` does.

    Args:
        recipe: the TOML file.
        output: the folder of the bundles, in place of the one that the recipe names; the
            ``output`` of an ``[[export]]`` is relative to it then.
        again: whether finished steps are done again.
        report: a file for one HTML page about all bundles that are sound.
        quiet: whether to say nothing of the steps.

    Returns:
        What became of each step, and a verdict on each bundle; failures raise nothing. Without
        the page that was asked for, ``page`` is `None` and ``notes`` say why.

    Raises:
        UsageError: everything that is wrong with the recipe, before any work.
        BundleError: the state beside the bundles cannot be read or written.
    """
    from deploykit.reporting.document import require_report_name

    page = None if report is None else require_report_name(Path(report))
    place = None if output is None else Path(output)
    planned = plan_recipe(Path(recipe), COMMANDS, output=place, again=again)
    with click.Context(click.Command("run")) as context:  # where the steps look for it
        context.meta[QUIET] = quiet
        found = run_planned(planned, COMMANDS, _silent if quiet else say_line)
    return found if page is None else _reported(found, page, quiet=quiet)


def _reported(found: RecipeReport, page: Path, *, quiet: bool) -> RecipeReport:
    """With the page written, or with the note that says why it is not."""
    progress = SilentProgress() if quiet else watched_progress()
    written = write_page(
        found.made, page, data=found.judged_on, progress=progress, unsound=found.unsound
    )
    if not quiet:
        say_notes(written.notes)
    return replace(found, page=written.file, notes=written.notes)


def _silent(_: str) -> None:
    """Nothing is said."""

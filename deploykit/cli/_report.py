"""The option ``--report`` of `export`, `run` and `inspect`: one HTML page about bundles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli._show import progress
from deploykit.core.errors import DeploykitError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from deploykit.cli._command import Answer
    from deploykit.core.progress import Progress

report_option = click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write one page about what was made: layers, errors, changed answers, ranges, engines.",
)


def require_report(file: Path | None, *, bundle: str | None = None) -> None:
    """Refuse a report that cannot be, before anything slow is done.

    Raises:
        UsageError: the file's name is that of no page; ``bundle`` is given and is no folder.
    """
    if file is None:
        return
    from deploykit.reporting.document import require_report_name

    require_report_name(file)
    if bundle is not None and not Path(bundle).is_dir():
        raise UsageError(
            f"--report is about a bundle, and {bundle} is none\n"
            f"make one: deploykit export {bundle} --report {file}"
        )


@dataclass(frozen=True)
class Page:
    """The page that was asked for: where it is, if it was written, and what it lacks."""

    file: Path | None
    notes: tuple[str, ...] = ()


def write_page(
    bundles: Sequence[Path],
    file: Path,
    *,
    data: Path | None,
    progress: Progress,
    unsound: Sequence[Path] = (),
) -> Page:
    """Write the page about ``bundles``, but for those that failed their check or are damaged.

    It raises no `DeploykitError`: what was found is told without a page too.
    """
    from deploykit.reporting.bundles import write_report

    notes = []
    good = []
    for bundle in bundles:
        problem = "it failed its check" if bundle in unsound else _damage(bundle)
        if problem is None:
            good.append(bundle)
        else:
            notes.append(f"the report leaves out {bundle}: {problem}")
    if not good:
        return Page(None, (*notes, f"no report {file}: there is no sound bundle to report on"))
    try:
        written = write_report(good, file, data=data, progress=progress)
    except DeploykitError as error:
        return Page(None, (*notes, f"no report {file}: {error}"))
    return Page(written, tuple(notes))


def _damage(bundle: Path) -> str | None:
    """Why a bundle cannot be read as it was written; ``None`` where it can."""
    from deploykit.bundle.manifest import Bundle

    try:
        Bundle.open(bundle).require_intact()
    except DeploykitError as error:
        return first_line(error)
    return None


def with_report(
    answer: Answer,
    file: Path | None,
    bundles: Sequence[Path],
    data: Path | None,
    unsound: Sequence[Path] = (),
) -> Answer:
    """The answer with the page about ``bundles`` written and named; as it is without any.

    What the page lacks, or why there is none, is part of the answer, and the exit code is 1 then.
    """
    if file is None:
        return answer
    page = write_page(bundles, file, data=data, progress=progress(), unsound=unsound)

    def show(out: Console) -> None:
        answer.show(out)
        if page.file is not None:
            out.print(f"report: {page.file}", markup=False, soft_wrap=True)
        for note in page.notes:
            out.print(note, style="red", markup=False, soft_wrap=True)

    return replace(
        answer,
        data=answer.data | _plain(page),
        show=show,
        failed=answer.failed or bool(page.notes),
        verdict=None if answer.verdict is None else "\n".join((answer.verdict, *page.notes)),
    )


def _plain(page: Page) -> dict[str, Any]:
    notes = {"report_notes": list(page.notes)} if page.notes else {}
    return {"report": None if page.file is None else str(page.file), **notes}

"""The option ``--report`` of `export` and `inspect`: one HTML page about a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._show import progress
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from deploykit.cli._command import Answer

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


def with_report(
    answer: Answer, file: Path | None, bundles: Sequence[Path], data: Path | None
) -> Answer:
    """The answer with the page about ``bundles`` written and named; as it is without any."""
    if file is None or not bundles:
        return answer
    from deploykit.reporting.bundles import write_report

    written = str(write_report(bundles, file, data=data, progress=progress()))

    def show(out: Console) -> None:
        answer.show(out)
        out.print(f"report: {written}", markup=False, soft_wrap=True)

    return replace(answer, data={**answer.data, "report": written}, show=show)

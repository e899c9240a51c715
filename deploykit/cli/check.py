"""`deploykit check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.pipeline.check import CheckReport


@click.command("check", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
def command(bundle: Path) -> Answer:
    r"""Verify a bundle: every hash, each engine's header, the golden sample.

    Says of each engine whether it fits this machine. The exit code is 1 if a file was changed or
    the model computes something else than when it was exported.

    \b
    deploykit check engines/resnet50-fp16
    """
    from deploykit.pipeline.check import check

    report = check(bundle)
    return Answer(report.to_dict(), lambda out: _show(out, report), failed=not report.ok)


def _show(out: Console, report: CheckReport) -> None:
    from deploykit.cli._show import table

    if report.engines:
        rows = table(("engine", "fits this machine", "reason"))
        for engine in report.engines:
            rows.add_row(engine.file, "yes" if engine.fits else "no", engine.reason)
        out.print(rows)
    for problem in report.problems:
        out.print(f"problem: {problem}", style="red", markup=False)
    if report.ok:
        out.print(f"{report.bundle}: every file is as it was written, the golden sample agrees")

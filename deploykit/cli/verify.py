"""`deploykit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.verbs.verify import VerifyReport


@click.command(
    "verify", cls=Command, epilog=examples("deploykit verify engines/resnet50-fp16 --trust key.pub")
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.pem",
    help="Public key, or certificates of issuers, in PEM.",
)
def command(bundle: Path, trust: Path) -> Answer:
    """Verify that somebody you trust signed a bundle as it is.

    The signature first, then the hash of every file that was signed; nothing is run. The exit code
    is 1 if the bundle is not signed, not by this key, or was changed since. Needs deploykit[sign].
    """
    with progress().step("verify"):
        from deploykit.verbs.verify import verify

        report = verify(bundle, trust)
    return Answer(report.to_dict(), lambda out: _show(out, report), failed=not report.ok)


def _show(out: Console, report: VerifyReport) -> None:
    for problem in report.problems:
        out.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    if report.ok:
        out.print(
            f"{report.bundle}: every file is the one that was signed, by {report.signed_by}",
            markup=False,
            soft_wrap=True,
        )
    if report.unsigned:
        out.print(
            f"nobody signed, and nothing loads with --trust: {', '.join(report.unsigned)}",
            markup=False,
            soft_wrap=True,
        )

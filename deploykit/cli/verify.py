"""`deploykit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress
from deploykit.core.errors import UsageError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.verbs.verify import VerifyReport


@click.command(
    "verify",
    cls=Command,
    epilog=examples(
        "deploykit verify engines/resnet50-fp16 --trust key.pub",
        "deploykit verify engines/resnet50-fp16 --identity me@example.org "
        "--issuer https://accounts.google.com",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@_options.trust
def command(bundle: Path, trust: Path | SigstoreIdentity | None) -> Answer:
    """Verify that somebody you trust signed a bundle as it is.

    The signature first, then the hash of every file that was signed; nothing is run. The exit code
    is 1 if the bundle is not signed, not by this key or identity, or was changed since. Needs
    the packages model-signing and pyopenssl.
    """
    with progress().step("verify"):
        from deploykit.verbs.verify import verify

        if trust is None:
            raise UsageError(
                "nobody is trusted\n"
                "say whose signature you expect: --trust FILE.pem, or --identity NAME --issuer URL"
            )
        report = verify(bundle, trust)
    return Answer(
        report.to_dict(),
        lambda out: _show(out, report),
        failed=not report.ok,
        verdict=_verdict(report) if report.ok else None,
    )


def _verdict(report: VerifyReport) -> str:
    return f"{report.bundle}: every file is the one that was signed, by {report.signed_by}"


def _show(out: Console, report: VerifyReport) -> None:
    for problem in report.problems:
        out.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    if report.remedy:
        out.print(report.remedy, markup=False, soft_wrap=True)
    if report.ok:
        out.print(_verdict(report), markup=False, soft_wrap=True)
    if report.unsigned:
        out.print(
            "nobody signed, and nothing loads with --trust or --identity: "
            f"{', '.join(map(one_line, report.unsigned))}",
            markup=False,
            soft_wrap=True,
        )

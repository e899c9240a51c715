"""`deploykit check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.bundle.folders import MANIFEST, bundles_in
from deploykit.cli import _options
from deploykit.cli._command import (
    NOTHING_DONE,
    Answer,
    Command,
    examples,
    is_json,
    is_quiet,
    only_checks,
)
from deploykit.cli._show import progress, show_bundles, show_doubts
from deploykit.core.errors import BundleError

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.bundle.sigstore import SigstoreIdentity
    from deploykit.verbs.check import CheckReport


@click.command(
    "check",
    cls=Command,
    epilog=examples(
        "deploykit check engines/resnet50-fp16",
        "deploykit check engines/resnet50-fp16 --device cuda",
        "deploykit check engines/resnet50-fp16 --trust key.pub",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@_options.device
@_options.fast
@_options.trust
def command(
    *, bundle: Path, device: str, fast: bool, trust: Path | SigstoreIdentity | None
) -> Answer:
    """Verify the files, the engines and the numbers of a bundle.

    Every hash, each engine's header, and the golden sample: on onnxruntime, or with --device cuda
    on the engine that will serve. Says of each engine
    whether it fits this machine, which is no condition, and of the bundle whether its verification
    at the export was weak, which is none either. The exit code is 1 if a file was changed or
    the model computes something else than when it was exported. Of a folder of bundles those in it
    are listed, and the exit code is 1: nothing was checked.
    """
    if only_checks():
        return NOTHING_DONE
    try:
        with progress().step("check"):
            from deploykit.verbs.check import check, check_to_plain

            report = check(bundle, fast=fast, device=device, trust=trust)
    except BundleError:
        _show_those_in(bundle)
        raise
    return Answer(
        check_to_plain(report),
        lambda out: _show(out, report),
        failed=not report.ok,
        verdict=_verdict(report) if report.ok else None,
    )


def _show_those_in(folder: Path) -> None:
    """What there is to check, where a folder of bundles was given in place of one."""
    if is_json() or is_quiet() or (folder / MANIFEST).is_file() or not bundles_in(folder):
        return
    from deploykit.bundle.listing import list_bundles
    from deploykit.cli._terminal import console

    show_bundles(console(), list_bundles(folder))


def _verdict(report: CheckReport) -> str:
    weak = "; its verification was weak" if report.doubts else ""
    return f"{report.bundle}: every file is as it was written, the golden sample agrees{weak}"


def _show(out: Console, report: CheckReport) -> None:
    if report.ok:
        out.print(_verdict(report), style="bold", markup=False)
        out.print(f"the golden sample ran on {report.golden}")
        if report.signed_by is not None:
            out.print(f"signed by {report.signed_by}", markup=False, soft_wrap=True)
    for engine in report.engines:
        fits = "fits this machine" if engine.fits else "does not fit this machine"
        why = f": {engine.reason}" if engine.reason else ""
        out.print(f"{engine.file} {fits}{why}", markup=False)
    show_doubts(out, report.doubts)
    for problem in report.problems:
        out.print(f"problem: {problem}", style="red", markup=False)
    if report.remedy:
        out.print(report.remedy)

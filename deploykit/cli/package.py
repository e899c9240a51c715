"""`deploykit package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli import _options
from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.bundle.signature import Trust
    from deploykit.verbs.package import PackageReport


class _NamesPlaces(click.Option):
    """An option whose help names the places, which are looked up when the help is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """What the option is called, and its text with the names."""
        from deploykit.packaging import place_names

        record = super().get_help_record(ctx)
        return None if record is None else (record[0], f"{', '.join(place_names())}.")


@click.command(
    "package",
    cls=Command,
    epilog=examples(
        "deploykit package engines/resnet50-fp16 --to triton -o triton-resnet50",
        "deploykit package engines/resnet50-fp16 --to docker -o service",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", "place", cls=_NamesPlaces, required=True, metavar="PLACE")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the package goes.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a package that is there, if every file in it is as it was written.",
)
@click.option(
    "--image",
    metavar="IMAGE",
    help="The container that serves: of Triton, or the one that was built from --to docker.",
)
@click.option(
    "--storage-uri",
    metavar="URI",
    help="Of kserve: where the model folder will lie, as pvc://models/resnet50 or s3://...",
)
@click.option(
    "--server",
    type=click.Choice(("triton", "deploykit")),
    help="Of kserve: what serves the model folder.  [default: triton]",
)
@click.option(
    "--wheel",
    type=click.Path(path_type=Path),
    metavar="FILE.whl",
    help="Of docker: the wheel of deploykit, which is put into the folder.",
)
@_options.trust
def command(  # noqa: PLR0913 - one parameter per option
    *,
    bundle: Path,
    place: str,
    output: Path,
    replace: bool,
    image: str | None,
    storage_uri: str | None,
    server: str | None,
    wheel: Path | None,
    trust: Path | Trust | None,
) -> Answer:
    """Write what a bundle needs to be served elsewhere.

    Every file that goes into the package is compared with its hash first. The package is written
    whole or not at all; its README.md says what is inside and how it is started.
    """
    from deploykit.packaging import PackageChoices
    from deploykit.verbs.package import package

    report = package(
        bundle,
        place,
        output,
        PackageChoices(image, storage_uri, server, wheel),
        replace=replace,
        trust=trust,
        progress=progress(),
    )
    return Answer(report.to_dict(), lambda out: _show(out, report), verdict=_verdict(report))


def _verdict(report: PackageReport) -> str:
    return f"packaged {report.bundle} for {report.place}: {report.folder}"


def _show(out: Console, report: PackageReport) -> None:
    out.print(_verdict(report), style="bold", markup=False, soft_wrap=True)
    for name in report.files:
        out.print(f"  {name}", markup=False, soft_wrap=True)
    for note in report.packed.notes:
        out.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    out.print(f"read {report.folder / 'README.md'}", markup=False, soft_wrap=True)

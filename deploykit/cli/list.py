"""`deploykit list`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress, short_count, show_bundles, table
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.core.specs import ModelSpec


@click.command(
    "list",
    cls=Command,
    epilog=examples("deploykit list", "deploykit list engines", "deploykit list --torchvision"),
)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--torchvision", is_flag=True, help="The classifiers of the installed torchvision.")
@click.option("--timm", is_flag=True, help="The architectures of the installed timm.")
def command(folder: Path | None, *, torchvision: bool, timm: bool) -> Answer:
    """List the architectures that deploykit defines, or the bundles in FOLDER.

    Of a bundle only the manifest is read; `check` compares its files with that. Networks of other
    packages are listed as the targets that `export` takes, one a line.
    """
    if (folder is not None) + torchvision + timm > 1:
        raise UsageError("a list is of one kind\ngive FOLDER, --torchvision or --timm")
    if folder is not None:
        return _bundles(folder)
    if torchvision or timm:
        return _targets(torchvision=torchvision)
    from deploykit.models import get, names

    specs = [get(name) for name in names()]
    return Answer({"models": [_plain(spec) for spec in specs]}, lambda out: _show(out, specs))


def _targets(*, torchvision: bool) -> Answer:
    with progress().step("start"):  # importing torch takes seconds
        if torchvision:
            from deploykit.sources.torchvision import torchvision_names as names
        else:
            from deploykit.sources.timm import timm_names as names
        prefix = "torchvision" if torchvision else "timm"
        found = [f"{prefix}:{name}" for name in names()]
    return Answer({"targets": found}, lambda out: out.print("\n".join(found), markup=False))


def _bundles(folder: Path) -> Answer:
    from deploykit.bundle.listing import list_bundles, listed_to_plain

    found = list_bundles(folder)
    plain = [listed_to_plain(one) for one in found]
    return Answer({"bundles": plain}, lambda out: show_bundles(out, found))


def _plain(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "year": spec.year,
        "parameters": spec.parameters,
        "multiply_adds": spec.multiply_adds,
        "input_size": list(spec.inputs[0].shape[1:]),
        "num_classes": spec.num_classes,
        "title": spec.title,
        "paper": spec.paper,
        "torchvision": spec.torchvision,
    }


def _show(out: Console, specs: list[ModelSpec]) -> None:
    numbers = ("year", "parameters", "multiply-adds", "input")
    rows = table(("architecture", *numbers, "paper"), right=numbers)
    for spec in specs:
        size = "x".join(str(dim) for dim in spec.inputs[0].shape[1:])
        counts = short_count(spec.parameters or 0), short_count(spec.multiply_adds or 0)
        paper = f"[link={spec.paper}]{_short_link(spec.paper or '')}[/link]"
        rows.add_row(spec.name, str(spec.year), *counts, size, paper)
    out.print(rows)


def _short_link(url: str) -> str:
    """What a reader finds the paper by, in a column that fits a terminal.

    >>> _short_link("https://arxiv.org/abs/1512.03385"), _short_link("https://papers.nips.cc/4824")
    ('arXiv:1512.03385', 'papers.nips.cc')
    """
    address = url.removeprefix("https://")
    arxiv = address.removeprefix("arxiv.org/abs/")
    return f"arXiv:{arxiv}" if arxiv != address else address.partition("/")[0]

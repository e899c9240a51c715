"""`deploykit list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import short_count, table

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.core.specs import ModelSpec


@click.command("list", cls=Command, epilog=examples("deploykit list", "deploykit list --json"))
def command() -> Answer:
    """List the architectures that deploykit defines."""
    from deploykit.models import get, names

    specs = [get(name) for name in names()]
    return Answer({"models": [_plain(spec) for spec in specs]}, lambda out: _show(out, specs))


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

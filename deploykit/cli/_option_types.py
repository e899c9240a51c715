"""Kinds of options that a recipe must tell apart: what names files, and what some precisions take.

A recipe's paths are relative to its file, so that an option whose text is a path has a type of its
own.
"""

from __future__ import annotations

import click


class Target(click.types.StringParamType):
    """A TARGET: a name, or something with the path of a file or folder in it."""

    name = "target"


class PathOr(click.types.StringParamType):
    """A path of something that is read, or one of ``words``; ``#`` may name an entry of a file."""

    name = "path"

    def __init__(self, *words: str) -> None:
        self.words = words


class QuantizingOption(click.Option):
    """An option of the precisions that are calibrated, and of `auto`."""


class BudgetOption(click.Option):
    """An option of `--precision auto`."""


TARGET = Target()

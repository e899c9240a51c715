"""Options that say of a definition what it does not say itself, and what they ask for."""

from __future__ import annotations

import json
from functools import wraps
from inspect import signature
from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _options
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deploykit.choices import DefinitionChoices

_OPTIONS = (
    _options.num_classes,
    _options.input_size,
    click.option(
        "--factory-args",
        metavar="JSON",
        help="Keyword arguments for a factory in a Python file: '{\"depth\": 18}'",
    ),
    click.option(
        "--resize",
        metavar="PX|HxW",
        help="Images are scaled: shorter side, or exactly to HxW.  [default: the model's own]",
    ),
    click.option(
        "--interpolation", metavar="NAME", help="bilinear, bicubic, nearest or lanczos, likewise."
    ),
    click.option("--mean", metavar="R,G,B", help="Subtracted from pixels of 0 to 1, likewise."),
    click.option("--std", metavar="R,G,B", help="What they are divided by then, likewise."),
    _options.side_inputs,
)


def choices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a definition, of which the command gets one ``choices``."""

    @wraps(function)
    def command(**given: Any) -> Any:
        told = {name: given.pop(name) for name in signature(read_choices).parameters}
        return function(choices=read_choices(**told), **given)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_choices(  # noqa: PLR0913 - one parameter per option
    *,
    num_classes: int | None = None,
    input_size: int | None = None,
    factory_args: str | None = None,
    resize: str | None = None,
    interpolation: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    side_inputs: Path | None = None,
) -> DefinitionChoices:
    """What the options ask for.

    Raises:
        UsageError: an option cannot be read.
    """
    from deploykit.choices import DefinitionChoices, PreprocessingChoices

    wanted = PreprocessingChoices(
        resize=None if resize is None else _sides(resize),
        interpolation=interpolation,
        mean=None if mean is None else _channels("--mean", mean),
        std=None if std is None else _channels("--std", std),
    )
    arguments = None if factory_args is None else _arguments(factory_args)
    return DefinitionChoices(num_classes, input_size, arguments, wanted, side_inputs)


def _sides(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        parts = []
    match [int(part) for part in parts]:
        case [shorter]:
            return shorter
        case [height, width]:
            return height, width
    raise UsageError(
        f"--resize is {text!r}\nexpected pixels of the shorter side, as 256, or HxW, as 224x224"
    )


def _channels(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = float("nan")
    if not all(map(isfinite, (red, green, blue))):
        raise UsageError(
            f"{option} is {text!r}\nexpected three numbers for red, green and blue, as "
            "0.485,0.456,0.406"
        )
    return red, green, blue


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--factory-args is not JSON: {error}\n"
            "expected an object of keyword arguments, as '{\"depth\": 18}'"
        ) from error
    if not isinstance(arguments, dict):
        raise UsageError(
            f"--factory-args is {text}\n"
            "expected an object of keyword arguments, as '{\"depth\": 18}'"
        )
    return arguments

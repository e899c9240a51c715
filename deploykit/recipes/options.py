"""Options of commands as keys of a recipe: values of TOML become arguments of a command line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from deploykit.core.precision import AUTO, find_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class Form(StrEnum):
    """What an option is given."""

    SWITCH = "true or false"
    INTEGER = "a whole number"
    NUMBER = "a number"
    TEXT = "a text"
    PATH = "a path, as a text"


class Use(StrEnum):
    """Precisions that an option of an export is for."""

    ALL = "all"
    QUANTIZED = "quantized"
    BUDGET = "budget"


@dataclass(frozen=True)
class CommandOption:
    """One option of a command.

    ``flags`` are as they are typed, for a switch that can be turned off also that. ``metavar`` is
    the placeholder of the help: one with a comma takes several values in one. ``words`` stand in
    place of a path. ``require`` refuses a text that the command refuses, by a `ValueError`.
    ``is_written`` where the path is an output.
    """

    name: str
    flags: tuple[str, ...]
    form: Form
    require: Callable[[str], None]
    metavar: str = ""
    is_repeated: bool = False
    is_required: bool = False
    is_written: bool = False
    words: tuple[str, ...] = ()
    use: Use = Use.ALL

    def is_for(self, precision: str | None) -> bool:
        """Whether an export of this precision has a use for it."""
        if self.use is Use.ALL or precision == AUTO:
            return True
        if self.use is Use.BUDGET or precision is None:
            return False
        return find_precision(precision).facts.needs_calibration


@dataclass(frozen=True)
class Ran:
    """What a command answered: plain data, and whether its exit code says that something is bad."""

    data: Mapping[str, Any]
    failed: bool = False


class Commands(Protocol):
    """The commands that a recipe is made of; the command line has them."""

    def options(self, command: str) -> Mapping[str, CommandOption]:
        """All options of a command by their names, in the order of its help."""

    def require(self, command: str, arguments: Sequence[str]) -> None:
        """Judge a call, and do nothing.

        Raises:
            DeploykitError: the command would refuse it before it begins.
        """

    def run(self, command: str, arguments: Sequence[str]) -> Ran:
        """Do it.

        Raises:
            DeploykitError: the error of the step that failed.
        """


class ValueRefusedError(ValueError):
    """A value of a recipe that its option does not take; the message is a sentence for the user."""


_SHOWN: Final = 60


def shown(value: object) -> str:
    """A value as TOML has it, in short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def arguments_of(option: CommandOption, value: object, base: Path) -> tuple[str, ...]:
    """The arguments of a command line that give ``value`` to ``option``.

    A list is one value with commas where the option takes several numbers in one, as
    ``batch = [1, 8, 32]``, and otherwise the option several times. Paths are relative to ``base``.

    Raises:
        ValueRefusedError: it is of another type, or the command does not take it.
    """
    if option.form is Form.SWITCH:
        return _switched(option, value)
    texts = _texts(option, value)
    found: list[str] = []
    for text in texts:
        try:
            option.require(text)
        except ValueError as error:
            raise ValueRefusedError(f"is {shown(value)}: {error}") from error
        given = (
            placed(text, base) if option.form is Form.PATH and text not in option.words else text
        )
        flag = option.flags[0]
        found += [f"{flag}={given}"] if given.startswith("-") else [flag, given]
    return tuple(found)


def placed(path: str, base: Path) -> str:
    """A path of a recipe, seen from where the command runs."""
    return os.path.normpath(base / os.path.expanduser(path))  # noqa: PTH111 - may end in #ENTRY


def _switched(option: CommandOption, value: object) -> tuple[str, ...]:
    if not isinstance(value, bool):
        raise ValueRefusedError(f"is {shown(value)}, expected {option.form}")
    if value:
        return option.flags[:1]
    return option.flags[1:2]  # one that cannot be turned off is left out


def _texts(option: CommandOption, value: object) -> list[str]:
    """The values of an option, each as the command line has it."""
    if not isinstance(value, list):
        return [_text(option, value)]
    takes_several = "," in option.metavar
    if value and option.is_repeated:
        if not takes_several or all(isinstance(each, str) for each in value):
            return [_text(option, each) for each in value]
        if all(isinstance(each, list) for each in value):
            return [_joined(option, each) for each in value]
    if value and takes_several and not any(isinstance(each, list) for each in value):
        return [_joined(option, value)]
    raise ValueRefusedError(f"is {shown(value)}, expected {_expected(option)}")


def _joined(option: CommandOption, values: list[object]) -> str:
    return ",".join(_text(option, each) for each in values)


def _text(option: CommandOption, value: object) -> str:
    if isinstance(value, dict) and option.metavar == "JSON":
        return _json(option, value)
    taken: tuple[type, ...] = {
        Form.INTEGER: (int,),
        Form.NUMBER: (int, float),
        Form.PATH: (str,),
    }.get(option.form, (str, int, float))
    if isinstance(value, bool) or not isinstance(value, taken):
        raise ValueRefusedError(f"is {shown(value)}, expected {_expected(option)}")
    return str(value)


def _json(option: CommandOption, value: object) -> str:
    """A table as JSON, which has no dates, no infinity and no NaN."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueRefusedError(
            f"is {shown(value)}, expected {_expected(option)}, which has texts, finite numbers, "
            "true and false, lists and tables"
        ) from error


def _expected(option: CommandOption) -> str:
    several = option.is_repeated or "," in option.metavar
    placeholder = f", {option.metavar}" if option.metavar and option.form is Form.TEXT else ""
    return f"{option.form}{placeholder}{', or a list' if several else ''}"

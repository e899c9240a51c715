"""Errors for programs, whose messages name arguments of the function in place of options."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from deploykit.core.errors import DeploykitError
from deploykit.core.option_names import quoted, with_other_names
from deploykit.core.precision import precisions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")

OTHER_NAMES: Final = {"compute-capability": "compute_capabilities"}
"""Arguments that are not called as the option is, with underscores."""

_OF_A_FUNCTION: Final[Mapping[str, Mapping[str, str]]] = {"calibrate": {"data": "calib"}}


def with_argument_names(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """``function``, whose errors name its arguments where they would name options."""
    arguments = frozenset(signature(function).parameters)
    special = {**OTHER_NAMES, **_OF_A_FUNCTION.get(function.__name__, {})}

    @wraps(function)
    def named(*given: _Given.args, **chosen: _Given.kwargs) -> _Found:
        try:
            return function(*given, **chosen)
        except DeploykitError as error:
            if error.args and isinstance(error.args[0], str):
                error.args = (in_python(error.args[0], arguments, special), *error.args[1:])
            raise

    return named


def in_python(
    message: str, arguments: Collection[str], special: Mapping[str, str] = OTHER_NAMES
) -> str:
    """The message with ``arguments`` in place of the options that they are.

    An option that there is no argument for stays, as does a whole command line.

    >>> in_python("--max-drop, or --precision auto", {"max_drop", "precision"})
    'max_drop, or precision="auto"'
    >>> in_python("as --price-per-hour L4=0.8", {"price_per_hour"})
    'as price_per_hour={"L4": 0.8}'
    """
    flags = frozenset(map(str, precisions()))

    def argument(option: str, value: str | None) -> str | None:
        if option in flags and "precision" in arguments:
            return f'precision="{option}"' + ("" if value is None else f" {value}")
        name = special.get(option, option.replace("-", "_"))
        if name not in arguments:
            return None
        if value is not None and "," in value:
            return f"{name}=({value})"
        if value is not None and "=" in value:
            key, _, number = value.partition("=")
            return f"{name}={{{quoted(key)}: {number}}}"
        return name if value is None else f"{name}={quoted(value)}"

    return with_other_names(message, argument)

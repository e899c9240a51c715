"""Messages for programs: the options that a message names become arguments of the function.

Rules are said once, with the options of the command line: ``--max-drop 1%``. A program that calls
`deploykit.export` reads ``max_drop="1%"``. A whole command line stays one, and so does an option
that the function has no argument for.
"""

from __future__ import annotations

import re
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from deploykit.core.errors import DeploykitError
from deploykit.core.precision import precisions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")

_OTHER_NAMES: Final = {
    "compute-capability": "compute_capabilities",
    "o": "output",
}
"""Arguments that are not called as the option is, with underscores."""

_OF_A_FUNCTION: Final[Mapping[str, Mapping[str, str]]] = {"calibrate": {"data": "calib"}}

_COMMAND: Final = re.compile(r"\b(?:deploykit [a-z]+\b|hf download|pip install|trtexec)[^\n]*")
"""What is to be typed into a shell, up to the end of its line."""

_OPTION: Final = re.compile(
    r"(?<![\w/-])(?:--(?P<long>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)|-(?P<short>o))(?![\w-])"
    r"(?: (?P<value>[A-Z][A-Z|#.,]*(?![\w'])|\d[\d.,]*%?(?!\w)"
    r"|(?:auto|random|raw|none|imagenet)\b))?"
)
"""An option, and what it is given where that is plain: PATH, 1%, auto."""


def with_argument_names(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """``function``, whose errors name its arguments where they would name options."""
    arguments = frozenset(signature(function).parameters)
    special = {**_OTHER_NAMES, **_OF_A_FUNCTION.get(function.__name__, {})}

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
    message: str, arguments: Collection[str], special: Mapping[str, str] = _OTHER_NAMES
) -> str:
    """The message with ``arguments`` in place of the options that they are.

    >>> in_python("--max-drop is 'much'; or --precision auto", {"max_drop", "precision"})
    'max_drop is 'much'; or precision="auto"'
    >>> in_python("later: deploykit build BUNDLE --batch 8", {"batch"})
    'later: deploykit build BUNDLE --batch 8'
    """
    flags = frozenset(map(str, precisions()))

    def argument(found: re.Match[str]) -> str:
        option, value = found["long"] or found["short"], found["value"]
        if option in flags and "precision" in arguments:
            return f'precision="{option}"' + ("" if value is None else f" {value}")
        name = special.get(option, option.replace("-", "_"))
        if name not in arguments:
            return found[0]
        return name if value is None else f"{name}={_literal(value)}"

    pieces, end = [], 0
    for command in _COMMAND.finditer(message):
        pieces += [_OPTION.sub(argument, message[end : command.start()]), command[0]]
        end = command.end()
    return "".join((*pieces, _OPTION.sub(argument, message[end:])))


def _literal(value: str) -> str:
    """A number or a placeholder as it is, a text in quotes.

    >>> _literal("8"), _literal("1%"), _literal("PATH"), _literal("auto"), _literal("1,8,32")
    ('8', '"1%"', 'PATH', '"auto"', '(1,8,32)')
    """
    if re.fullmatch(r"[\d.,]+", value):
        return f"({value})" if "," in value else value
    return value if value.isupper() else f'"{value}"'

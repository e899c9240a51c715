"""Options of the command line in a message, under the names that its reader knows them by.

Rules are said once, with the options of the command line: ``--max-drop 1%``. A program that calls
`deploykit.export` reads ``max_drop="1%"``, and who writes a recipe ``max-drop = "1%"``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMAND: Final = re.compile(r"\b(?:deploykit [a-z]+\b|hf download|pip install|trtexec)[^\n]*")
"""What is to be typed into a shell, up to the end of its line."""

_OPTION: Final = re.compile(
    r"(?<![\w/'-])(?:--(?P<long>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)|-(?P<short>o))(?![\w-])"
    r"(?: (?P<value>[A-Z]+\d+(?:=\d(?:[\d.]*\d)?)?(?!\w)"
    r"|[A-Z][A-Z|#.,]*(?![\w'])|\d(?:[\d.,]*\d)?%?(?!\w)"
    r"|(?:fp16|auto|random|raw|none|imagenet|uint8|nchw|nhwc|rgb|bgr|grey)\b))?"
)
"""An option, and what it is given where that is plain: PATH, 1%, auto, L4, L4=0.8.

What a message quotes is what it was given, as a network that is called '--help'.
"""

_SHORT: Final = {"o": "output"}


def with_other_names(message: str, rename: Callable[[str, str | None], str | None]) -> str:
    """The message with each option as ``rename`` calls it.

    ``rename`` is given the option without its dashes, and its value where the message has a plain
    one; for ``None`` the option stays as it is. So does a whole command line.

    >>> with_other_names("--data or -o FOLDER", lambda name, value: f"<{name}:{value}>")
    '<data:None> or <output:FOLDER>'
    >>> with_other_names("later: deploykit build BUNDLE --batch 8", lambda *_: "x")
    'later: deploykit build BUNDLE --batch 8'
    >>> with_other_names("unknown architecture '--help', leave out --help", lambda *_: "x")
    "unknown architecture '--help', leave out x"
    """

    def renamed(found: re.Match[str]) -> str:
        name = found["long"] or _SHORT[found["short"]]
        return rename(name, found["value"]) or found[0]

    pieces, end = [], 0
    for command in _COMMAND.finditer(message):
        pieces += [_OPTION.sub(renamed, message[end : command.start()]), command[0]]
        end = command.end()
    return "".join((*pieces, _OPTION.sub(renamed, message[end:])))


def quoted(value: str) -> str:
    """A number or a placeholder as it is, a text in quotes.

    >>> quoted("8"), quoted("1%"), quoted("PATH"), quoted("auto"), quoted("L4")
    ('8', '"1%"', 'PATH', '"auto"', '"L4"')
    """
    is_placeholder = value.isupper() and not re.search(r"\d", value)
    return value if is_placeholder or re.fullmatch(r"[\d.]+", value) else f'"{value}"'

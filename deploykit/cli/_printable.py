"""Text of strangers, made harmless for a terminal: names and labels out of files."""

from __future__ import annotations

import re
from typing import Final

# C0 and C1 controls but newline and tab; marks that turn the direction of what follows; line and
# paragraph separators; halves of surrogates, which stand for bytes that are no UTF-8.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The text with control characters as escapes: a terminal would obey them.

    >>> printable("\x1b[2Jcat\r\n"), printable("\u202etac")
    ('\\x1b[2Jcat\\r\n', '\\u202etac')
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

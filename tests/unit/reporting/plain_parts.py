"""What holds for every hand-written part of a page."""

from __future__ import annotations

import re


def require_plain(text: str) -> None:
    """It is short, in ASCII, loads nothing and makes no HTML of text."""
    assert text.isascii()
    assert len(text.splitlines()) < 400
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|\bfetch\(|XMLHttp|import\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)

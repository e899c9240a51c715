"""Fenced blocks of the project's documents, and the commands in them.

A block is run by the tests (`sh`, `python`), or says in a comment in front of it why it is not:
``<!-- not run: needs a GPU -->``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = ("sh", "python")
"""Languages of the blocks that are run where nothing says otherwise."""

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"^(?:\$ )?(?:\S*/)?(deploykit [a-z].*)$")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    not_run: str | None

    @property
    def is_run(self) -> bool:
        return self.not_run is None and self.language in RUN


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """In the order of the page."""
    text = page.read_text(encoding="utf-8")
    return [Block(m["language"], m["text"], m["why"]) for m in _BLOCK.finditer(text)]


def spans(page: Path) -> list[str]:
    """Code within sentences, as it is written."""
    return _SPAN.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))


def commands(text: str) -> Iterator[list[str]]:
    """The arguments behind ``deploykit`` of each command in a block."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            found = _COMMAND.match(part.strip())
            if found:
                yield shlex.split(found[1], comments=True)[1:]


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them; a second heading of one text is not told apart."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in plain}

"""Tables in HTML, as notebooks show the objects that have one."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    right: Collection[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """A table of text; the columns named in ``right`` hold numbers, ``notes`` are sentences below.

    >>> html_table(("name", "ms"), [("a<b", "1.5")], right=("ms",))
    '<table><thead><tr><th>name</th><th>ms</th></tr></thead><tbody><tr><td>a&lt;b</td>\
<td style="text-align:right">1.5</td></tr></tbody></table>'
    """
    caption = "" if title is None else f"<caption>{escape(title)}</caption>"
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(_cell(text, column in right) for column, text in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return table + paragraphs(notes)


def paragraphs(sentences: Sequence[str]) -> str:
    """Sentences below one another."""
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _cell(text: str, is_number: bool) -> str:  # noqa: FBT001
    style = ' style="text-align:right"' if is_number else ""
    return f"<td{style}>{escape(text)}</td>"

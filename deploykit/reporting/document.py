"""One HTML file with its data, style, scripts and chart library, which loads nothing.

Data are never parsed as HTML or script: every ``<`` in them is escaped in the file, and the scripts
make text nodes of them.
"""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LIBRARY: Final = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
"""Observable Plot and the D3 that it draws with; ``assets/vendor/README.md`` says where from."""

_LICENCES: Final = ("vendor/d3.LICENSE", "vendor/plot.LICENSE")

SCRIPTS: Final = ("dom.js", "format.js", "chart.js", "theme.js")
"""Scripts that all pages have, before their own."""

STYLE: Final = "page.css"

_ENDS: Final = ("open", "close")
"""What stands before and behind the body of a page, in files of these names."""

_SUFFIXES: Final = (".html", ".htm")


def document(*, title: str, template: str, scripts: Sequence[str], style: str, data: Any) -> str:
    """A whole HTML document.

    Args:
        title: of the page, as text.
        template: HTML with the places ``{{title}}``, ``{{style}}``, ``{{library}}``, ``{{data}}``
            and ``{{script}}``; ``{{open}}`` and ``{{close}}`` have all of them, and the policy.
        scripts: the texts of the page's own, after those that all pages have.
        style: its own, after that of all pages.
        data: what becomes JSON; numbers that are not finite become ``null``.
    """
    parts = {
        "title": html.escape(title),
        "style": f"{shared_asset(STYLE)}\n{style}",
        "library": library(),
        "script": "\n".join((*map(shared_asset, SCRIPTS), *scripts)),
        "data": _json(data),
    }
    for place in _ENDS:
        template = template.replace(f"{{{{{place}}}}}", shared_asset(f"{place}.html"))
    # One pass, so that nothing in the data can pass for a place in the template.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def require_report_name(file: Path) -> Path:
    """Refuse the name of a report that no browser would show, before anything slow is done.

    Raises:
        UsageError: it does not end in ``.html``, or is a folder.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder\ngive the report a file: {file / 'report.html'}")
    if file.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{file} is no name of a report\nexpected one that ends in .html")
    return file


def library() -> str:
    """The chart library with its licences, which ask to be in all copies."""
    licences = "\n".join(map(shared_asset, _LICENCES))
    return "\n".join((f"/*\n{licences}*/", *map(shared_asset, LIBRARY)))


def shared_asset(name: str) -> str:
    """The text of a file that pages share."""
    return asset(__package__, name)


def asset(package: str, name: str) -> str:
    """The text of a file in the folder ``assets`` of a package."""
    return resources.files(package).joinpath("assets", name).read_text("utf-8")


def _json(data: Any) -> str:
    # allow_nan=False: Python would write NaN, which is no JSON and would stop the page's script.
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    # A "</script>" in the data would end the element that holds them.
    return text.replace("<", "\\u003c")


def _finite(data: Any) -> Any:
    """Replace numbers that are not finite by ``None``, as JSON has no notation for them."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data

"""The page: one HTML file with its data, its style and its script, which loads nothing."""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmark_reports.page_data import page_data

if TYPE_CHECKING:
    from deploykit.benchmarking.runs import BenchmarkRun

SCRIPTS: Final = (
    "dom.js",
    "format.js",
    "scales.js",
    "state.js",
    "plot.js",
    "chart.js",
    "ranked.js",
    "curves.js",
    "distribution.js",
    "roofline.js",
    "precisions.js",
    "columns.js",
    "table.js",
    "page.js",
)
"""In the order in which they build on one another."""


def page_of(run: BenchmarkRun) -> str:
    """A whole HTML document.

    What the data hold is never read as HTML or script: in the file every ``<`` of theirs is
    escaped, and the script makes text nodes of them.
    """
    data = page_data(run)
    parts = {
        "title": html.escape(f"Benchmark: {data['machine']}"),
        "style": _asset("page.css"),
        "script": "\n".join(map(_asset, SCRIPTS)),
        "data": _json(data),
    }
    # One pass, so that nothing in the data can pass for a place in the template.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _json(data: Any) -> str:
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(data: Any) -> Any:
    """A variation that overflows is as good as none, and JSON has no word for it."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")

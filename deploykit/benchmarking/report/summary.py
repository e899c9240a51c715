"""A run in two sentences: which row is the fastest, and what holds for all of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from deploykit.benchmarking.report.facts import figure
from deploykit.benchmarking.report.rows import Remark, remarks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.benchmarking.report.rows import Row

_NUMBER: Final = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?")


def sentence_of(rows: Sequence[Row]) -> str:
    """The fastest row and the cheapest image, of rows that nothing speaks against.

    Empty where there is no such row.
    """
    sound = [row for row in rows if not any(each.kind == "doubt" for each in remarks_of(row))]
    if not sound:
        return ""
    fastest = min(sound, key=lambda row: row.median_ms)
    cheapest = max(sound, key=lambda row: row.throughput_per_s)
    per_image = figure(1e3 / cheapest.throughput_per_s)
    rate = f"{figure(cheapest.throughput_per_s)} images/s"
    if fastest is cheapest:
        return (
            f"Fastest, and cheapest per image: {_name(fastest, rows)}: "
            f"{figure(fastest.median_ms)} ms, {per_image} ms per image ({rate})."
        )
    return (
        f"Fastest: {_name(fastest, rows)}: {figure(fastest.median_ms)} ms. "
        f"Cheapest per image: {_name(cheapest, rows)}: {per_image} ms ({rate})."
    )


def _name(row: Row, rows: Sequence[Row]) -> str:
    """What tells a row from the others."""
    parts = {
        "model": row.model,
        "precision": row.precision.upper(),
        "backend": f"on {row.backend}",
        "batch": f"batch {row.batch}",
        "scenario": row.scenario,
    }
    differing = [
        text for field, text in parts.items() if len({getattr(each, field) for each in rows}) > 1
    ]
    return " ".join(differing) or row.model


def common_remarks(rows: Sequence[Row]) -> tuple[tuple[Remark, frozenset[Remark]], ...]:
    """Remarks that every one of several rows has, each with its wordings in the rows.

    Remarks that differ in their numbers alone are one, with the range of each number:

    >>> _merged(["busy: 3% used", "busy: 12% used"])
    'busy: 3 to 12% used'
    """
    if len(rows) <= 1:
        return ()
    found: dict[tuple[str, str], dict[int, Remark]] = {}
    for at, row in enumerate(rows):
        for remark in remarks_of(row):
            kind = remark.kind, _NUMBER.sub("#", remark.sentence)
            found.setdefault(kind, {})[at] = remark
    shared = [list(each.values()) for each in found.values() if len(each) == len(rows)]
    return tuple(
        (Remark(alike[0].kind, _merged([each.sentence for each in alike])), frozenset(alike))
        for alike in shared
    )


def _merged(sentences: Sequence[str]) -> str:
    """One sentence of several that differ in their numbers alone."""
    numbers = iter(zip(*map(_NUMBER.findall, sentences), strict=True))

    def span(_: re.Match[str]) -> str:
        given = sorted(set(next(numbers)), key=lambda text: float(text.replace(",", "")))
        return given[0] if len(given) == 1 else f"{given[0]} to {given[-1]}"

    return _NUMBER.sub(span, sentences[0])

"""What a reader must know before he believes a row: doubts, the machine's state, warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deploykit.benchmarking.rows import Row

KINDS: Final = ("doubt", "condition", "warning", "note")
"""From the gravest to the mildest."""


BRACKETS: Final = (
    "A median in brackets has no interval: too few independent samples; measure longer."
)


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about one row, and of which of `KINDS` it is."""

    kind: str
    sentence: str


def remarks_of(row: Row) -> tuple[Remark, ...]:
    """Every remark about a row, the gravest first."""
    doubts = [row.achieved.doubt] if row.achieved and row.achieved.doubt else []
    if row.precision_proven not in (None, row.precision):
        doubts.append(f"{row.precision} was asked, the network is {row.precision_proven}")
    by_kind = zip(KINDS, (doubts, row.condition, row.warnings, row.notes), strict=True)
    return tuple(Remark(kind, sentence) for kind, given in by_kind for sentence in given)

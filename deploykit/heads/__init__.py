"""Heads: the meaning of outputs, their metrics, and how an answer is shown; numpy alone.

A kind of output is one file of this room, or one that another package adds by an entry point in
the group ``deploykit.heads``; it has its `Head` as ``HEAD``.
"""

from deploykit.heads._head import (
    Evaluation,
    Figures,
    Head,
    Table,
    Tally,
    figures_of,
    head_named,
    head_of,
    require_finite,
    worst_of,
)

__all__ = [
    "Evaluation",
    "Figures",
    "Head",
    "Table",
    "Tally",
    "figures_of",
    "head_named",
    "head_of",
    "require_finite",
    "worst_of",
]

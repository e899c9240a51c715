"""Intervals of estimates, from errors on published rows that had no part in the fit.

Conformal prediction on grouped data (Lee, Barber and Willett 2023, https://arxiv.org/abs/2306.06342):
within a group, here a GPU in a precision, the interval is as wide as the errors were; for a group
that was never seen it is as wide as that of most groups. What has few rows lies between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Groups: TypeAlias = Mapping[tuple[str, str], Sequence[float]]
    """|log ratio| of each held-out row, by GPU and precision."""

LEVEL: Final = 0.9
"""Share of measurements that an interval is to hold."""

ENOUGH: Final = 20
"""Rows of a group at which its own errors count as much as those of the other groups."""

LEAST_ROWS: Final = 5
"""Fewer say nothing about the width for groups that were never seen."""

GROUP_LEVEL: Final = 0.8
"""Share of the groups whose width is at most that of a group that was never seen."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and both ends of its interval, in whatever unit the field's name says."""

    value: float
    low: float
    high: float


def quantile(values: Sequence[float], level: float = LEVEL) -> float:
    """The conformal quantile: the smallest that ``level`` of n + 1 values do not pass.

    The largest where there are too few.

    >>> quantile([0.3, 0.1, 0.2]), quantile([float(at) for at in range(1, 20)])
    (0.3, 18.0)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered), ceil((len(ordered) + 1) * level)) - 1]


def half_width(group: tuple[str, str], groups: Groups) -> float:
    """Half of the interval of a group, as a difference of logarithms."""
    widths = [quantile(found) for found in groups.values() if len(found) >= LEAST_ROWS]
    unseen = quantile(widths, GROUP_LEVEL)
    own = groups.get(group, ())
    if not own:
        return unseen
    share = len(own) / (len(own) + ENOUGH)
    return share * quantile(own) + (1 - share) * max(unseen, quantile(own))


def interval(value: float, width: float) -> tuple[float, float]:
    """Both ends of the interval about ``value``.

    >>> tuple(round(end, 3) for end in interval(2.0, 0.2))
    (1.637, 2.443)
    """
    return value * exp(-width), value * exp(width)

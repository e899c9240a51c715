"""Checks of values that become part of a result, each with its message."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploykit.core.errors import UnknownNameError, UsageError

Series: TypeAlias = NDArray[np.float64]
"""Durations or moments (queries,), as `times` makes them."""


def require_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse a name that is not one of ``known``."""
    if name not in known:
        raise UnknownNameError(kind, name, known, ", ".join(known))


def require_at_least(least: int, **values: float) -> None:
    """Refuse numbers under ``least``, infinite ones and NaN."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise UsageError(f"{name} is {value}, expected {least} or more")


def times(name: str, given: Any) -> Series:
    """A read-only copy as float64 of durations or moments, all finite and not negative."""
    series = np.array(given, dtype=np.float64)  # a copy: the caller's array may go on growing
    if series.ndim != 1:
        raise UsageError(f"{name} has shape {series.shape}, expected one entry per query")
    if not np.isfinite(series).all() or (series < 0).any():
        raise UsageError(f"{name} holds a time that is negative, infinite or not a number")
    series.flags.writeable = False
    return series

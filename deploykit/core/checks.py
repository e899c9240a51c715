"""Checks of values that become part of a result, each with its message."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.precision import Precision, precisions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Series = NDArray[np.float64]


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


def precision(given: Any) -> Precision | None:
    """Read a precision by its name."""
    try:
        return None if given is None else Precision(given)
    except ValueError as exc:
        raise DataError(f"unknown precision {given!r}, known: {', '.join(precisions())}") from exc


def checked(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` as arguments of the dataclass ``cls``, whose fields have plain types."""
    require_keys(cls, data)
    for name, kind in get_type_hints(cls).items():
        require_type(name, data[name], kind)
    return dict(data)


def require_keys(cls: Any, data: Mapping[str, Any]) -> None:
    """Refuse plain data that has not exactly the fields of the dataclass ``cls`` as keys."""
    expected = {field.name for field in fields(cls)}
    if missing := sorted(expected - data.keys()):
        raise DataError(f"lacks the key {missing[0]!r}")
    if unknown := sorted(data.keys() - expected):
        raise DataError(f"has the unknown key {unknown[0]!r}")


def require_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that JSON did not give the type ``kind``; a whole number is a float, too."""
    # A bool is an int to isinstance, but true is no number of streams.
    right = isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)
    whole_for_float = kind in (float, float | None) and type(value) is int
    if not (right or whole_for_float):
        wanted = getattr(kind, "__name__", str(kind))
        raise DataError(f"{name} is {value!r:.40}, expected {wanted}")


def is_list_of_numbers(given: Any) -> bool:
    """Whether JSON gave a list of numbers, bools not counted."""
    return isinstance(given, list) and all(type(item) in (int, float) for item in given)

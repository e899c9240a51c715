"""The queries of A and B in rounds: what was measured, before anything is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from deploykit.benchmarking._checks import (
    is_list_of_numbers,
    require_keys,
    require_type,
    times,
)
from deploykit.benchmarking.results import Samples
from deploykit.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    Series = NDArray[np.float64]

MIN_PAIRS: Final = 20
"""Fewer rounds give an interval that is worth nothing."""


@dataclass(frozen=True, slots=True)
class Round:
    """Two blocks of queries, one right after the other; ``start_s`` of both have one origin."""

    a: Samples
    b: Samples

    @property
    def a_first(self) -> bool:
        """Which block came first; it is drawn by lot."""
        return bool(self.a.start_s[0] < self.b.start_s[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"a": self.a.to_dict(), "b": self.b.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            DataError: a key is missing or unknown, or a block is not one.
            UsageError: numbers that cannot be times.
        """
        require_keys(cls, data)
        for name in ("a", "b"):
            require_type(name, data[name], dict)
        return cls(Samples.from_dict(data["a"]), Samples.from_dict(data["b"]))


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """Every query of A against itself (``aa``: blocks A1 and A2), then of A against B (``ab``).

    ``warmup_a_ms`` and ``warmup_b_ms`` (warm-up queries,) do not count.

    Raises:
        UsageError: fewer than `MIN_PAIRS` rounds of one of them.
    """

    aa: tuple[Round, ...]
    ab: tuple[Round, ...]
    warmup_a_ms: Series
    warmup_b_ms: Series

    def __post_init__(self) -> None:
        for rounds in (self.aa, self.ab):
            require_pairs(len(rounds))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a float keeps every bit in JSON."""
        return {
            "aa": [each.to_dict() for each in self.aa],
            "ab": [each.to_dict() for each in self.ab],
            "warmup_a_ms": self.warmup_a_ms.tolist(),
            "warmup_b_ms": self.warmup_b_ms.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            DataError: a key is missing or unknown, or an entry is not a list of numbers or rounds.
            UsageError: numbers that cannot be times, or too few rounds.
        """
        require_keys(cls, data)
        for name in ("warmup_a_ms", "warmup_b_ms"):
            if not is_list_of_numbers(data[name]):
                raise DataError(f"{name} is not a list of numbers")
        return cls(
            aa=_rounds("aa", data["aa"]),
            ab=_rounds("ab", data["ab"]),
            warmup_a_ms=times("warmup_a_ms", data["warmup_a_ms"]),
            warmup_b_ms=times("warmup_b_ms", data["warmup_b_ms"]),
        )


def require_pairs(count: int) -> None:
    """Refuse fewer rounds than `MIN_PAIRS`."""
    if count < MIN_PAIRS:
        raise UsageError(f"{count} rounds of A and B\nexpected at least {MIN_PAIRS}")


def _rounds(name: str, given: Any) -> tuple[Round, ...]:
    require_type(name, given, list)
    for each in given:
        require_type(f"a round of {name}", each, dict)
    return tuple(Round.from_dict(each) for each in given)

"""Figures of one activation of two graphs, kept while images stream by."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.graph.qdq.insertion import ratio_db

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.core.specs import Array
    from deploykit.graph.activations import ActivationPair


@dataclass(frozen=True, slots=True)
class ValueComparison:
    """One activation on all images; ``reads`` are the values that it was computed from.

    ``sqnr_db`` is 10 log10(sum r^2 / sum (c - r)^2) for the reference's values r and the
    candidate's c: infinite where they are equal. It and ``cosine`` are NaN where a value is not
    finite or the shapes differ. Ranges are (smallest, largest) of the finite values.

    ``infinite_alike`` counts where both have the same infinity, as behind a mask: that is right,
    so it is counted nowhere else. ``non_finite`` are NaN, and infinities of one side alone.
    """

    name: str
    reference: str
    node: str
    op_type: str
    reads: tuple[str, ...]
    readers: tuple[str, ...]
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]
    cosine: float
    sqnr_db: float
    range: tuple[float, float]
    reference_range: tuple[float, float]
    non_finite: int
    reference_non_finite: int
    infinite_alike: int = 0

    @property
    def peak(self) -> float:
        """The candidate's largest finite magnitude."""
        return max(abs(self.range[0]), abs(self.range[1]))

    @property
    def reference_peak(self) -> float:
        """The reference's largest finite magnitude."""
        return max(abs(self.reference_range[0]), abs(self.reference_range[1]))


_CHUNK: Final = 2**15
"""Numbers that are raised to FP64 at a time: 256 KiB of each side stay in a core's cache."""


class Sums:
    """What is kept of an activation while images stream by."""

    def __init__(self) -> None:
        self._left, self._right = _Side(), _Side()
        self._dot = self._noise = 0.0
        self._alike = 0

    def add(self, candidate: Array, reference: Array) -> None:
        """Count the values of one run."""
        left, right = candidate.reshape(-1), reference.reshape(-1)
        self._left.shape, self._right.shape = candidate.shape, reference.shape
        for at in range(0, max(len(left), len(right)), _CHUNK):
            first = left[at : at + _CHUNK].astype(np.float64)
            second = right[at : at + _CHUNK].astype(np.float64)
            if candidate.shape == reference.shape:
                first, second = self._without_alike(first, second)
            self._left.add(first)
            self._right.add(second)
            if self._are_comparable():
                self._dot += _dot(first, second)
                self._left.power += _dot(first, first)
                self._right.power += _dot(second, second)
                first -= second
                self._noise += _dot(first, first)

    def _without_alike(
        self, left: NDArray[np.float64], right: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What is left without infinities that are at one place of both, as behind a mask."""
        if -inf < left.min() and left.max() < inf:
            return left, right
        alike = (left == right) & np.isinf(left)
        count = int(np.count_nonzero(alike))
        self._alike += count
        return (left[~alike], right[~alike]) if count else (left, right)

    def figures(self, pair: ActivationPair) -> ValueComparison:
        """The figures of all that was added."""
        left, right = self._left, self._right
        comparable = self._are_comparable()
        return ValueComparison(
            name=pair.name,
            reference=pair.reference,
            node=pair.node,
            op_type=pair.op_type,
            reads=pair.reads,
            readers=pair.readers,
            shape=left.shape,
            reference_shape=right.shape,
            cosine=self._cosine() if comparable else nan,
            sqnr_db=ratio_db(right.power, self._noise) if comparable else nan,
            range=(left.low, left.high) if left.low <= left.high else (nan, nan),
            reference_range=(right.low, right.high) if right.low <= right.high else (nan, nan),
            non_finite=left.non_finite,
            reference_non_finite=right.non_finite,
            infinite_alike=self._alike,
        )

    def _are_comparable(self) -> bool:
        finite = not self._left.non_finite and not self._right.non_finite
        return finite and self._left.shape == self._right.shape

    def _cosine(self) -> float:
        if self._noise == 0:
            return 1.0
        norms = sqrt(self._left.power) * sqrt(self._right.power)
        return self._dot / norms if norms else 0.0


class _Side:
    """Of one of the two."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.low, self.high = inf, -inf
        self.power = 0.0
        self.non_finite = 0

    def add(self, values: NDArray[np.float64]) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # min and max propagate NaN
            finite = np.isfinite(values)
            self.non_finite += int(values.size - np.count_nonzero(finite))
            low = float(values.min(where=finite, initial=inf))
            high = float(values.max(where=finite, initial=-inf))
        self.low, self.high = min(self.low, low), max(self.high, high)


def _dot(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    # Not `@`: BLAS shares a product of this length among threads, and waits for them longer.
    return float(np.einsum("i,i->", left, right))

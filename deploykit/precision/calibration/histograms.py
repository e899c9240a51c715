"""Counting the magnitudes of a stream of values, in memory that does not grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS: Final = 2048
"""As in TensorRT's calibrator; the largest value lies in the upper half of them."""

MIN_EXPONENT: Final = -100
"""The narrowest range is 2**-100: scaling it to bins still fits in FP32."""

_CHUNK: Final = 32768
"""Values counted at a time: what is made of them, 12 bytes each, stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often each magnitude of a tensor occurred.

    ``counts`` (B,) of |x| in equal bins from 0 to ``limit``; ``amax`` is the exact maximum, which
    lies below ``limit``.
    """

    counts: NDArray[np.int64]
    limit: float
    amax: float

    @property
    def bin_width(self) -> float:
        """In the tensor's own unit."""
        return self.limit / len(self.counts)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


class RunningHistogram:
    """Counts magnitudes as they come; the range doubles whenever a larger value does.

    Bins reach from 0 to the smallest power of two above the maximum. Scaling by a power of two is
    exact and two bins merge into one without loss, so the result depends on the values alone: not
    on their order, nor on how they were cut into batches.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 2 or bins & (bins - 1):  # noqa: PLR2004
            raise UsageError(f"a histogram of {bins} bins was asked\nexpected 2, 4, 8, ...")
        self._counts = np.zeros(bins, np.int64)
        self._exponent = MIN_EXPONENT
        self._amax = 0.0

    def add(self, values: NDArray[np.float32], every: int = 1) -> None:
        """Count the magnitudes of ``values``, of any shape.

        With ``every`` above 1 only each so-manieth value, from the first on, is counted; the
        maximum is that of all.

        Raises:
            DataError: a value is NaN or infinite; the histogram is of no use any more.
        """
        flat = values.reshape(-1)
        size = min(_CHUNK, -(-flat.size // every))
        magnitudes, places = np.empty(size, np.float32), np.empty(size, np.intp)
        for start in range(0, flat.size, _CHUNK * every):
            chunk = flat[start : start + _CHUNK * every]
            self._cover(chunk)
            sample = chunk[::every]
            # Slices only where the last chunk is short.
            self._count(sample, magnitudes[: sample.size], places[: sample.size])

    def merge(self, other: RunningHistogram) -> None:
        """Count everything that ``other``, of as many bins, has counted."""
        if other._amax > self._amax:
            self._grow(other._amax)
        self._counts += _folded(other._counts, self._exponent - other._exponent)

    def freeze(self) -> Histogram:
        """What was counted so far; later values do not change it."""
        counts = self._counts.copy()
        counts.setflags(write=False)
        return Histogram(counts, math.ldexp(1.0, self._exponent), self._amax)

    def _count(
        self, values: NDArray[np.float32], magnitudes: NDArray[np.float32], places: NDArray[np.intp]
    ) -> None:
        """One chunk that is covered; the last two are working space of its size."""
        np.abs(values, out=magnitudes)
        bins = len(self._counts)
        magnitudes *= np.float32(math.ldexp(bins, -self._exponent))
        places[:] = magnitudes  # rounds towards zero, which finds the bin
        self._counts += np.bincount(places, minlength=bins)

    def _cover(self, values: NDArray[np.float32]) -> None:
        largest = max(float(values.max()), -float(values.min()))  # both are NaN if any value is
        if largest > self._amax or math.isnan(largest):
            self._grow(largest)

    def _grow(self, largest: float) -> None:
        if not math.isfinite(largest):
            raise DataError("a value is NaN or infinite")
        # frexp gives 0.5 <= m < 1, so that the limit lies strictly above.
        exponent = max(math.frexp(largest)[1], self._exponent)
        self._counts = _folded(self._counts, exponent - self._exponent)
        self._exponent = exponent
        self._amax = max(self._amax, largest)


def _folded(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The same counts over a range so many times doubled, in as many bins."""
    if doublings == 0:
        return counts
    bins = len(counts)
    # Shifted by more than the number of bins' own exponent, everything is in the first.
    merged = min(1 << min(doublings, bins.bit_length()), bins)
    folded = np.zeros_like(counts)
    folded[: bins // merged] = counts.reshape(-1, merged).sum(axis=1)
    return folded

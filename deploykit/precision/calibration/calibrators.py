"""From the histogram of a tensor to the range that INT8 shall cover.

Each calibrator of `METHODS` is a pure function from a `Histogram` to ``amax``, the magnitude that
becomes 127: the scale of the tensor is ``amax / 127``. A new one is one more function here, under
the decorator `calibrator`, or in a module that another package names by an entry point in the group
``deploykit.calibrators``; the entry point has the name of the calibrator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import DataError, MissingDependencyError, UsageError
from deploykit.core.plugs import import_plug, plugs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


HALF_OCTAVES: Final = 20
"""Steps of a factor of 2 ** 0.5 that a table keeps, down to a thousandth of the largest value."""


def half_octaves(histogram: Histogram) -> tuple[int, ...]:
    """How many values lie in each half octave below the largest one, which comes first.

    The last has all that are smaller, zeros among them; of a tensor of zeros the first has all. A
    bin of the histogram counts where its centre lies.

    >>> half_octaves(Histogram(np.array([5, 0, 3, 1]), 4.0, 3.9))[:6]
    (1, 3, 0, 0, 0, 5)
    """
    centres = (np.arange(len(histogram.counts)) + 0.5) * histogram.bin_width
    below = np.floor(2 * np.log2(histogram.amax / centres)) if histogram.amax else centres * 0
    places = np.clip(below, 0, HALF_OCTAVES - 1).astype(np.int64)
    counts = np.bincount(places, weights=histogram.counts, minlength=HALF_OCTAVES)
    return tuple(map(int, counts))


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


LEVELS: Final = 127
"""Largest magnitude of symmetric INT8: -127 to 127, as TensorRT quantizes."""

PERCENTILE: Final = 99.99
"""Share of magnitudes that the percentile method leaves unclipped, in percent."""

ALL_ZERO_AMAX: Final = 1.0
"""For a tensor that was never anything but zero: its range is unknown, its scale must not be 0."""

ALL_ZERO_BELOW: Final = 2.0 ** (MIN_EXPONENT - 1)
"""Below it a tensor counts as zeros: its values lie in a few bins, its scale is lost in FP16."""

_GROUPS: Final = LEVELS + 1
"""Quantized bins of the entropy method: the magnitudes 0 to 127."""

_CLIP_STEP: Final = 4
"""Bins from one candidate of the squared-error method to the next, 0.2 to 0.4 % of the range."""


_methods: dict[str, Callable[[Histogram], float]] = {}

_ROOM: Final = "calibrators"


class _Methods(Mapping[str, "Callable[[Histogram], float]"]):
    """Our calibrators, then those of installed packages, which are imported on first use."""

    def __getitem__(self, name: str) -> Callable[[Histogram], float]:
        return _available()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_available())

    def __len__(self) -> int:
        return len(_available())


METHODS: Final[Mapping[str, Callable[[Histogram], float]]] = _Methods()
"""All calibrators by name; every one returns a positive, finite number."""


def _available() -> dict[str, Callable[[Histogram], float]]:
    installed = plugs(_ROOM)
    for name in installed:
        import_plug(_ROOM, name)
        if name not in _methods:
            raise MissingDependencyError(
                f"the plug-in {name!r} of deploykit.{_ROOM} registers no calibrator of this name\n"
                f"{installed[name]} must have a function under @calibrator({name!r})"
            )
    # A plug-in that was uninstalled while the process ran is still imported, and does not count.
    return {
        name: function
        for name, function in _methods.items()
        if function.__module__ == __name__ or name in installed
    }


def _origin(function: Callable[[Histogram], float]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def calibrator(name: str) -> Callable[[Callable[[Histogram], float]], Callable[[Histogram], float]]:
    """Register a function from a histogram to ``amax`` under ``name``.

    The function is never asked about a tensor of zeros: that has `ALL_ZERO_AMAX` by every method.

    Raises:
        UsageError: another function has this name.
    """

    def register(function: Callable[[Histogram], float]) -> Callable[[Histogram], float]:
        # The same function again is its module imported anew, as a notebook does.
        if name in _methods and _origin(_methods[name]) != _origin(function):
            raise UsageError(
                f"two calibrators are called {name!r}\nexpected another name than "
                f"{', '.join(_methods)}"
            )

        @wraps(function)
        def guarded(histogram: Histogram) -> float:
            all_zero = histogram.amax < ALL_ZERO_BELOW
            return ALL_ZERO_AMAX if all_zero else function(histogram)

        _methods[name] = guarded
        return guarded

    return register


@calibrator("max")
def largest(histogram: Histogram) -> float:
    """Clip nothing."""
    return histogram.amax


@calibrator("percentile")
def percentile(histogram: Histogram) -> float:
    """Clip all but `PERCENTILE` of the magnitudes, zeros counted, interpolated within a bin.

    Where that would leave zeros only, nothing is clipped: the rare other values are the signal.
    """
    cumulative = np.cumsum(histogram.counts)
    rank = PERCENTILE / 100 * float(cumulative[-1])
    place = int(np.searchsorted(cumulative, rank))
    if place == 0:
        return histogram.amax
    below = float(cumulative[place - 1])
    part = (rank - below) / float(histogram.counts[place])
    return min((place + part) * histogram.bin_width, histogram.amax)


@calibrator("entropy")
def entropy(histogram: Histogram) -> float:
    """Clip where the distribution loses the least information, as TensorRT's calibrator did.

    Every number of bins from 128 up is a candidate. P is what lies below it, the clipped values
    put in its last bin; Q is the same without them, flattened into 128 groups, each spread evenly
    over those of its bins that are not empty. The candidate with the smallest KL(P, Q) wins, the
    largest of equals.

    Source: S. Migacz, "8-bit inference with TensorRT", NVIDIA GTC 2017. Two things that the slides
    leave open: exact zeros, which INT8 has exactly, do not count (a ReLU's would outweigh all
    else); and a candidate that puts clipped values in an empty bin, where KL is infinite, cannot
    win (smoothing Q instead lets such candidates win by accident).
    """
    counts = _without_zeros(histogram)
    filled = int(np.flatnonzero(counts)[-1]) + 1
    if filled <= _GROUPS:
        return histogram.amax
    divergence = _divergences(counts[:filled])
    best = filled - int(np.argmin(divergence[::-1]))
    return min(best * histogram.bin_width, histogram.amax)


@calibrator("mse")
def mse(histogram: Histogram) -> float:
    """Clip where the expected squared error of rounding and clipping together is smallest."""
    counts = _without_zeros(histogram)
    errors = _squared_errors(len(counts))
    best = _clips(len(counts))[np.argmin(errors @ counts)]
    return min(float(best) * histogram.bin_width, histogram.amax)


def _without_zeros(histogram: Histogram) -> NDArray[np.float64]:
    """The counts; the first bin, where exact zeros are, gets its neighbour's."""
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    return counts


def _divergences(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(P, Q) for clipping behind 128, 129, ... all bins, from sums that the candidates share.

    With c the counts, T their sum, S the sum of a candidate's, o = T - S what it clips and a the
    average of the filled bins in a bin's group: P = c / T, Q = a / S, and
    T KL = sum(c log c) - sum(c log a) - T log(T / S), where the last bin's c is c + o.
    """
    sizes = np.arange(_GROUPS, len(counts) + 1)
    # One table for all: made for each tensor's own last bin they took two megabytes a tensor.
    edges = _group_edges(max(BINS, len(counts)))[: len(sizes)]
    sums, filled = _running_sum(counts), _running_sum(counts > 0)
    group_sums, group_filled = np.diff(sums[edges]), np.diff(filled[edges])
    log_average = np.log(np.maximum(group_sums, 1) / np.maximum(group_filled, 1))
    last, inside, total = counts[sizes - 1], sums[sizes], sums[-1]
    clipped = total - inside
    own = _running_sum(_x_log_x(counts))[sizes] - _x_log_x(last) + _x_log_x(last + clipped)
    other = np.einsum("ij,ij->i", group_sums, log_average) + clipped * log_average[:, -1]
    divergence = (own - other) / total - np.log(total / np.maximum(inside, 1))
    divergence[(last == 0) & (clipped > 0)] = np.inf
    return np.asarray(divergence)


@cache
def _group_edges(bins: int) -> NDArray[np.intp]:
    """First bin of each of 128 groups, and the end, for 128, 129, ... bins: (bins - 127, 129).

    Bin j of n belongs to group floor(128 j / n).
    """
    sizes = np.arange(_GROUPS, bins + 1)[:, None]
    return -(-np.arange(_GROUPS + 1) * sizes // _GROUPS)


def _clips(bins: int) -> NDArray[np.intp]:
    return np.arange(_GROUPS, bins + 1, _CLIP_STEP)


@cache
def _squared_errors(bins: int) -> NDArray[np.float64]:
    """Mean squared error of a value in each bin, for each of `_clips`, in squared bin widths.

    Values lie evenly within a bin. The integral of the squared error from 0 to x is
    k s^3 / 12 + (x - k s)^3 / 3 with k = round(x / s), and k = 127 beyond the clip.
    """
    scale = _clips(bins)[:, None] / LEVELS
    edges = np.arange(bins + 1, dtype=np.float64)
    level = np.minimum(np.rint(edges / scale), LEVELS)
    return np.diff(level * scale**3 / 12 + (edges - level * scale) ** 3 / 3)


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.maximum(values, 1))


def _running_sum(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """The sum of the first n, for n from 0 on."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])

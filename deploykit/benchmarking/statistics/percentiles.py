"""Percentiles with intervals from order statistics, also of dependent samples."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Series = NDArray[np.float64]


_CHANCE: Final = 6.0
"""Excess in standard errors of a correlation, 1 / sqrt(n), that chance alone may give."""


def statistical_inefficiency(values: NDArray[Any]) -> float:
    """Number of dependent samples worth one independent sample: 1 + 2 x sum of correlations.

    The sum ends by Geyer's initial positive sequence (Practical Markov chain Monte Carlo,
    Statistical Science 7, 1992): at the first pair of lags whose correlations add up to nothing
    positive. 1.0 where the excess over 1 is what independent samples show by chance.
    """
    series = np.asarray(values, dtype=np.float64)
    count = len(series)
    correlation = autocorrelation(series)
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    positive = pairs[: ends[0]] if len(ends) else pairs
    inefficiency = min(2 * float(positive.sum()) - 1, float(count))
    return inefficiency if inefficiency > 1 + _CHANCE / count**0.5 else 1.0


def autocorrelation(series: Series) -> Series:
    """The correlation at lag 0, 1, ... (n,); all zero but for lag 0 where nothing varies."""
    count = len(series)
    centred = series - series.mean()
    # Twice the length, so that the end does not wrap around onto the begin.
    spectrum = np.fft.rfft(centred, 2 << (count - 1).bit_length())
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    if covariance[0] <= 0:
        # A constant series has no variance to divide by, and nothing to be correlated.
        covariance = np.eye(1, count)[0]
    correlation: Series = covariance / covariance[0]
    return correlation


CONFIDENCE: Final = 0.99
"""Confidence of intervals, that of MLPerf Inference."""

_SPREAD: Final = 12  # standard deviations, beyond which a binomial has no mass in float64


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile and the interval that holds the true one with ``confidence``.

    ``level`` is in percent, the others are in the unit of the samples. ``effective_samples`` are
    the independent samples that the series is worth.
    """

    level: float
    value: float
    low: float
    high: float
    confidence: float
    effective_samples: int


def percentile(
    samples: Series, level: float, *, confidence: float = CONFIDENCE
) -> Percentile | None:
    """The percentile ``level`` with its interval, ``None`` where the samples do not carry it.

    The value is interpolated as numpy does by default. The interval is distribution-free: the
    number of samples below the true percentile is binomial, so two order statistics hold it
    between them (Hahn and Meeker, Statistical Intervals, section 5.2). Dependent samples are
    first discounted by `statistical_inefficiency`. Where even the smallest and the largest sample
    do not hold it with that confidence, nothing may be said.

    Raises:
        UsageError: a level outside of 0 to 100 or a confidence outside of 0 to 1, both exclusive.
    """
    _require_between(level, confidence)
    if not len(samples):
        return None
    ordered = np.sort(samples)
    value = float(np.percentile(ordered, level))
    effective = floor(len(samples) / statistical_inefficiency(samples <= value))
    ranks = interval_ranks(effective, level, confidence=confidence)
    if ranks is None:
        return None
    # Ranks among the independent samples, stretched to the series, rounded outwards. In integers:
    # in floats the last rank times the ratio can end above the number of samples.
    first, last = (rank * len(samples) for rank in ranks)
    return Percentile(
        level=level,
        value=value,
        low=float(ordered[first // effective - 1]),
        high=float(ordered[-(-last // effective) - 1]),
        confidence=confidence,
        effective_samples=effective,
    )


def interval_ranks(
    count: int, level: float, *, confidence: float = CONFIDENCE
) -> tuple[int, int] | None:
    """Ranks, from 1, of the two of ``count`` independent sorted samples around the percentile.

    Each side errs with at most half of what ``confidence`` leaves; ``None`` where no rank does.

    >>> interval_ranks(100, 50, confidence=0.95)
    (40, 61)
    >>> interval_ranks(100, 99, confidence=0.95) is None
    True

    Raises:
        UsageError: a level outside of 0 to 100 or a confidence outside of 0 to 1, both exclusive.
    """
    _require_between(level, confidence)
    numbers, mass = _binomial(count, level / 100)
    tail = (1 - confidence) / 2
    # The n-th sample lies above the percentile where fewer than n samples lie below it.
    below = np.cumsum(mass)
    above = np.cumsum(mass[::-1])[::-1]
    lows, highs = np.flatnonzero(below <= tail), np.flatnonzero(above <= tail)
    if not len(lows) or not len(highs):
        return None
    return int(numbers[lows[-1]]) + 1, int(numbers[highs[0]])


def samples_needed(level: float, *, confidence: float = CONFIDENCE) -> int:
    """Fewest independent samples from which an interval of the percentile ``level`` exists.

    >>> samples_needed(50), samples_needed(90), samples_needed(99), samples_needed(99.9)
    (8, 51, 528, 5296)

    Raises:
        UsageError: a level outside of 0 to 100 or a confidence outside of 0 to 1, both exclusive.
    """
    _require_between(level, confidence)
    nearer = max(level, 100 - level) / 100
    return ceil(log((1 - confidence) / 2) / log(nearer))


def coefficient_of_variation(samples: Series) -> float | None:
    """Standard deviation over mean, as a share; ``None`` for one sample or a mean of zero."""
    if len(samples) <= 1 or not samples.mean():
        return None
    return float(samples.std(ddof=1) / samples.mean())


def _require_between(level: float, confidence: float) -> None:
    if not 0 < level < 100:  # noqa: PLR2004
        raise UsageError(f"a percentile of {level}, expected more than 0 and less than 100")
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence}, expected more than 0 and less than 1")


def _binomial(count: int, share: float) -> tuple[NDArray[np.int64], Series]:
    """Numbers of successes and their probabilities, where these are not zero in float64."""
    reach = _SPREAD * (count * share * (1 - share)) ** 0.5 + 2 * _SPREAD
    first = max(0, floor(count * share - reach))
    last = min(count, ceil(count * share + reach))
    numbers = np.arange(first, last + 1)
    # Each from the one before; only their ratios matter, so no factorial is needed.
    steps = np.log((count - numbers[:-1]) / (numbers[:-1] + 1) * (share / (1 - share)))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    # Less the largest, so that the exponential does not overflow.
    mass = np.exp(logs - logs.max())
    return numbers, mass / mass.sum()

"""How much less a series of dependent samples knows than as many independent ones.

Latencies are not independent: clocks, neighbours and queues last longer than one query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Series = NDArray[np.float64]

_CHANCE: Final = 6.0
"""Standard errors of a lag's correlation, 1 / sqrt(n), that independent samples reach by chance."""


def statistical_inefficiency(values: NDArray[Any]) -> float:
    """How many dependent samples are worth one independent sample: 1 + 2 x sum of correlations.

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
        covariance = np.eye(1, count)[0]
    correlation: Series = covariance / covariance[0]
    return correlation

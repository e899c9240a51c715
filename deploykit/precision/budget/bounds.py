"""Upper confidence bounds of a loss of accuracy, and how many images a bound needs.

All are one-sided, and of pairs: each image is answered by the FP32 graph and by the converted one.
An upper bound of 95 % is below the true loss for one set of images in twenty at the most.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, e, exp, lgamma, log, log1p, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
"""One-sided: the budget is promised, that the loss is above something is not."""

_Z: Final = 1.6448536
"""One-sided 95 % quantile of the normal distribution."""

_HALVINGS: Final = 50
"""Of an interval of length 1: its ends are then one number in double precision."""


def share_upper(changed: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Exact upper bound of a share (Clopper and Pearson 1934, Biometrika 26, 404-413).

    No changed answer among 100 images still leaves 3 points possible.

    >>> round(share_upper(0, 100), 4), round(share_upper(2, 1000), 4)
    (0.0295, 0.0063)
    """
    if changed >= count:
        return 1.0
    return _largest(lambda share: _at_most(changed, count, share) >= 1 - confidence)


def net_upper(lost: int, gained: int, count: int) -> float:
    """Upper bound of a drop of top-1, of so many images that became wrong, and that became right.

    The score bound of a difference of paired shares (Tango 1998, Statistics in Medicine 17,
    891-908), which is McNemar's test turned round. Where few answers change it is too hopeful, so
    the exact bound of the lost ones less the gained share counts where it is higher.

    >>> round(net_upper(0, 0, 100), 4), net_upper(12, 9, 1000) < net_upper(12, 0, 1000)
    (0.0295, True)
    """
    exact = share_upper(lost, count) - gained / count
    return min(1.0, max(exact, _largest(lambda drop: _score(lost, gained, count, drop) >= -_Z)))


def mean_upper(mean: float, count: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of the mean of losses from 0 to 1, whatever their distribution.

    The bound of Hoeffding and Bentkus (Bates et al. 2021, Journal of the ACM 68, 43, section 3.1).

    >>> round(mean_upper(0.0, 100), 4), round(mean_upper(0.01, 1000), 4)
    (0.0295, 0.0189)
    """
    if mean >= 1:
        return 1.0

    def is_possible(limit: float) -> bool:
        if limit <= mean:
            return True
        hoeffding = exp(-count * _relative_entropy(mean, limit))
        bentkus = e * _at_most(ceil(count * mean), count, limit)
        return min(hoeffding, bentkus) >= 1 - confidence

    return _largest(is_possible)


def images_needed(drop: float, confidence: float = CONFIDENCE) -> int:
    """Images of which no answer may change, so that the bound is not above ``drop``.

    >>> images_needed(0.01), images_needed(0.001)
    (299, 2995)
    """
    return ceil(log(1 - confidence) / log1p(-drop))


def least_bound(count: int) -> float:
    """What ``count`` images leave possible at the best, when no answer changes.

    >>> round(least_bound(100), 4)
    0.0295
    """
    return share_upper(0, count)


def _largest(is_possible: Callable[[float], bool]) -> float:
    """The largest share for which it is, of those from 0 to a share; the end above it."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_possible(middle) else (low, middle)
    return high


def _at_most(hits: int, count: int, share: float) -> float:
    """Probability of so many hits or fewer, of a binomial distribution."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(hits >= count)
    ways = _log_ways(min(hits, count), count)
    k = np.arange(len(ways))
    return float(np.exp(ways + k * log(share) + (count - k) * log1p(-share)).sum())


@lru_cache(maxsize=64)
def _log_ways(most: int, count: int) -> NDArray[np.float64]:
    """Logarithms of the binomial coefficients of ``count`` over 0 to ``most``."""
    return np.array(
        [lgamma(count + 1) - lgamma(k + 1) - lgamma(count - k + 1) for k in range(most + 1)]
    )


def _score(lost: int, gained: int, count: int, drop: float) -> float:
    """Tango's statistic of the hypothesis that the true drop is ``drop``."""
    b = -lost - gained + (2 * count - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    nuisance = (sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)
    variance = count * (2 * nuisance + drop * (1 - drop))
    difference = lost - gained - count * drop
    if variance <= 0:
        return 0.0 if difference == 0 else difference * float("inf")
    return difference / sqrt(variance)


def _relative_entropy(mean: float, limit: float) -> float:
    rest = (1 - mean) * log((1 - mean) / (1 - limit))
    return rest + (mean * log(mean / limit) if mean > 0 else 0.0)

"""Ratios of signal to noise in decibels."""

from __future__ import annotations

from math import inf, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]


def ratio_db(signal_power: float, noise_power: float) -> float:
    """Signal to noise, 10 log10 of the ratio of their powers.

    Infinite where there is no noise, minus infinity where there is noise but no signal.

    >>> ratio_db(1000.0, 1.0), ratio_db(0.0, 0.0), ratio_db(0.0, 1.0)
    (30.0, inf, -inf)
    """
    if noise_power == 0:
        return inf
    return 10 * log10(signal_power / noise_power) if signal_power else -inf

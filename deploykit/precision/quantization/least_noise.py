"""Scales of a value's channels with the least expected INT8 noise in the layers that read it.

A power of the ranges (SmoothQuant) has one number for all channels. Here each channel has its own,
found by descent on the noise that the rounding of independent values makes: with x' = x / s of the
step D = max(r / s) / 127, and a weight of the steps d_j = max_k |w_kj| s_k / 127, the outputs of a
layer have

    D^2 / 12 * sum_k s_k^2 |w_k|^2  +  sum_j d_j^2 / 12 * sum_k E[x_k^2] / s_k^2.

r are the largest magnitudes of the channels, w_k a row of the weight; 1/12 is the variance of a
rounding in steps of 1 (Bennett 1948, Spectra of quantized signals, equation 1.6).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


STEPS: Final = 40
"""Of the descent: more of them change next to nothing."""

FIRST_STEP: Final = 0.1
"""Largest change of a scale's logarithm at once; it falls to 0 towards the last step."""

_LEVELS: Final = 127.0

_MEAN: Final = 0.9
_POWER: Final = 0.99
"""What is kept of the gradient's mean and power (Kingma and Ba 2015, Adam,
https://arxiv.org/abs/1412.6980); a scale's descent is short, so that less of the power is kept."""


@dataclass(frozen=True)
class Channels:
    """What the noise depends on, beside the scales.

    ``width`` and ``power`` (K,) are the largest magnitude and the mean square of each channel,
    ``weight`` is (K, N), that of all layers that read the value.
    """

    width: Floats
    power: Floats
    weight: Floats

    def noise_of(self, scale: Floats) -> float:
        """The expected noise with ``scale`` (K,): its power in a row of the outputs."""
        return self._noise_and_gradient(scale)[0]

    def refine(self, scale: Floats) -> Floats:
        """The scales (K,) with the least noise on the way down from ``scale``."""
        logs = np.log(scale.astype(np.float64))
        mean, power = np.zeros_like(logs), np.zeros_like(logs)
        best, least = scale, np.inf
        for step in range(STEPS):
            tried = np.exp(logs).astype(np.float32)
            noise, gradient = self._noise_and_gradient(tried)
            if noise < least:
                best, least = tried, noise
            mean = _MEAN * mean + (1 - _MEAN) * gradient
            power = _POWER * power + (1 - _POWER) * np.square(gradient)
            first, second = 1 - _MEAN ** (step + 1), 1 - _POWER ** (step + 1)
            size = np.sqrt(power / second) + np.finfo(np.float64).tiny
            logs -= FIRST_STEP * (1 - step / STEPS) * mean / first / size
        return best

    @cached_property
    def _magnitudes(self) -> Floats:
        """Of the weight, as (N, K): its largest ones are looked for in whole lines of memory."""
        return np.ascontiguousarray(np.abs(self.weight.T))

    @cached_property
    def _row_powers(self) -> Floats:
        found: Floats = np.square(self.weight).sum(axis=1)
        return found

    def _noise_and_gradient(self, scale: Floats) -> tuple[float, NDArray[np.float64]]:
        """The noise, and its relative change by the logarithm of each scale."""
        rows = np.square(scale) * self._row_powers
        values = self.power / np.square(scale)
        reach = self.width / scale
        widest = int(reach.argmax())
        step = (float(reach[widest]) / _LEVELS) ** 2 / 12
        scaled = self._magnitudes * scale
        ends = scaled.argmax(axis=1)
        steps = np.square(np.take_along_axis(scaled, ends[:, None], 1)[:, 0] / _LEVELS) / 12
        inputs, weights = step * float(rows.sum()), float(steps.sum()) * float(values.sum())
        gradient = 2.0 * step * rows - 2.0 * float(steps.sum()) * values
        gradient[widest] -= 2 * inputs
        gradient += np.bincount(ends, 2 * float(values.sum()) * steps, len(scale))
        noise = inputs + weights
        return noise, gradient / noise if noise else np.zeros(len(scale))

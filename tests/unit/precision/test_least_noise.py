"""Scales of channels with the least noise: against rounding itself, and another minimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.precision.quantization.least_noise import Channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

WIDTH, HIDDEN, ROWS = 24, 40, 20_000

FEW = 6
"""Channels for a minimiser that tries scales by chance."""


def layer(seed: int) -> tuple[Floats, Floats]:
    """Rows whose channels differ by a hundred times, and a weight whose rows differ too."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(ROWS, WIDTH)) * 10 ** random.uniform(-1, 1, WIDTH)
    weight = random.normal(size=(WIDTH, HIDDEN)) * 10 ** random.uniform(-0.5, 0.5, (WIDTH, 1))
    return rows.astype(np.float32), weight.astype(np.float32)


def channels(rows: Floats, weight: Floats) -> Channels:
    return Channels(np.abs(rows).max(axis=0), np.square(rows).mean(axis=0), weight)


def rounding_noise(rows: Floats, weight: Floats, scale: NDArray[np.floating]) -> float:
    """What INT8 changes in the outputs of a row, by rounding values and weights."""
    values, scaled = rows.astype(np.float64) / scale, weight.astype(np.float64) * scale[:, None]
    step, steps = np.abs(values).max() / 127, np.abs(scaled).max(axis=0) / 127
    product = (np.round(values / step) * step) @ (np.round(scaled / steps) * steps)
    return float(np.square(product - values @ scaled).sum(axis=1).mean())


def expected_noise(rows: Floats, weight: Floats, logs: NDArray[np.float64]) -> float:
    """The formula, as the module's documentation has it."""
    scale, width = np.exp(logs), np.abs(rows).max(axis=0).astype(np.float64)
    inputs = (max(width / scale) / 127) ** 2 / 12 * (scale**2 @ (weight**2).sum(axis=1))
    steps = np.abs(weight * scale[:, None]).max(axis=0) / 127
    return float(inputs + (steps**2).sum() / 12 * ((rows**2).mean(axis=0) / scale**2).sum())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_expected_noise_is_that_of_rounding(strength: float) -> None:
    rows, weight = layer(1)
    given = channels(rows, weight)
    scale = (given.width**strength).astype(np.float32)
    found = rounding_noise(rows, weight, scale)
    assert given.noise_of(scale) == pytest.approx(found, rel=0.15)


def test_refined_scales_are_as_good_as_those_of_another_minimiser() -> None:
    from scipy import optimize

    rows, weight = (each[:, :FEW] if each.shape[1] == WIDTH else each[:FEW] for each in layer(3))
    rows = rows[:256]
    given = channels(rows, weight)
    found = np.log(given.refine(np.ones(FEW, np.float32)).astype(np.float64))
    other = optimize.differential_evolution(
        lambda logs: np.log(expected_noise(rows, weight, logs)),
        [(middle - 2, middle + 2) for middle in np.log(given.width) / 2],
        maxiter=60, popsize=10, rng=3, polish=False,
    )  # fmt: skip
    ours = expected_noise(rows, weight, found)
    assert ours < 1.02 * np.exp(other.fun)
    assert ours < 0.6 * expected_noise(rows, weight, np.zeros(FEW))

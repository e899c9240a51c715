from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.graph.qdq.insertion import (
    MIN_SCALE,
    PIECE_NUMBERS,
    channel_scales,
    dequantize,
    quantize,
    scale_of,
    sqnr_db,
)
from tests.graphs import normal


@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_fills_the_range(axis: int) -> None:
    weight = normal(5, 4, 3, 3)
    scales = channel_scales(weight, axis)
    steps = np.moveaxis(quantize(weight, scales, axis), axis, 0)
    assert scales.shape == (weight.shape[axis],)
    assert all(np.abs(channel.astype(int)).max() == 127 for channel in steps)


@settings(max_examples=50, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-12, 1e12), st.sampled_from([0, 1]))
def test_rounding_is_off_by_half_a_step_at_most(seed: int, size: float, axis: int) -> None:
    weight = normal(4, 6, 2, seed=seed, scale=size)
    scales = channel_scales(weight, axis)
    error = np.abs(dequantize(quantize(weight, scales, axis), scales, axis) - weight)
    assert (np.moveaxis(error, axis, -1) <= scales * 0.5001).all()


def test_scales_of_nothing_are_still_positive() -> None:
    assert float(scale_of(0.0)) == MIN_SCALE
    assert channel_scales(np.zeros((2, 3), np.float32), 0).tolist() == [MIN_SCALE] * 2


def test_signal_to_noise() -> None:
    signal = np.array([3.0, 4.0], np.float32)
    assert sqnr_db(signal, signal) == float("inf")
    assert sqnr_db(signal, signal + np.float32(0.5)) == pytest.approx(10 * np.log10(25 / 0.5))
    assert sqnr_db(np.zeros(1, np.float32), np.ones(1, np.float32)) == float("-inf")


def test_signal_to_noise_of_more_than_a_piece() -> None:
    """Also of values that do not lie in order, as a transposed weight's."""
    signal = normal(3, PIECE_NUMBERS // 2).T
    noisy = signal + normal(PIECE_NUMBERS // 2, 3, seed=1, scale=0.01)
    exact = signal.astype(np.float64)
    expected = 10 * np.log10(np.square(exact).sum() / np.square(exact - noisy).sum())
    assert sqnr_db(signal, noisy) == pytest.approx(expected, rel=1e-12)

"""Scales and INT8 values of weights and activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.decibels import ratio_db

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.graph.qdq.plan import QdqPlan

    Floats = NDArray[np.float32]

INT8_MAX: Final = 127
"""Largest INT8 step. The range is symmetric, without -128, so that each step has a negative."""

MIN_SCALE: Final = 2.0**-60
"""Smallest scale. A kernel multiplies the scales of its input and its weight: the product of two
such scales, 2^-120, is still a normal FP32 number (those end at 2^-126)."""

PIECE_NUMBERS: Final = 2**20
"""Numbers that are held in float64 at a time: 8 MiB."""


def scale_of(amax: float) -> np.float32:
    """Size of one step when values up to ``amax`` fill the 127 steps; never 0.

    >>> float(scale_of(254.0)), float(scale_of(0.0)) > 0
    (2.0, True)
    """
    return np.float32(max(amax / INT8_MAX, MIN_SCALE))


def channel_scales(weight: Floats, axis: int) -> Floats:
    """One step for each index of ``axis``, from the largest magnitude there; shape (C,)."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    amax = np.abs(weight).max(axis=others, initial=0.0)
    scales: Floats = np.maximum(amax.astype(np.float64) / INT8_MAX, MIN_SCALE).astype(np.float32)
    return scales


def quantize(weight: Floats, scales: Floats, axis: int) -> NDArray[np.int8]:
    """Round to the nearest of -127 ... 127 steps, halves to the even one."""
    # rint rounds halves to even, as QuantizeLinear does.
    steps = np.rint(weight / along(scales, weight.ndim, axis))
    stored: NDArray[np.int8] = np.clip(steps, -INT8_MAX, INT8_MAX).astype(np.int8)
    return stored


def dequantize(steps: NDArray[np.int8], scales: Floats, axis: int) -> Floats:
    """The values that INT8 weights stand for."""
    values: Floats = steps.astype(np.float32) * along(scales, steps.ndim, axis)
    return values


def along(scales: Floats, ndim: int, axis: int) -> Floats:
    """(C,) as (1, ..., C, ..., 1), to be multiplied with a tensor of ``ndim`` dimensions."""
    return scales.reshape([-1 if index == axis else 1 for index in range(ndim)])


def sqnr_db(signal: Floats, approximation: Floats) -> float:
    """Signal to quantization noise ratio, 10 log10(sum x^2 / sum (x - q)^2), in dB.

    Infinite where there is no noise, minus infinity where there is noise but no signal.
    """
    power = noise = 0.0
    for exact, found in zip(_pieces(signal), _pieces(approximation), strict=True):
        power += float(np.square(exact).sum())
        noise += float(np.square(exact - found).sum())
    return ratio_db(power, noise)


def _pieces(values: Floats) -> Iterator[NDArray[np.float64]]:
    """All values in float64, in pieces: a whole classifier's weight would take gigabytes."""
    flat = values.reshape(-1)
    return (
        flat[at : at + PIECE_NUMBERS].astype(np.float64)
        for at in range(0, flat.size, PIECE_NUMBERS)
    )


def weight_sqnr_db(model: ir.Model, plan: QdqPlan) -> dict[str, float]:
    """SQNR of each weight of the plan in dB, by the name of its layer."""
    found = {}
    for item in plan.weights:
        constant = model.graph.initializers[item.tensor].const_value
        if constant is not None:
            weight = constant.numpy()
            scales = channel_scales(weight, item.axis)
            restored = dequantize(quantize(weight, scales, item.axis), scales, item.axis)
            found[item.node] = sqnr_db(weight, restored)
    return found

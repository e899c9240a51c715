"""Scaling of pixels that a graph does itself, before its first layer.

Keras puts a rescaling into many of its networks, and whoever wraps a network in its mean and
deviation does the same. Such a graph given prepared images answers, and answers wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from deploykit.graph.half_range import array_of

if TYPE_CHECKING:
    import onnx_ir as ir

_PASSING: Final = frozenset(
    {
        "Cast", "Concat", "Gather", "Identity", "Pad", "Reshape", "Resize", "Slice", "Split",
        "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that leave numbers as they are, or nearly so."""

_LEAST_OF_BYTES: Final = 50.0
"""Divisors from here on are for pixels of 0 to 255, as 127.5 and 58.4 are."""

_LEAST_MEAN_OF_BYTES: Final = 10.0
_MEANS_OF_UNITS: Final = (0.1, 0.8)
"""Means of pixels of 0 to 1, as 0.485, and 0.1307 of MNIST; prepared images have means near 0."""


class OwnScaling(NamedTuple):
    """The first arithmetic on images, which tells that pixels of 0 to ``largest`` are meant.

    ``number`` is the first of its constant.
    """

    op_type: str
    number: float
    largest: int


def own_scaling(model: ir.Model, image: str) -> OwnScaling | None:
    """What ``model`` does first to the input ``image``, where only pixels can be meant."""
    waiting = [value for value in model.graph.inputs if value.name == image]
    seen = set(waiting)
    for value in waiting:
        for reader, index in value.uses():
            if reader.op_type in _PASSING and index == 0:
                new = [made for made in reader.outputs if made not in seen]
                waiting += new
                seen.update(new)
                continue
            others = [array_of(each) for at, each in enumerate(reader.inputs) if at != index]
            if len(others) != 1 or others[0] is None or not others[0].size:
                continue
            numbers = others[0].astype(np.float64).reshape(-1)
            largest = _largest_pixel(reader.op_type, index, numbers)
            if largest:
                return OwnScaling(reader.op_type, float(numbers[0]), largest)
    return None


def _largest_pixel(op_type: str, index: int, numbers: np.ndarray) -> int:
    """255 or 1, or 0 where the constant tells nothing."""
    low, high = float(np.abs(numbers).min()), float(np.abs(numbers).max())
    if (op_type == "Div" and index == 0) or (op_type == "Mul" and high):
        factor = 1 / low if op_type == "Div" and low else high
        if factor <= 1 / _LEAST_OF_BYTES:
            return 255
        return 1 if factor >= _LEAST_OF_BYTES else 0
    if op_type not in {"Add", "Sub"} or (op_type == "Sub" and index):
        return 0
    means = -numbers if op_type == "Add" else numbers
    if low >= _LEAST_MEAN_OF_BYTES:
        return 255
    least, most = _MEANS_OF_UNITS
    return 1 if least <= means.min() and means.max() <= most else 0

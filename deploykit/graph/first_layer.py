"""The filters of a graph's first convolution, as numbers, in whatever type they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


def first_filters(model: ir.Model) -> tuple[str, NDArray[np.float32]] | None:
    """Name and filters (O, I, H, W) of the first convolution; ``None`` where there is none.

    Filters behind a DequantizeLinear are the real numbers that it makes of them. A convolution
    whose filters are computed from the input, or are no constants, does not count.
    """
    for node in model.graph:
        if node.op_type != "Conv" or len(node.inputs) <= 1:
            continue
        filters = _constant(node.inputs[1])
        if filters is not None and filters.ndim == 4:  # noqa: PLR2004 - (O, I, H, W)
            return node.name or node.outputs[0].name or "Conv", filters.astype(np.float32)
    return None


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    op_type = None if node is None else node.op_type
    if node is not None and op_type in {"Cast", "Identity"}:
        return _constant(node.inputs[0])
    return _dequantized(node) if node is not None and op_type == "DequantizeLinear" else None


def _dequantized(node: ir.Node) -> NDArray[Any] | None:
    stored, scale = (_constant(each) for each in node.inputs[:2])
    if stored is None or scale is None:
        return None
    zero = _constant(node.inputs[2]) if len(node.inputs) > 2 else None  # noqa: PLR2004 - optional
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = [1] * stored.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[axis] = -1
    real = stored.astype(np.float32)
    if zero is not None:
        real = real - zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    return real * scale.astype(np.float32).reshape(shape if scale.size > 1 else ())

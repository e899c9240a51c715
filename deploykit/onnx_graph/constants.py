"""Constants of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_constant(graph: ir.Graph, name: str, data: NDArray[np.generic]) -> ir.Value:
    """Register ``data`` as an initializer; ``name`` must be free in ``graph``."""
    tensor = ir.Tensor(data, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(data.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value

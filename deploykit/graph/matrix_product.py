"""A graph that multiplies its input by a constant matrix, for the trial of a CPU's peak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPSET: Final = 20
_IR_VERSION: Final = 10


def matrix_product(right: NDArray[Any]) -> bytes:
    """An ONNX file's bytes: input ``left`` (M, K) times ``right`` (K, N) is output ``product``.

    ``right`` is a constant, as the weights of a layer are: a runtime may lay it out beforehand.
    """
    rows, columns = right.shape
    float32 = ir.TensorType(ir.DataType.FLOAT)
    left = ir.Value(name="left", shape=ir.Shape(["rows", rows]), type=float32)
    constant = ir.Value(name="right", const_value=ir.tensor(right, name="right"))
    product = ir.Value(name="product", shape=ir.Shape(["rows", columns]), type=float32)
    node = ir.Node("", "MatMul", [left, constant], outputs=[product])
    graph = ir.Graph(
        [left], [product], nodes=[node], initializers=[constant], opset_imports={"": _OPSET}
    )
    model = ir.Model(graph, ir_version=_IR_VERSION)
    return bytes(ir.to_proto(model).SerializeToString())

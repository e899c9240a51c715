"""Sizes of the convolutions and matrix products of a graph, by the ONNX standard's definitions."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from deploykit.core.errors import ModelFileError
from deploykit.costs.network import Product

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

_MATRIX_RANK = 2


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value in which no dimension is open.

    Raises:
        ModelFileError: shape inference found none.
    """
    dims = None if value.shape is None else value.shape.dims
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        raise ModelFileError(f"no shape can be inferred for {value.name!r}")
    return tuple(int(dim) for dim in dims if isinstance(dim, int))


def product_of(node: ir.Node) -> Product | None:
    """The matrix product that a convolution or product computes; ``None`` for other operators.

    Raises:
        ModelFileError: the shape of an operand or of the result is not known.
    """
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return None
    output = shape_of(node.outputs[0])
    data, weight = (shape_of(value) for value in node.inputs[:2] if value is not None)
    if node.op_type == "Conv":  # weight (M, C / group, kH, kW)
        groups = _groups(node)
        rows = prod(output[:1]) * prod(output[2:])
        return Product(rows, weight[0] // groups, weight[1], prod(weight[2:]), groups)
    if node.op_type == "ConvTranspose":  # weight (C, M / group, kH, kW)
        groups = _groups(node)
        rows = prod(data[:1]) * prod(data[2:])
        return Product(rows, prod(weight[1:]), weight[0] // groups, 1, groups)
    inner = _inner_length(node, data)
    if len(weight) < _MATRIX_RANK:
        return Product(prod(output), 1, inner, 1, 1)
    # (..., M, K) by (..., K, N): of one matrix for all, the leading sizes of the left are rows too.
    batches = prod(weight[:-2])
    return Product(prod(output[:-1]) // batches, output[-1], inner, 1, batches)


def multiply_adds(node: ir.Node) -> int:
    """Multiply-adds by the operators' definitions in the ONNX standard, bias not counted.

    Raises:
        ModelFileError: the shape of an operand or of the result is not known.
    """
    product = product_of(node)
    return 0 if product is None else product.multiply_adds


def _groups(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else int(attribute.as_int())


def _inner_length(node: ir.Node, left: Sequence[int]) -> int:
    attribute = node.attributes.get("transA")
    transposed = attribute is not None and bool(attribute.as_int())
    return left[0] if transposed else left[-1]

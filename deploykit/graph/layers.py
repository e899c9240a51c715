"""The layers of an ONNX graph as rows of a table."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.costs.summary import LayerInfo, ModelSummary
from deploykit.graph.files import infer_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def describe_layers(model: ir.Model, name: str, batch: int) -> ModelSummary:
    """One row per node, in graph order, with open dimensions filled in.

    Integers of unknown length (indices, shapes) have no row.

    Raises:
        UsageError: a dimension beside the batch is open, so that no shape can be given.
        ModelFileError: there is no input, or shape inference finds no shape for a value.
    """
    fixed = model.clone()
    image = next((v for v in fixed.graph.inputs if not v.is_initializer()), None)
    if image is None:
        raise ModelFileError(f"{name} takes no input, so there is nothing to follow through it")
    fix_batch(fixed, batch)
    rows = [_layer(node) for node in fixed.graph if node.outputs and not _counts_places(node)]
    # A set: the parameters of a weight that several layers share count once.
    weights = {value for node in fixed.graph for value in _weights(node)}
    return ModelSummary(
        name=name,
        input_shape=shape_of(image),
        layers=tuple(rows),
        parameters=sum(prod(shape_of(value)) for value in weights),
    )


def fix_batch(model: ir.Model, batch: int) -> None:
    """Give an open first dimension the size ``batch``, and infer all shapes again.

    Where inference finds none, the shape that was known before is kept, with the batch in it.

    Raises:
        UsageError: a dimension beside the batch is open.
    """
    known = {value: value.shape for node in model.graph for value in node.outputs}
    for value in known:
        value.shape = None  # inferred again for this batch
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        dims = list(value.shape or ())
        if any(not isinstance(dim, int) for dim in dims[1:]):
            raise UsageError(
                f"input {value.name!r} has open dimensions {tuple(map(str, dims))}\n"
                "give its height and width, for example --input-size 224"
            )
        if dims and not isinstance(dims[0], int):
            if dims[0].value is not None:
                sizes[dims[0].value] = batch
            value.shape = ir.Shape([batch, *dims[1:]])
    infer_shapes(model)
    # A second time, for the values behind those whose shape was put back.
    if _remember(known, sizes):
        infer_shapes(model)


def _remember(known: Mapping[ir.Value, ir.Shape | None], sizes: Mapping[str, int]) -> bool:
    """Give values without a complete shape the one that they had; True if there were any."""
    found = False
    for value, shape in known.items():
        if shape is None or (value.shape is not None and value.shape.is_static()):
            continue
        dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value)) for dim in shape]
        if None not in dims:
            value.shape = ir.Shape(dims)
            found = True
    return found


def _layer(node: ir.Node) -> LayerInfo:
    parameters = sum(prod(shape_of(value)) for value in _weights(node))
    return LayerInfo(
        name=str(node.name),
        kind=node.op_type,
        output_shape=shape_of(node.outputs[0]),
        parameters=parameters,
        multiply_adds=multiply_adds(node),
    )


def _counts_places(node: ir.Node) -> bool:
    """True if it computes integers whose number only a run tells: indices, shapes."""
    value = node.outputs[0]
    is_known = value.shape is not None and value.shape.is_static()
    return not is_known and value.dtype is not None and value.dtype.is_integer()


def multiply_adds(node: ir.Node) -> int:
    """Multiply-adds by the operators' definitions in the ONNX standard, bias not counted.

    Raises:
        ModelFileError: the shape of an operand or of the result is not known.
    """
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return 0
    output = shape_of(node.outputs[0])
    data, weight = (shape_of(value) for value in node.inputs[:2] if value is not None)
    if node.op_type == "Conv":  # weight (M, C / group, kH, kW)
        return prod(output) * prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (C, M / group, kH, kW)
        return prod(data) * prod(weight[1:])
    return prod(output) * _inner_length(node, data)


def _inner_length(node: ir.Node, left: Sequence[int]) -> int:
    attribute = node.attributes.get("transA")
    transposed = attribute is not None and bool(attribute.as_int())
    return left[0] if transposed else left[-1]


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """Constants that were trained: neither scales and zero points, nor shapes."""
    quantizes = node.op_type in {"DequantizeLinear", "QuantizeLinear"}
    for value in node.inputs[:1] if quantizes else node.inputs:
        if value is None or not value.is_initializer() or value.dtype is None:
            continue
        if quantizes or value.dtype.is_floating_point():
            yield value


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value in which no dimension is open.

    Raises:
        ModelFileError: shape inference found none.
    """
    dims = None if value.shape is None else value.shape.dims
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        raise ModelFileError(f"no shape can be inferred for {value.name!r}")
    return tuple(int(dim) for dim in dims if isinstance(dim, int))

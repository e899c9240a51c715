"""What each node of a graph runs in, read from its types and its Q/DQ pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from deploykit.onnx_graph.costs import network_cost
from deploykit.onnx_graph.half import HEAVY_OPS, plan_half
from deploykit.onnx_graph.precision import (
    INTEGER_OPS,
    RANK,
    GraphPrecision,
    Known,
    NodePrecision,
)
from deploykit.onnx_graph.qdq.sharing import MOVING_OPS
from deploykit.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.benchmarking.costs import LayerCost

CONVERTERS: Final = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
"""Operators that change the type of a value and compute nothing."""

_CARRIERS: Final = MOVING_OPS | {"Concat"}
_HALF_TYPES: Final = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_UNRECORDED: Final = "the file does not say why"
_NOTHING_KNOWN: Final = Known()


def read_precision(
    model: ir.Model, asked: Precision, batch: int, known: Known = _NOTHING_KNOWN
) -> GraphPrecision:
    """Read a graph that `tidy` has seen, and that was made to be ``asked`` where that is possible.

    A convolution or matrix product is INT8 when both its operands come from DequantizeLinear, as
    compilers take it; an operator that only moves values when pairs stand before and behind it;
    every other node is what its result is. Where ``known`` has no reason for a node that is not
    as low as ``asked``, the graph itself is searched for one.

    Args:
        model: the graph, in any of the three precisions.
        asked: what the graph as a whole counts as.
        batch: images that multiply-adds are counted for, unless the graph's batch is fixed.
        known: reasons and open trials by the name of the node.

    Raises:
        UsageError: a dimension beside the batch is open.
        ModelFileError: nodes share names, or shape inference finds no shape for a value.
    """
    cost = network_cost(model, _fixed_batch(model) or batch)
    kernels = {name: layer for layer in cost.layers for name in layer.nodes}
    reader = _Reader(model, asked, known)
    nodes = tuple(reader.read(node, kernels) for node in model.graph if _is_shown(node))
    return GraphPrecision(
        nodes=nodes,
        casts=sum(_is_float_cast(node) for node in model.graph),
        qdq_pairs=sum(_quantizes_activation(node) for node in model.graph),
        int8_weights=sum(_is_int8_weight(node) for node in model.graph),
    )


class _Reader:
    """One graph, with what several of its nodes are asked for."""

    def __init__(self, model: ir.Model, asked: Precision, known: Known) -> None:
        self._asked = asked
        self._known = known
        # Without magnitudes this says what the operators themselves have against FP16.
        self._not_half = plan_half(model, {}, 1.0).kept
        self._has_half = any(_is_half(node) for node in model.graph)

    def read(self, node: ir.Node, kernels: Mapping[str, LayerCost]) -> NodePrecision:
        name = str(node.name)
        kernel = kernels.get(name)
        heads = kernel is not None and kernel.nodes[0] == name
        precision = _precision(node, kernel if heads else None)
        return NodePrecision(
            name=name,
            op_type=node.op_type,
            precision=precision,
            multiply_adds=kernel.multiply_adds if kernel is not None and heads else 0,
            kernel=None if kernel is None else kernel.nodes[0],
            reason=self._reason(node, precision, works=heads),
            trial=self._known.trials.get(name),
        )

    def _reason(self, node: ir.Node, precision: Precision, *, works: bool) -> str | None:
        if RANK[precision] <= RANK[self._asked]:
            return None
        name = str(node.name)
        if name in self._known.reasons:
            return self._known.reasons[name]
        if precision is Precision.FP32:
            return self._not_half.get(name, self._why_not_half())
        return _why_not_int8(node) if works else None

    def _why_not_half(self) -> str:
        return _UNRECORDED if self._has_half else "nothing in the graph is FP16"


def _precision(node: ir.Node, kernel: LayerCost | None) -> Precision:
    if node.op_type in INTEGER_OPS:
        return Precision.INT8
    if kernel is not None and kernel.precision is Precision.INT8:
        return Precision.INT8
    if node.op_type in _CARRIERS and _is_carried(node):
        return Precision.INT8
    return Precision.FP16 if _is_half(node) else Precision.FP32


def _why_not_int8(node: ir.Node) -> str:
    if node.op_type in _CARRIERS:
        return "it does not stand between Q/DQ pairs"
    if node.op_type not in HEAVY_OPS:
        return "INT8 is for convolutions and matrix products"
    operands = zip(("input", "second operand"), node.inputs[:2], strict=False)
    plain = [what for what, value in operands if value is not None and not _is_restored(value)]
    return f"no Q/DQ pair stands before its {' and its '.join(plain)}"


def _is_carried(node: ir.Node) -> bool:
    values = [value for value in node.inputs if value is not None and not value.is_initializer()]
    given = [value for value in values if _is_float(value)]
    return bool(given) and all(map(_is_restored, given)) and _is_quantized(node.outputs[0])


def _is_restored(value: ir.Value) -> bool:
    """Whether it comes from DequantizeLinear, through nothing but what only moves values."""
    open_values, seen = [value], set[ir.Node]()
    while open_values:
        node = open_values.pop().producer()
        if node is None or not (node.op_type in _CARRIERS or node.op_type in CONVERTERS):
            return False
        if node.op_type != "DequantizeLinear" and node not in seen:
            seen.add(node)
            open_values += _carried_inputs(node)
    return True


def _is_quantized(value: ir.Value) -> bool:
    """Whether all that reads it is QuantizeLinear, through nothing but what only moves values."""
    open_values, seen = [value], set[ir.Node]()
    while open_values:
        current = open_values.pop()
        readers = {use.node for use in current.uses()}
        if current.is_graph_output() or not readers:
            return False
        others = {reader for reader in readers if reader.op_type != "QuantizeLinear"} - seen
        if any(other.op_type not in _CARRIERS and other.op_type != "Cast" for other in others):
            return False
        seen |= others
        open_values += [other.outputs[0] for other in others]
    return True


def _carried_inputs(node: ir.Node) -> Iterator[ir.Value]:
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return (value for value in values if value is not None)


def _fixed_batch(model: ir.Model) -> int | None:
    image = next((value for value in model.graph.inputs if not value.is_initializer()), None)
    size = image.shape[0] if image is not None and image.shape else None
    return size if isinstance(size, int) else None


def _is_shown(node: ir.Node) -> bool:
    if node.op_type in INTEGER_OPS:
        return True
    return node.op_type not in CONVERTERS and any(map(_is_float, node.outputs))


def _is_half(node: ir.Node) -> bool:
    return any(value.dtype in _HALF_TYPES for value in node.outputs)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _is_float_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and _is_float(node.inputs[0]) and _is_float(node.outputs[0])


def _quantizes_activation(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and not _comes_from_constant(node.inputs[0])


def _is_int8_weight(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and _comes_from_constant(node.inputs[0])


def _comes_from_constant(value: ir.Value | None) -> bool:
    """Whether it is a constant, or one that a QuantizeLinear or Cast stands behind."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in CONVERTERS:
            return False
        value = node.inputs[0]
    return value is not None

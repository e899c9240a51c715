"""Sigmoids that a file writes out, 1 / (1 + exp(-x)), as the operator that there is.

The exponential overflows from x = -88.7 on in FP32 and from -11.1 on in FP16, and 1 / infinity is
the 0 that is right. Nothing that is measured can tell such an infinity from one that is wrong; the
operator has none. onnxruntime's is 0 from x = -18 on, where the right one is 1.5e-8: what divides
by it or takes its logarithm keeps the file's own operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir

from deploykit.graph.half_range import guarded_operands
from deploykit.graph.polynomials import scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.graph.editing import Names


class WrittenSigmoid(NamedTuple):
    """``node`` divides ``factor``, ``None`` for 1, by 1 + exp(``exponent``)."""

    node: ir.Node
    exponent: ir.Value
    factor: ir.Value | None


def written_sigmoids(graph: ir.Graph) -> Iterator[WrittenSigmoid]:
    """Each division by 1 + exp(x) in FP32; a reciprocal and a power of -1 are one of 1."""
    for node in graph:
        if node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        if any(use.idx in guarded_operands(use.node) for use in node.outputs[0].uses()):
            continue
        factor, total = _parts(node)
        exponent = None if total is None else _exponent_in(total)
        if exponent is not None and _keeps_rank(factor, exponent):
            is_one = factor is None or scalar(factor) == 1
            yield WrittenSigmoid(node, exponent, None if is_one else factor)


def write_sigmoid(graph: ir.Graph, found: WrittenSigmoid, names: Names) -> None:
    """Put the operator in the place of the division, whose result keeps its name."""
    old, added = found.node.outputs[0], list[ir.Node]()
    base = str(found.node.name).rpartition("/")[0]

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        name = names.fresh(f"{base or old.name}/{op_type}")
        made = ir.Value(name=name, type=old.type, shape=old.shape)
        node = ir.Node("", op_type, inputs, outputs=[made], name=name)
        node.metadata_props.update(found.node.metadata_props)
        added.append(node)
        return made

    x = _negated(found.exponent)
    new = add("Sigmoid", add("Neg", found.exponent) if x is None else x)
    for node in added:
        node.outputs[0].shape = found.exponent.shape
    if found.factor is not None:
        new = add("Mul", found.factor, new)
    new.name, new.shape = old.name, old.shape
    ir.convenience.replace_nodes_and_values(graph, found.node, [found.node], added, [old], [new])


def _parts(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """What is divided, ``None`` for 1, and what it is divided by."""
    if node.op_type == "Div":
        return node.inputs[0], node.inputs[1]
    if node.op_type == "Reciprocal":
        return None, node.inputs[0]
    is_inverse = node.op_type == "Pow" and scalar(node.inputs[1]) == -1
    return None, node.inputs[0] if is_inverse else None


def _exponent_in(total: ir.Value) -> ir.Value | None:
    """Return x of 1 + exp(x)."""
    adding = _made_by(total, "Add")
    for one, other in () if adding is None else (adding.inputs, reversed(adding.inputs)):
        exponential = _made_by(other, "Exp")
        if scalar(one) == 1 and exponential is not None:
            x = exponential.inputs[0]
            return x if x is not None and _keeps_rank(one, x) else None
    return None


def _keeps_rank(constant: ir.Value | None, x: ir.Value) -> bool:
    """Whether a single number beside ``x`` adds no axes to it; what is no constant may."""
    if constant is None or constant.const_value is None or scalar(constant) is None:
        return True
    axes = len(constant.const_value.shape)
    return axes == 0 or (x.shape is not None and axes <= len(x.shape))


def _negated(value: ir.Value) -> ir.Value | None:
    """Return x of -x."""
    negation = _made_by(value, "Neg")
    if negation is not None:
        return negation.inputs[0]
    product = _made_by(value, "Mul")
    for one, other in () if product is None else (product.inputs, reversed(product.inputs)):
        if scalar(one) == -1 and other is not None and _keeps_rank(one, other):
            return other
    return None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None

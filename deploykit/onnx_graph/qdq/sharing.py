"""Rules 4 and 5: neighbours that hold the same values share one scale.

Rounding to INT8 a second time with the same scale changes nothing, so pairs may stand on both
sides of an operator that only moves or selects values, and the compiler can run it on INT8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.onnx_graph.half import is_float
from deploykit.onnx_graph.qdq.plan import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from deploykit.onnx_graph.qdq.plan import QdqPolicy

    Demand = dict[ir.Value, list[Reader]]

MOVING_OPS: Final = frozenset(
    {"Flatten", "MaxPool", "GlobalMaxPool", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that commute with rounding: each output is one of the inputs, or zero."""


def share_scales(
    model: ir.Model, demand: Demand, policy: QdqPolicy, kept: dict[str, str]
) -> tuple[frozenset[str], ...]:
    """Extend ``demand`` to what must be INT8 with it, and return who shares a scale with whom."""
    groups = _Groups()
    # Against the graph's order, so that the operands of a concatenation are seen in their turn.
    for node in reversed(list(model.graph)):
        if node.op_type == "Concat":
            _share_concat(node, demand, policy, groups, kept)
    for value in list(demand):
        origin, first = _origin(value, demand)
        if first is not None and origin in demand:
            demand[origin].append(Reader(str(first.name), 0))
            groups.join((origin, value))
    return groups.as_names()


def _share_concat(
    node: ir.Node, demand: Demand, policy: QdqPolicy, groups: _Groups, kept: dict[str, str]
) -> None:
    """Rule 5: a concatenation that is read as INT8 takes INT8 operands of one scale.

    Operands with scales of their own would each be requantized into a copy. With one scale they
    are written where they belong by the kernels that compute them.
    """
    result = node.outputs[0]
    if result not in demand and all(_origin(v, demand)[0] is not result for v in demand):
        return
    pattern = policy.pattern_of(str(node.name))
    if pattern is not None:
        kept[str(node.name)] = f"excluded by {pattern!r}"
        return
    operands = [v for v in node.inputs if v is not None and v.const_value is None and is_float(v)]
    if len(operands) != len(node.inputs):
        kept[str(node.name)] = "an operand is a constant"
        return
    demand.setdefault(result, [])  # what moves its values on will read it
    for index, operand in enumerate(operands):
        demand.setdefault(operand, []).append(Reader(str(node.name), index))
    groups.join((*operands, result))


def _origin(value: ir.Value, demand: Demand) -> tuple[ir.Value, ir.Node | None]:
    """Rule 4: back through operators that only move values, to the nearest that is INT8.

    Returns the value at the end of the way, and the operator there that reads it.
    """
    first: ir.Node | None = None
    producer = value.producer()
    while producer is not None and _moves(producer) and (first is None or value not in demand):
        source = producer.inputs[0]
        if source is None:
            break
        first, value = producer, source
        producer = value.producer()
    return value, first


def _moves(node: ir.Node) -> bool:
    if node.op_type not in MOVING_OPS or node.domain:
        return False
    return node.op_type != "Pad" or _pads_with_zeros(node)


def _pads_with_zeros(node: ir.Node) -> bool:
    if node.attributes.get_string("mode", "constant") != "constant":
        return node.attributes.get_string("mode", "constant") in {"edge", "reflect", "wrap"}
    value = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    if value is None:
        return True
    return value.const_value is not None and not np.any(value.const_value.numpy())


class _Groups:
    """Sets of values that grow together."""

    def __init__(self) -> None:
        self._sets: list[set[ir.Value]] = []

    def join(self, values: Iterable[ir.Value]) -> None:
        joined = set(values)
        apart = []
        for group in self._sets:
            if joined.isdisjoint(group):
                apart.append(group)
            else:
                joined |= group
        self._sets = [*apart, joined]

    def as_names(self) -> tuple[frozenset[str], ...]:
        named = (frozenset(str(value.name) for value in group) for group in self._sets)
        return tuple(sorted((g for g in named if len(g) > 1), key=sorted))

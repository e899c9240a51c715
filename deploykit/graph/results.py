"""The end of a graph: what its outputs are made into, so that nobody has to do it outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.graph.byte_input import _values_of
from deploykit.graph.editing import Names, add_constant

if TYPE_CHECKING:
    from collections.abc import Sequence


def end_in(
    model: ir.Model, operators: Sequence[str], names: Sequence[str], count: int | None = None
) -> ir.Model:
    """A copy of ``model`` whose first output goes through ``operators``, which give ``names``.

    Each works along the classes, the second axis: ``Softmax``, ``Sigmoid``, ``Exp``, ``ArgMax``,
    or ``TopK`` of ``count``, which gives class numbers and their values in this order. It ranks by
    the output as it was: probabilities that are 0 in FP32 have no order any more. The last one's
    results take the place of the first output, under ``names`` or the nearest that are free.
    """
    model = model.clone()
    graph = model.graph
    first = value = graph.outputs.pop(0)
    taken = Names(_values_of(graph))
    made: list[ir.Value] = []
    for op_type in operators:
        made = _node(graph, op_type, first if op_type == "TopK" else value, taken, count)
        if op_type == "TopK" and value is not first:
            made[0] = _gathered(graph, value, made, taken)
        value = made[0]
    if len(made) > 1:
        made.reverse()  # class numbers first: they are what the head is about
    for result, name in zip(made, names, strict=True):
        result.name = taken.fresh(name)
    for result in reversed(made):
        graph.outputs.insert(0, result)
    return model


def _node(
    graph: ir.Graph, op_type: str, value: ir.Value, taken: Names, count: int | None
) -> list[ir.Value]:
    inputs, attributes, types = [value], dict[str, Any](), [ir.DataType.FLOAT]
    batch = None if value.shape is None else value.shape[0]
    shapes = [value.shape]
    if op_type == "Softmax":
        attributes = {"axis": 1}
    elif op_type == "ArgMax":
        attributes, types = {"axis": 1, "keepdims": 0}, [ir.DataType.INT64]
        shapes = [None if batch is None else ir.Shape([batch])]
    elif op_type == "TopK":
        number = add_constant(graph, taken.fresh("topk"), np.array([count], np.int64))
        inputs, attributes = [value, number], {"axis": 1, "largest": 1, "sorted": 1}
        types = [ir.DataType.FLOAT, ir.DataType.INT64]
        shapes = [None if batch is None else ir.Shape([batch, int(count or 0)])] * 2
    results = [
        ir.Value(name=taken.fresh(f"{op_type.lower()}_{at}"), type=ir.TensorType(kind), shape=shape)
        for at, (kind, shape) in enumerate(zip(types, shapes, strict=True))
    ]
    made = ir.convenience.convert_attributes(attributes)
    names = Names(str(node.name) for node in graph)
    graph.append(
        ir.Node("", op_type, inputs, made, outputs=results, name=names.fresh(f"result/{op_type}"))
    )
    return results


def _gathered(
    graph: ir.Graph, values: ir.Value, ranked: Sequence[ir.Value], taken: Names
) -> ir.Value:
    """``values`` (N, K) at the places that a ``TopK`` of something else gives."""
    found = ir.Value(
        name=taken.fresh("gathered"), type=ir.TensorType(ir.DataType.FLOAT), shape=ranked[0].shape
    )
    name = Names(str(node.name) for node in graph).fresh("result/GatherElements")
    axis = ir.convenience.convert_attributes({"axis": 1})
    graph.append(
        ir.Node("", "GatherElements", [values, ranked[1]], axis, outputs=[found], name=name)
    )
    return found

"""A graph that tells how large each of its values gets, and lets go of them as it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from deploykit.onnx_graph.constants import add_constant
from deploykit.onnx_graph.naming import Names
from deploykit.onnx_graph.splitting import split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.specs import SplitGraph

_REDUCTIONS: Final = ("ReduceMax", "ReduceMin", "ReduceSum")


class Extremes(NamedTuple):
    """Names of three outputs, a number each.

    ``broken`` is 0, or NaN where the value has one or is infinite: a maximum may pass over NaN.
    """

    largest: str
    least: str
    broken: str


def expose_magnitudes(model: ir.Model) -> tuple[SplitGraph, Mapping[str, Extremes]]:
    """The graph with the extremes of every FP32 value that a node computes, by name in graph order.

    The values themselves would be gigabytes: those of one image of 518 pixels in a large vision
    transformer are 20. What is known to be empty has no extremes.

    Raises:
        ModelFileError: it is too large without its weights.
    """
    shown = model.clone()
    graph = shown.graph
    names = Names(ir.convenience.create_value_mapping(graph))
    zero = add_constant(graph, names.fresh("nothing"), np.zeros((), np.float32))
    found: dict[str, Extremes] = {}
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and not _is_empty(value):
                found[str(value.name)] = _watch(graph, node, value, zero, names)
    return split(shown, "the graph with its activations"), found


def _watch(
    graph: ir.Graph, node: ir.Node, value: ir.Value, zero: ir.Value, names: Names
) -> Extremes:
    """Put the reductions right behind ``node``, for a runner that keeps the order."""
    nothing = ir.Value(name=names.fresh(f"{value.name}_nothing"), type=value.type)
    added = [ir.Node("", "Mul", [value, zero], outputs=[nothing], name=str(nothing.name))]
    outputs = []
    for kind, source in zip(_REDUCTIONS, (value, value, nothing), strict=True):
        name = names.fresh(f"{value.name}_{kind}")
        output = ir.Value(name=name, type=value.type, shape=ir.Shape([]))
        keep = ir.AttrInt64("keepdims", 0)
        added.append(ir.Node("", kind, [source], [keep], outputs=[output], name=name))
        outputs.append(output)
    graph.insert_after(node, added)
    graph.outputs.extend(outputs)
    return Extremes(*(str(output.name) for output in outputs))


def _is_empty(value: ir.Value) -> bool:
    return value.shape is not None and any(dim == 0 for dim in value.shape)

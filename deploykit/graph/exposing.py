"""Intermediate values of a graph as outputs: whole, or reduced to their extremes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from deploykit.core.errors import UsageError
from deploykit.graph.editing import Names, add_constant
from deploykit.graph.external_weights import split
from deploykit.graph.files import infer_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.specs import SplitGraph


def expose_named(model: ir.Model, names: Sequence[str]) -> SplitGraph:
    """The graph with the FP32 values ``names`` as outputs after its own, in the order given.

    Inputs of the graph may be among the names; they are not made outputs, the caller has them.

    Raises:
        UsageError: no node computes an FP32 value of such a name.
        ModelFileError: it is too large without its weights.
    """
    shown = model.clone()
    computed = {value.name: value for node in shown.graph for value in node.outputs}
    given = {value.name for value in shown.graph.inputs}
    for name in dict.fromkeys(names):
        if name in given:
            continue
        value = computed.get(name)
        if value is not None and value.dtype is None:
            infer_shapes(shown)  # for a graph that was never tidied
        if value is None or value.dtype != ir.DataType.FLOAT:
            raise UsageError(
                f"the graph computes no FP32 value {name!r}\n"
                "expected names of values between its nodes"
            )
        if not value.is_graph_output():
            shown.graph.outputs.append(value)
    return split(shown, "the graph with its activations")


_REDUCTIONS: Final = ("ReduceMax", "ReduceMin", "ReduceSum")


class Extremes(NamedTuple):
    """Names of three scalar outputs for one value.

    ``broken`` is 0, or NaN where the value has NaN or infinity, as a maximum may ignore NaN.
    """

    largest: str
    least: str
    broken: str


def expose_magnitudes(model: ir.Model) -> tuple[SplitGraph, Mapping[str, Extremes]]:
    """The graph with the extremes of every FP32 value that a node computes, by name in graph order.

    The values themselves would take gigabytes: those of one image of 518 pixels in a large vision
    transformer take 20. Values that are known to be empty have no extremes.

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
    """Put the reductions right behind ``node``, so that a runner can free the value early."""
    nothing = ir.Value(name=names.fresh(f"{value.name}_nothing"), type=value.type)
    # 0 x NaN and 0 x infinity are NaN, and any other number times 0 is 0.
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

"""Showing chosen values of a graph as outputs of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.errors import UsageError
from deploykit.onnx_graph.files import infer_shapes
from deploykit.onnx_graph.splitting import split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.specs import SplitGraph


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

"""A graph that shows what quantization does to each layer, given FP32 inputs.

Beside each layer of the plan stands a twin that reads the INT8 form of the same input and weight.
The difference of their outputs is the layer's own error: what layers before it add is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from deploykit.onnx_graph.constants import add_constant
from deploykit.onnx_graph.naming import Names
from deploykit.onnx_graph.qdq.insertion import insert_qdq
from deploykit.onnx_graph.qdq.plan import Reader
from deploykit.onnx_graph.splitting import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.onnx_graph.qdq.plan import QdqPlan
    from deploykit.specs import SplitGraph

BIASED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators with a bias of their own, one number for each output channel."""


class Probe(NamedTuple):
    """A graph for a runner and what its outputs are.

    ``shifts`` gives for each layer the output with mean(exact - quantized) of each channel, shape
    (C,); ``powers`` for each activation the two outputs with its sum of squares and that of its
    rounding error, scalars.
    """

    graph: SplitGraph
    shifts: Mapping[str, str]
    powers: Mapping[str, tuple[str, str]]


def probe_errors(model: ir.Model, plan: QdqPlan, amax: Mapping[str, float]) -> Probe:
    """Build the probe for an FP32 graph, its plan and the ranges of its activations.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    doubled = model.clone()
    builder = _Builder(doubled)
    shifts = {
        weight.node: builder.add_twin(weight.node)
        for weight in plan.weights
        if builder.nodes[weight.node].op_type in BIASED_OPS
    }
    powers = {tensor: builder.add_powers(tensor) for tensor in plan.tensors}
    doubled.graph.outputs.clear()
    doubled.graph.outputs.extend(builder.outputs)
    twins = builder.twins
    probing = replace(
        plan,
        activations={
            tensor: (*builder.inputs_of(tensor), Reader(builder.errors[tensor], 1))
            for tensor in plan.activations
        },
        weights=tuple(replace(w, node=twins[w.node]) for w in plan.weights if w.node in twins),
    )
    probed = insert_qdq(doubled, probing, amax)
    return Probe(split(probed, "the graph with its errors"), shifts, powers)


class _Builder:
    """Adds twins and sums to one graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._values = ir.convenience.create_value_mapping(model.graph)
        self._node_names = Names(str(node.name) for node in model.graph)
        self._value_names = Names(self._values)
        self._readers: dict[str, list[Reader]] = {}
        self.nodes = {str(node.name): node for node in model.graph}
        self.twins: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.outputs: list[ir.Value] = []

    def add_twin(self, name: str) -> str:
        """A second node with the same inputs; returns the output with the mean difference."""
        node = self.nodes[name]
        twin = self._add(node, node.op_type, node.inputs, node.attributes.values())
        self.twins[name] = str(twin.name)
        data, weight, *_ = (value for value in node.inputs if value is not None)
        self._readers.setdefault(str(data.name), []).append(Reader(str(twin.name), 0))
        error = self._add(twin, "Sub", [node.outputs[0], twin.outputs[0]])
        # The output has as many dimensions as the weight, channels at 1.
        axes = np.array([axis for axis in range(len(weight.shape or ())) if axis != 1], np.int64)
        mean = self._add(
            error,
            "ReduceMean",
            [error.outputs[0], self._constant("axes", axes)],
            [ir.AttrInt64("keepdims", 0)],
        )
        return self._show(mean)

    def add_powers(self, tensor: str) -> tuple[str, str]:
        """Sums of squares of an activation, and of what it loses when it becomes INT8."""
        value = self._values[tensor]
        behind = value.producer()
        signal = self._add(behind, "ReduceSumSquare", [value], [ir.AttrInt64("keepdims", 0)])
        error = self._add(signal, "Sub", [value, value])  # insertion makes the second one INT8
        noise = self._add(
            error, "ReduceSumSquare", [error.outputs[0]], [ir.AttrInt64("keepdims", 0)]
        )
        self.errors[tensor] = str(error.name)
        return self._show(signal), self._show(noise)

    def inputs_of(self, tensor: str) -> tuple[Reader, ...]:
        """The twins that read an activation."""
        return tuple(self._readers.get(tensor, ()))

    def _show(self, node: ir.Node) -> str:
        self.outputs.append(node.outputs[0])
        return str(node.outputs[0].name)

    def _add(
        self,
        behind: ir.Node | None,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Node:
        name = self._node_names.fresh(f"probe/{op_type}")
        result = ir.Value(
            name=self._value_names.fresh(f"{name}_output"), type=ir.TensorType(ir.DataType.FLOAT)
        )
        node = ir.Node("", op_type, inputs, tuple(attributes), outputs=[result], name=name)
        if behind is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(behind, node)
        return node

    def _constant(self, name: str, data: NDArray[np.int64]) -> ir.Value:
        return add_constant(self._graph, self._value_names.fresh(f"probe_{name}"), data)

"""A graph whose layers can be taken out of INT8 one by one, without a new session for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from deploykit.onnx_graph.constants import add_constant
from deploykit.onnx_graph.naming import Names
from deploykit.onnx_graph.qdq.insertion import insert_qdq
from deploykit.onnx_graph.splitting import split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.onnx_graph.qdq.plan import QdqPlan, QuantizedWeight
    from deploykit.specs import SplitGraph

SWITCHES: Final = "exact_layers"
"""The extra input: bool (L,), true for each layer of the plan that shall compute in FP32."""


def switchable(model: ir.Model, plan: QdqPlan, amax: Mapping[str, float]) -> SplitGraph:
    """The INT8 form of an FP32 graph, for a runner, with the input `SWITCHES`.

    A layer that is switched reads its input and its weight as they were before; the others, and
    residual additions, read what they read in INT8. Layers are in the order of ``plan.weights``.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    result = insert_qdq(model, plan, amax)
    builder = _Builder(model, result, len(plan.weights))
    for index, weight in enumerate(plan.weights):
        builder.add_switch(index, weight)
    return split(result, "the graph with its switches")


class _Builder:
    """Adds switches to one INT8 graph; ``source`` is the FP32 graph that it was made from."""

    def __init__(self, source: ir.Model, result: ir.Model, layers: int) -> None:
        self._source = {str(node.name): node for node in source.graph}
        self._graph = result.graph
        self._nodes = {str(node.name): node for node in result.graph}
        self._values = ir.convenience.create_value_mapping(result.graph)
        self._value_names = Names(self._values)
        self._node_names = Names(self._nodes)
        self._switches = ir.Value(
            name=self._value_names.fresh(SWITCHES),
            type=ir.TensorType(ir.DataType.BOOL),
            shape=ir.Shape([layers]),
        )
        result.graph.inputs.append(self._switches)

    def add_switch(self, index: int, weight: QuantizedWeight) -> None:
        """Let the layer read what switch ``index`` says."""
        node, original = self._nodes[weight.node], self._source[weight.node]
        place = add_constant(
            self._graph, self._value_names.fresh(f"layer_{index}"), np.asarray(index, np.int64)
        )
        chosen = self._insert("Gather", [self._switches, place], ir.DataType.BOOL, node)
        for position in (0, weight.index):
            exact = self._exact(original.inputs[position])
            either = [chosen, exact, node.inputs[position]]
            node.replace_input_with(
                position, self._insert("Where", either, ir.DataType.FLOAT, node)
            )

    def _exact(self, value: ir.Value | None) -> ir.Value:
        """The same value in the new graph; FP32 weights are not in it any more."""
        known = self._values.get(str(value.name)) if value is not None else None
        if known is not None:
            return known
        constant = ir.convenience.get_const_tensor(value)  # type: ignore[arg-type]  # a weight of the plan is there and constant
        name = self._value_names.fresh(f"{value.name}_exact")  # type: ignore[union-attr]
        return add_constant(self._graph, name, constant.numpy())  # type: ignore[union-attr]

    def _insert(
        self, op_type: str, inputs: list[ir.Value | None], dtype: ir.DataType, before: ir.Node
    ) -> ir.Value:
        name = self._node_names.fresh(f"switch/{op_type}")
        output = ir.Value(name=self._value_names.fresh(f"{name}_output"), type=ir.TensorType(dtype))
        node = ir.Node("", op_type, inputs, outputs=[output], name=name)
        self._graph.insert_before(before, node)
        return output

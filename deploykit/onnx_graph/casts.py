"""Carries out a plan of FP16 nodes: new types, new constants, and a ``Cast`` at every border.

A strongly typed compiler runs each layer in the type that the graph gives it, so every edge must
be right: a ``Cast`` stands wherever an FP16 and an FP32 node meet, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.onnx_graph.constants import add_constant
from deploykit.onnx_graph.half import FP16_MAX, half_slots, is_float
from deploykit.onnx_graph.naming import Names

if TYPE_CHECKING:
    from deploykit.onnx_graph.half import HalfPlan


def halve(model: ir.Model, plan: HalfPlan) -> ir.Model:
    """A copy of the graph with the plan carried out; its inputs and outputs stay FP32."""
    result = model.clone()
    # Types differ from those recorded once the first node has changed, so slots are read first.
    work = [_Halved(node, result) for node in result.graph if node.name in plan.halved]
    changed = [value for item in work for value in item.results]
    lowered = set(changed)
    caster = _Caster(result)
    half_readers: set[tuple[ir.Node, int]] = set()
    for item in work:
        if not item.results and lowered.isdisjoint(value for _, value in item.operands):
            continue  # Cast, Shape, ArgMax of FP32 values: they read what there is
        for index, value in item.operands:
            half_readers.add((item.node, index))
            if value not in lowered:
                item.node.replace_input_with(index, caster.down(value))
    for value in changed:
        caster.retype(value, half_readers)
    caster.drop_unused_initializers()
    return result


class _Halved:
    """A node of the plan with the FP32 values that its operator lets be FP16."""

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        in_slots, out_slots = half_slots(node, model)
        self.node = node
        self.operands = [
            (index, value)
            for index, (value, slot) in enumerate(zip(node.inputs, in_slots, strict=True))
            if slot and value is not None and is_float(value)
        ]
        self.results = [
            value
            for value, slot in zip(node.outputs, out_slots, strict=True)
            if slot and is_float(value)
        ]


class _Caster:
    """Inserts each conversion once and remembers it."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._lowered: dict[ir.Value, ir.Value] = {}
        self._values = Names(ir.convenience.create_value_mapping(model.graph))
        self._nodes = Names(str(node.name) for node in model.graph)

    def down(self, value: ir.Value) -> ir.Value:
        """The FP16 twin of an FP32 value that itself stays FP32."""
        if value not in self._lowered:
            name = self._values.fresh(f"{value.name}_fp16")
            constant = value.const_value if value.is_initializer() else None
            self._lowered[value] = (
                self._cast(value, ir.DataType.FLOAT16, name)
                if constant is None
                else self._lower(constant, name)
            )
        return self._lowered[value]

    def retype(self, value: ir.Value, half_readers: set[tuple[ir.Node, int]]) -> None:
        """Make a computed value FP16, with a cast back for whoever still reads FP32."""
        readers = [(use.node, use.idx) for use in value.uses()]
        readers = [reader for reader in readers if reader not in half_readers]
        places = [i for i, output in enumerate(self._graph.outputs) if output is value]
        value.type = ir.TensorType(ir.DataType.FLOAT16)  # the old one is shared with the original
        if not places and not readers:
            return
        name = str(value.name)
        if places:  # the caller's name goes to the FP32 value
            value.name = self._values.fresh(f"{name}_fp16")
        else:
            name = self._values.fresh(f"{name}_fp32")
        raised = self._cast(value, ir.DataType.FLOAT, name)
        for node, index in readers:
            node.replace_input_with(index, raised)
        for place in places:
            self._graph.outputs[place] = raised

    def drop_unused_initializers(self) -> None:
        """Forget the FP32 weights that nobody reads any more."""
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(str(value.name))

    def _lower(self, constant: ir.TensorProtocol, name: str) -> ir.Value:
        # Only Clip bounds can lie outside FP16's range here; the nearest bound means the same.
        data = np.clip(constant.numpy(), -FP16_MAX, FP16_MAX).astype(np.float16)
        return add_constant(self._graph, name, data)

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        result = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
        cast = ir.Node(
            "",
            "Cast",
            [value],
            [ir.AttrInt64("to", int(to))],
            outputs=[result],
            name=self._nodes.fresh(f"{name}/Cast"),
        )
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, cast)
        else:
            self._graph.insert_before(self._graph[0], cast)
        return result

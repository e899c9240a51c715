"""FP16 as a property of the graph: which nodes change type, and the change itself.

A strongly typed compiler runs each layer in the type that the graph gives it, so every edge must
be right: a ``Cast`` stands wherever an FP16 and an FP32 node meet, and nowhere else. Which inputs
of a node may be FP16 is read from the operator's schema in the ONNX standard, not from a list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FP16_MAX: Final = 65504.0
"""Largest finite FP16 number (IEEE 754 binary16)."""

HEAVY_OPS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that hold nearly all arithmetic; their precision is the network's precision."""

SQUARING_OPS: Final = frozenset(
    {"LRN", "LpNormalization", "LpPool", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"}
)
"""Operators whose intermediate squares overflow FP16 from inputs of 256 on."""


@dataclass(frozen=True)
class HalfPlan:
    """The nodes that become FP16, and why each of the others that hold FP32 data does not."""

    halved: frozenset[str]
    kept: Mapping[str, str] = field(default_factory=dict)

    def kept_heavy(self, model: ir.Model) -> int:
        """How many convolutions and matrix products stay FP32."""
        return sum(node.name in self.kept and node.op_type in HEAVY_OPS for node in model.graph)


def plan_half(model: ir.Model, amax: Mapping[str, float], headroom: float) -> HalfPlan:
    """Decide for each node, given the largest magnitude seen in each value.

    A value whose magnitude times ``headroom`` passes 65504 keeps the node that makes it and the
    nodes that read it in FP32.
    """
    limit = FP16_MAX / headroom
    halved: set[str] = set()
    kept: dict[str, str] = {}
    for node in model.graph:
        if not any(_is_float(value) for value in (*node.inputs, *node.outputs)):
            continue
        reason = _reason_to_keep(node, model, amax, limit)
        if reason:
            kept[str(node.name)] = reason
        else:
            halved.add(str(node.name))
    return HalfPlan(frozenset(halved), kept)


def halve(model: ir.Model, plan: HalfPlan) -> ir.Model:
    """A copy of the graph with the plan carried out; its inputs and outputs stay FP32."""
    result = model.clone()
    # Types differ from those recorded once the first node has changed, so slots are read first.
    work = [(node, _half_slots(node, result)) for node in result.graph if node.name in plan.halved]
    changed = {
        value
        for node, (_, slots) in work
        for value, slot in zip(node.outputs, slots, strict=True)
        if slot and _is_float(value)
    }
    caster = _Caster(result)
    for node, (slots, _) in work:
        for index, (value, slot) in enumerate(zip(node.inputs, slots, strict=True)):
            if value is not None and slot and _is_float(value) and value not in changed:
                node.replace_input_with(index, caster.down(value))
    reads_half = {(node, i) for node, (slots, _) in work for i, s in enumerate(slots) if s}
    for value in sorted(changed, key=lambda value: str(value.name)):
        caster.retype(value, reads_half)
    caster.drop_unused_initializers()
    return result


class _Caster:
    """Inserts each conversion once and remembers it."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.lowered: dict[ir.Value, ir.Value] = {}

    def down(self, value: ir.Value) -> ir.Value:
        """The FP16 twin of an FP32 value that itself stays FP32."""
        if value not in self.lowered:
            constant = value.is_initializer() and value.const_value is not None
            self.lowered[value] = (
                self._lower_initializer(value)
                if constant
                else self._cast(value, ir.DataType.FLOAT16, f"{value.name}_fp16")
            )
        return self.lowered[value]

    def retype(self, value: ir.Value, reads_half: set[tuple[ir.Node, int]]) -> None:
        """Make a computed value FP16, with a cast back for whoever still reads FP32."""
        is_output = value.is_graph_output()
        readers = [(use.node, use.idx) for use in value.uses()]
        readers = [reader for reader in readers if reader not in reads_half]
        value.dtype = ir.DataType.FLOAT16
        if not is_output and not readers:
            return
        name = str(value.name)
        if is_output:
            value.name = f"{name}_fp16"
        raised = self._cast(value, ir.DataType.FLOAT, name if is_output else f"{name}_fp32")
        for node, index in readers:
            node.replace_input_with(index, raised)
        if is_output:
            outputs = self.graph.outputs
            outputs[outputs.index(value)] = raised

    def drop_unused_initializers(self) -> None:
        """Forget the FP32 weights that nobody reads any more."""
        for value in list(self.graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self.graph.initializers.pop(str(value.name))

    def _lower_initializer(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None  # noqa: S101 - down() looked
        # Only Clip bounds can lie outside FP16's range here; the nearest bound means the same.
        data = np.clip(value.const_value.numpy(), -FP16_MAX, FP16_MAX).astype(np.float16)
        lowered = ir.Value(
            name=f"{value.name}_fp16",
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=ir.Shape(data.shape),
            const_value=ir.Tensor(data, name=f"{value.name}_fp16"),
        )
        self.graph.register_initializer(lowered)
        return lowered

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        result = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
        cast = ir.Node(
            "",
            "Cast",
            [value],
            [ir.AttrInt64("to", int(to))],
            outputs=[result],
            name=f"{name}/Cast",
        )
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        return result


def _reason_to_keep(
    node: ir.Node, model: ir.Model, amax: Mapping[str, float], limit: float
) -> str | None:
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attr in node.attributes.values()
    ):
        return "control flow"
    if node.op_type in SQUARING_OPS:
        return "its intermediate squares overflow"
    values = (*node.inputs, *node.outputs)
    in_slots, out_slots = _half_slots(node, model)
    slots = (*in_slots, *out_slots)
    if not any(slot and _is_float(value) for slot, value in zip(slots, values, strict=True)):
        return "the operator has no FP16 form"
    for value in values:
        if value is None or not _is_float(value):
            continue
        largest = _largest(value, node, amax)
        if largest > limit:
            return f"{value.name} reaches {largest:.4g}"
    return None


def _largest(value: ir.Value, node: ir.Node, amax: Mapping[str, float]) -> float:
    if not value.is_initializer() or value.const_value is None:
        return amax.get(str(value.name), 0.0)
    if node.op_type == "Clip" or not value.const_value.size:
        return 0.0  # a bound outside the range is the range's own bound
    # Weights are used as they are: they need no headroom beyond FP16's own range.
    weight = float(np.abs(value.const_value.numpy()).max())
    return weight if weight > FP16_MAX else 0.0


def _half_slots(node: ir.Node, model: ir.Model) -> tuple[list[bool], list[bool]]:
    """For each input and output of a node, whether its operator allows FP16 there."""
    nothing = [False] * len(node.inputs), [False] * len(node.outputs)
    opset = model.graph.opset_imports.get(node.domain)
    if opset is None or not onnx.defs.has(node.op_type, opset, node.domain):
        return nothing
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    either = {"tensor(float)", "tensor(float16)"}
    half = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if either <= set(constraint.allowed_type_strs)
    }
    # A type that no input fixes (Cast, RandomNormal) comes from an attribute: leave it alone.
    tied = half & {formal.type_str for formal in schema.inputs}
    inputs = _per_argument(schema.inputs, len(node.inputs), half)
    outputs = _per_argument(schema.outputs, len(node.outputs), tied)
    return inputs, outputs


def _per_argument(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], count: int, types: set[str]
) -> list[bool]:
    # A variadic operator (Concat) has one formal parameter for all its last arguments.
    return [formals[min(i, len(formals) - 1)].type_str in types for i in range(count)]


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT

"""What the conversions would make of an FP32 graph, with the reasons of each, before any of them.

The graph is converted as an export converts it, but for the ranges of INT8: they need calibration
images, and change no node's precision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from deploykit.onnx_graph.casts import halve
from deploykit.onnx_graph.half import plan_half
from deploykit.onnx_graph.precision import Known
from deploykit.onnx_graph.qdq import QdqPlan, insert_qdq, plan_qdq

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from deploykit.onnx_graph.qdq import QdqPolicy

_ANY_RANGE: Final = 1.0


class Planned(NamedTuple):
    """The graph as it would be, and what is known of its nodes."""

    model: ir.Model
    known: Known


def planned_fp16(model: ir.Model, amax: Mapping[str, float], headroom: float) -> Planned:
    """The FP16 form of a graph that `tidy` has seen; see `plan_half`.

    Raises:
        ModelFileError: two nodes have the same name.
    """
    plan = plan_half(model, amax, headroom)
    return Planned(halve(model, plan), Known(plan.kept))


def planned_int8(
    model: ir.Model, amax: Mapping[str, float], headroom: float, policy: QdqPolicy
) -> Planned:
    """The INT8 form by the rules alone, the rest FP16; see `plan_qdq`.

    What an export would try out on images is noted for each node that it may change.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    plan = plan_qdq(model, policy)
    quantized = insert_qdq(model, plan, dict.fromkeys(plan.tensors, _ANY_RANGE))
    half = plan_half(quantized, amax, headroom)
    reasons = {**plan.kept, **half.kept}
    for name in plan.kept.keys() & half.kept.keys():
        reasons[name] = f"not FP16: {half.kept[name]}; not INT8: {plan.kept[name]}"
    return Planned(halve(quantized, half), Known(reasons, _open_trials(model, plan, policy)))


def _open_trials(model: ir.Model, plan: QdqPlan, policy: QdqPolicy) -> dict[str, str]:
    """The nodes that an export takes out of INT8 once, to see whether that pays."""
    found = dict.fromkeys(_additions(model, plan), "skip operand")
    first = plan_qdq(model, replace(policy, first_layer="keep"))
    return found | dict.fromkeys(_layers(plan) - _layers(first), "first layer")


def _additions(model: ir.Model, plan: QdqPlan) -> set[str]:
    readers = {reader.node for each in plan.activations.values() for reader in each}
    return {
        name
        for node in model.graph
        if node.op_type == "Add" and (name := str(node.name)) in readers
    }


def _layers(plan: QdqPlan) -> set[str]:
    return {weight.node for weight in plan.weights}

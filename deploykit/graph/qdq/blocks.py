"""Parts of a network whose quantized form can be fitted one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import onnx_ir as ir

from deploykit.graph.half import is_float
from deploykit.graph.qdq.trials import BIASED_OPS, bias_of, cuts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.graph.qdq.plan import QdqPlan

LAYERS: Final = 3
"""Quantized layers of a block without a residual addition, as an inverted residual has them."""

_FUSED: Final = frozenset(
    {"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"}
)
"""Operators that belong to the addition before them."""


class Block(NamedTuple):
    """Nodes in graph order that compute the value ``end`` of the value ``start`` alone."""

    start: str
    nodes: tuple[ir.Node, ...]
    end: str


def blocks_of(model: ir.Model, plan: QdqPlan) -> tuple[Block, ...]:
    """The whole network in blocks, from its image to its first output.

    A block ends behind a residual addition with its activation, or after `LAYERS` quantized
    layers, where a single value goes on that is read in eight bits (Li et al. 2021, BRECQ,
    https://arxiv.org/abs/2102.05426, section 3.2: blocks do better than layers and networks).
    """
    layers, ends = plan.layers, cuts(model)
    start = str(next(each.name for each in model.graph.inputs if not each.is_initializer()))
    found: list[Block] = []
    nodes: list[ir.Node] = []
    for node in model.graph:
        nodes.append(node)
        count = sum(str(each.name) in layers for each in nodes)
        is_whole = count >= LAYERS or (count > 0 and any(map(_joins, nodes)))
        if is_whole and node in ends and _may_end(node, ends[node], plan):
            found.append(Block(start, tuple(nodes), ends[node]))
            start, nodes = ends[node], []
    end = str(model.graph.outputs[0].name)
    if nodes and found and not any(str(each.name) in layers for each in nodes):
        last = found.pop()
        return (*found, Block(last.start, (*last.nodes, *nodes), end))
    return (*found, Block(start, tuple(nodes), end)) if nodes else tuple(found)


def _may_end(node: ir.Node, name: str, plan: QdqPlan) -> bool:
    if name in plan.activations:
        return True
    readers = {use.node.op_type for use in node.outputs[0].uses()}
    return _joins(node) and not readers <= _FUSED


def _joins(node: ir.Node) -> bool:
    """Whether it adds two values that were computed."""
    if node.op_type != "Add":
        return False
    operands = [value for value in node.inputs if value is not None and value.const_value is None]
    return len(operands) == 2 and all(map(is_float, operands))  # noqa: PLR2004


def constants_of(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Every constant that a node reads, by name."""
    found: dict[str, NDArray[Any]] = {}
    for node in model.graph:
        for value in node.inputs:
            tensor = None if value is None else ir.convenience.get_const_tensor(value)
            if value is not None and tensor is not None:
                found[str(value.name)] = tensor.numpy()
    return found


def own_weights(model: ir.Model, plan: QdqPlan) -> frozenset[str]:
    """Weights of the plan that one node reads and no other: changing them changes nothing else."""
    values = ir.convenience.create_value_mapping(model.graph)
    return frozenset(
        weight.tensor for weight in plan.weights if len(list(values[weight.tensor].uses())) == 1
    )


def biased_layers(model: ir.Model, plan: QdqPlan) -> Mapping[str, int]:
    """Layers of the plan whose bias can be corrected, with their number of output channels."""
    nodes = {str(node.name): node for node in model.graph}
    found = {}
    for weight in plan.weights:
        node = nodes[weight.node]
        data = node.inputs[weight.index]
        shape = None if data is None or data.const_value is None else data.const_value.shape
        if node.op_type not in BIASED_OPS or shape is None:
            continue
        groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
        channels = int(shape.numpy()[weight.axis]) * groups
        if bias_of(node, channels) is not None:
            found[weight.node] = channels
    return found

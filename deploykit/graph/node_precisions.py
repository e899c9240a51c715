"""Precision of each node of a graph, as it is or would be, with reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import onnx_ir as ir

from deploykit.core.precision import OWN, Precision
from deploykit.core.serialization import to_plain
from deploykit.graph.element_types import precision_of_type, quantized_precision
from deploykit.graph.half import BF16, FP16, HEAVY_OPS, HalfType, convert_to_half, plan_half
from deploykit.graph.half_range import NOTHING_UNFIT, Unfit
from deploykit.graph.kernel_costs import network_cost
from deploykit.graph.qdq import QdqPlan, insert_qdq, plan_qdq
from deploykit.graph.qdq.placement import MOVING_OPS
from deploykit.graph.shapes import fixed_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.costs.network import LayerCost
    from deploykit.graph.kernel_costs import RunGraph
    from deploykit.graph.qdq import QdqPolicy


INTEGER_OPS: Final = frozenset(
    {"ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul"}
)
"""Operators that are INT8 by themselves, without Q/DQ pairs; TensorRT takes none of them."""


@dataclass(frozen=True, slots=True)
class NodePrecision:
    """One node of the network; casts and Q/DQ pairs are part of its edges.

    ``kernel`` is the first of the nodes that it becomes one kernel with when the graph is
    compiled, ``None`` where it is no work of its own. ``reason`` says why it is not lower,
    ``trial`` what of it a trial on images may still change.
    """

    name: str
    op_type: str
    precision: Precision
    multiply_adds: int
    kernel: str | None
    reason: str | None = None
    trial: str | None = None


@dataclass(frozen=True)
class GraphPrecision:
    """All nodes in graph order, with the number of casts and Q/DQ pairs between them.

    ``casts`` are those between floating-point types, ``qdq_pairs`` stand behind activations,
    ``int8_weights`` and ``fp8_weights`` are constants that are stored so.
    """

    nodes: tuple[NodePrecision, ...]
    casts: int
    qdq_pairs: int
    int8_weights: int
    fp8_weights: int = 0

    @property
    def quantized_weights(self) -> int:
        """Constants of eight bits."""
        return self.int8_weights + self.fp8_weights

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the batch that was asked for."""
        return sum(node.multiply_adds for node in self.nodes)

    @property
    def multiply_adds_in(self) -> Mapping[Precision, int]:
        """Multiply-adds by the precision they run in."""
        found = dict.fromkeys(OWN, 0)
        for node in self.nodes:
            found[node.precision] += node.multiply_adds
        return found

    @property
    def heavy_in(self) -> Mapping[Precision, int]:
        """Convolutions and matrix products by precision."""
        found = dict.fromkeys(OWN, 0)
        for node in self.nodes:
            found[node.precision] += node.op_type in HEAVY_OPS
        return found

    @property
    def integer_ops(self) -> Mapping[str, int]:
        """Number of nodes of each operator that is INT8 without Q/DQ pairs."""
        return Counter(node.op_type for node in self.nodes if node.op_type in INTEGER_OPS)

    def share(self, multiply_adds: int) -> float:
        """Share of all multiply-adds, 0 to 1."""
        return multiply_adds / self.multiply_adds if self.multiply_adds else 0.0

    def heaviest_above(self, precision: Precision) -> tuple[NodePrecision, ...]:
        """Convolutions and matrix products that are not as low as ``precision``, largest first."""
        low = precision.facts.operand_bits
        heavy = (node for node in self.nodes if node.op_type in HEAVY_OPS)
        high = (node for node in heavy if node.precision.facts.operand_bits > low)
        return tuple(sorted(high, key=lambda node: -node.multiply_adds))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "multiply_adds": to_plain(self.multiply_adds_in),
            "share": {str(p): self.share(count) for p, count in self.multiply_adds_in.items()},
            "heavy_nodes": to_plain(self.heavy_in),
            "casts": self.casts,
            "qdq_pairs": self.qdq_pairs,
            "int8_weights": self.int8_weights,
            "fp8_weights": self.fp8_weights,
            "nodes": [self._row(node) for node in self.nodes],
        }

    def _row(self, node: NodePrecision) -> dict[str, Any]:
        return {
            "name": node.name,
            "op_type": node.op_type,
            "precision": str(node.precision),
            "multiply_adds": node.multiply_adds,
            "share": self.share(node.multiply_adds),
            "kernel": node.kernel,
            "reason": node.reason,
            "trial": node.trial,
        }


@dataclass(frozen=True)
class Known:
    """Reasons for the precision of nodes, and trials that are still open, both by node name."""

    reasons: Mapping[str, str] = field(default_factory=dict)
    trials: Mapping[str, str] = field(default_factory=dict)


CONVERTERS: Final = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
"""Operators that change the type of a value and compute nothing."""

_CARRIERS: Final = MOVING_OPS | {"Concat"}
_UNRECORDED: Final = "the file does not say why"
_NOTHING_KNOWN: Final = Known()


def read_precision(
    model: ir.Model,
    asked: Precision,
    batch: int,
    known: Known = _NOTHING_KNOWN,
    run: RunGraph | None = None,
) -> GraphPrecision:
    """Read a graph that `tidy` has seen, and that was made to be ``asked`` where that is possible.

    A convolution or matrix product is INT8 when both its operands come from DequantizeLinear, as
    compilers take it; an operator that only moves values when pairs stand before and behind it;
    every other node is what its result is. Where ``known`` has no reason for a node that is not
    as low as ``asked``, the graph itself is searched for one.

    Args:
        model: the graph, in any precision.
        asked: what the graph as a whole counts as.
        batch: images that multiply-adds are counted for, unless the graph's batch is fixed.
        known: reasons and open trials by the name of the node.
        run: computes the outputs of a graph, for shapes that cannot be inferred.

    Raises:
        UsageError: a dimension beside the batch is open.
        ModelFileError: nodes share names, or shape inference finds no shape for a value.
    """
    cost = network_cost(model, fixed_batch(model) or batch, run)
    kernels = {name: layer for layer in cost.layers for name in layer.nodes}
    reader = _Reader(model, asked, known)
    nodes = tuple(reader.read(node, kernels) for node in model.graph if _is_shown(node))
    stored = Counter(map(quantized_precision, filter(_restores_weight, model.graph)))
    return GraphPrecision(
        nodes=nodes,
        casts=sum(_is_float_cast(node) for node in model.graph),
        qdq_pairs=sum(_quantizes_activation(node) for node in model.graph),
        int8_weights=stored[Precision.INT8],
        fp8_weights=stored[Precision.FP8],
    )


class _Reader:
    """Reads the precision of nodes of one graph."""

    def __init__(self, model: ir.Model, asked: Precision, known: Known) -> None:
        self._asked = asked
        self._known = known
        half = BF16 if asked is Precision.BF16 else FP16
        self._half = half
        # Without magnitudes this says what the operators themselves have against 16 bits.
        self._not_half = plan_half(model, {}, 1.0, half=half).kept
        self._has_half = any(_is_half(node) for node in model.graph)
        # The pairs of one graph are all of one type.
        steps = (node for node in model.graph if node.op_type == "DequantizeLinear")
        first = next(steps, None)
        self._of_pairs = Precision.INT8 if first is None else quantized_precision(first)

    def read(self, node: ir.Node, kernels: Mapping[str, LayerCost]) -> NodePrecision:
        name = str(node.name)
        kernel = kernels.get(name)
        heads = kernel is not None and kernel.nodes[0] == name
        precision = _precision(node, kernel if heads else None, self._of_pairs)
        return NodePrecision(
            name=name,
            op_type=node.op_type,
            precision=precision,
            multiply_adds=kernel.multiply_adds if kernel is not None and heads else 0,
            kernel=None if kernel is None else kernel.nodes[0],
            reason=self._reason(node, precision, works=heads),
            trial=self._known.trials.get(name),
        )

    def _reason(self, node: ir.Node, precision: Precision, *, works: bool) -> str | None:
        if precision.facts.operand_bits <= self._asked.facts.operand_bits:
            return None
        name = str(node.name)
        if name in self._known.reasons:
            return self._known.reasons[name]
        if precision.facts.is_source:
            return self._not_half.get(name, self._why_not_half())
        return _why_not_quantized(node, self._asked.upper()) if works else None

    def _why_not_half(self) -> str:
        return _UNRECORDED if self._has_half else f"nothing in the graph is {self._half.name}"


def _precision(node: ir.Node, kernel: LayerCost | None, of_pairs: Precision) -> Precision:
    if node.op_type in INTEGER_OPS:
        return Precision.INT8
    if kernel is not None and kernel.precision.facts.quantized:
        return kernel.precision
    if node.op_type in _CARRIERS and _is_carried(node):
        return of_pairs
    found = {precision_of_type(value.dtype) for value in node.outputs}
    return min(found, key=lambda each: each.facts.operand_bits)


def _why_not_quantized(node: ir.Node, name: str) -> str:
    if node.op_type in _CARRIERS:
        return "it does not stand between Q/DQ pairs"
    if node.op_type not in HEAVY_OPS:
        return f"{name} is for convolutions and matrix products"
    operands = zip(("input", "second operand"), node.inputs[:2], strict=False)
    plain = [what for what, value in operands if value is not None and not _is_restored(value)]
    return f"no Q/DQ pair stands before its {' and its '.join(plain)}"


def _is_carried(node: ir.Node) -> bool:
    values = [value for value in node.inputs if value is not None and not value.is_initializer()]
    given = [value for value in values if _is_float(value)]
    return bool(given) and all(map(_is_restored, given)) and _is_quantized(node.outputs[0])


def _is_restored(value: ir.Value) -> bool:
    """True if it comes from DequantizeLinear, through operators that only move values."""
    open_values, seen = [value], set[ir.Node]()
    while open_values:
        node = open_values.pop().producer()
        if node is None or not (node.op_type in _CARRIERS or node.op_type in CONVERTERS):
            return False
        if node.op_type != "DequantizeLinear" and node not in seen:
            seen.add(node)
            open_values += _carried_inputs(node)
    return True


def _is_quantized(value: ir.Value) -> bool:
    """True if only QuantizeLinear reads it, through operators that only move values."""
    open_values, seen = [value], set[ir.Node]()
    while open_values:
        current = open_values.pop()
        readers = {use.node for use in current.uses()}
        if current.is_graph_output() or not readers:
            return False
        others = {reader for reader in readers if reader.op_type != "QuantizeLinear"} - seen
        if any(other.op_type not in _CARRIERS and other.op_type != "Cast" for other in others):
            return False
        seen |= others
        open_values += [other.outputs[0] for other in others]
    return True


def _carried_inputs(node: ir.Node) -> Iterator[ir.Value]:
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return (value for value in values if value is not None)


def _is_shown(node: ir.Node) -> bool:
    if node.op_type in INTEGER_OPS:
        return True
    return node.op_type not in CONVERTERS and any(map(_is_float, node.outputs))


def _is_half(node: ir.Node) -> bool:
    return any(not precision_of_type(value.dtype).facts.is_source for value in node.outputs)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _is_float_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and _is_float(node.inputs[0]) and _is_float(node.outputs[0])


def _quantizes_activation(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and not _comes_from_constant(node.inputs[0])


def _restores_weight(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and _comes_from_constant(node.inputs[0])


def _comes_from_constant(value: ir.Value | None) -> bool:
    """True for a constant, directly or behind QuantizeLinear or Cast."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in CONVERTERS:
            return False
        value = node.inputs[0]
    return value is not None


# Placement does not depend on the ranges, so that any will do where nothing is run.
_ANY_RANGE: Final = 1.0


class Planned(NamedTuple):
    """A converted graph, and the reasons for the precision of its nodes."""

    model: ir.Model
    known: Known


def planned_half(
    model: ir.Model,
    amax: Mapping[str, float],
    headroom: float,
    unfit: Unfit = NOTHING_UNFIT,
    half: HalfType = FP16,
) -> Planned:
    """The FP16 or BF16 form of a graph that `tidy` has seen; see `plan_half`.

    Raises:
        ModelFileError: two nodes have the same name.
    """
    plan = plan_half(model, amax, headroom, unfit, half)
    return Planned(convert_to_half(model, plan), Known(plan.kept))


def planned_int8(
    model: ir.Model,
    amax: Mapping[str, float],
    headroom: float,
    policy: QdqPolicy,
    unfit: Unfit = NOTHING_UNFIT,
) -> Planned:
    """The INT8 form by the rules alone, the rest FP16; see `plan_qdq`.

    Each node that a trial of an export may change says so.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    plan = plan_qdq(model, policy)
    planned = planned_quantized(model, plan, amax, headroom, unfit)
    return planned._replace(known=replace(planned.known, trials=_open_trials(model, plan, policy)))


def planned_quantized(
    model: ir.Model,
    plan: QdqPlan,
    amax: Mapping[str, float],
    headroom: float,
    unfit: Unfit = NOTHING_UNFIT,
) -> Planned:
    """The form that ``plan`` makes of a graph, the rest FP16; ``amax`` is for the rest."""
    name = plan.format.name
    quantized = insert_qdq(model, plan, dict.fromkeys(plan.tensors, _ANY_RANGE))
    half = plan_half(quantized, amax, headroom, unfit.without(plan.layers))
    reasons = {**plan.kept, **half.kept}
    for node in plan.kept.keys() & half.kept.keys():
        reasons[node] = f"not FP16: {half.kept[node]}; not {name}: {plan.kept[node]}"
    return Planned(convert_to_half(quantized, half), Known(reasons))


def _open_trials(model: ir.Model, plan: QdqPlan, policy: QdqPolicy) -> dict[str, str]:
    """The nodes that an export takes out of INT8 in a trial, by the name of the trial."""
    found = dict.fromkeys(_additions(model, plan), "skip operand")
    first = plan_qdq(model, replace(policy, first_layer="keep"))
    return found | dict.fromkeys(plan.layers - first.layers, "first layer")


def _additions(model: ir.Model, plan: QdqPlan) -> set[str]:
    readers = {reader.node for each in plan.activations.values() for reader in each}
    return {
        name
        for node in model.graph
        if node.op_type == "Add" and (name := str(node.name)) in readers
    }

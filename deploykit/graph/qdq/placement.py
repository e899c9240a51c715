"""Placement of Q/DQ pairs by rules: from a graph and a policy to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from deploykit.core.errors import ModelFileError
from deploykit.graph.half import is_float
from deploykit.graph.infinities import carried_infinities
from deploykit.graph.qdq.plan import QdqPlan, QdqPolicy, QuantizedWeight, Reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

    import onnx_ir as ir

    Demand = dict[ir.Value, list[Reader]]


MOVING_OPS: Final = frozenset(
    {"Flatten", "MaxPool", "GlobalMaxPool", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that commute with rounding: each output is one of the inputs, or zero."""


INFINITE_OPERAND: Final = "what it reads may hold the infinities of a mask, which no scale has"
"""Why a node that reads a masked value is not quantized."""


def share_scales(
    model: ir.Model, demand: Demand, policy: QdqPolicy, kept: dict[str, str]
) -> tuple[frozenset[str], ...]:
    """Extend ``demand`` by rules 4 and 5, and return the groups that share a scale."""
    groups = _Groups()
    # Against the graph's order, so that the operands of a concatenation are seen in their turn.
    for node in reversed(list(model.graph)):
        if node.op_type == "Concat":
            _share_concat(node, demand, policy, groups, kept)
    for value in list(demand):
        origin, first = _origin(value, demand)
        if first is not None and origin in demand:
            demand[origin].append(Reader(str(first.name), 0))
            groups.join((origin, value))
    return groups.as_names()


def _share_concat(
    node: ir.Node, demand: Demand, policy: QdqPolicy, groups: _Groups, kept: dict[str, str]
) -> None:
    """Rule 5: a concatenation that is read as INT8 takes INT8 operands of one scale.

    Operands with scales of their own would each be requantized into a copy. With one scale they
    are written where they belong by the kernels that compute them.
    """
    result = node.outputs[0]
    if result not in demand and all(_origin(v, demand)[0] is not result for v in demand):
        return
    pattern = policy.pattern_of(str(node.name))
    if pattern is not None:
        kept[str(node.name)] = f"excluded by {pattern!r}"
        return
    operands = [v for v in node.inputs if v is not None and v.const_value is None and is_float(v)]
    if len(operands) != len(node.inputs):
        kept[str(node.name)] = "an operand is a constant"
        return
    demand.setdefault(result, [])  # what moves its values on will read it
    for index, operand in enumerate(operands):
        demand.setdefault(operand, []).append(Reader(str(node.name), index))
    groups.join((*operands, result))


def _origin(value: ir.Value, demand: Demand) -> tuple[ir.Value, ir.Node | None]:
    """Rule 4: trace back through operators that only move values, to the nearest INT8 value.

    Returns the value where the trace ends, and the operator there that reads it.
    """
    first: ir.Node | None = None
    producer = value.producer()
    while producer is not None and _moves(producer) and (first is None or value not in demand):
        source = producer.inputs[0]
        if source is None:
            break
        first, value = producer, source
        producer = value.producer()
    return value, first


def _moves(node: ir.Node) -> bool:
    if node.op_type not in MOVING_OPS or node.domain:
        return False
    return node.op_type != "Pad" or _pads_with_zeros(node)


def _pads_with_zeros(node: ir.Node) -> bool:
    if node.attributes.get_string("mode", "constant") != "constant":
        return node.attributes.get_string("mode", "constant") in {"edge", "reflect", "wrap"}
    value = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    if value is None:
        return True
    return value.const_value is not None and not np.any(value.const_value.numpy())


class _Groups:
    """Groups of values that share a scale; groups with a common value are merged."""

    def __init__(self) -> None:
        self._sets: list[set[ir.Value]] = []

    def join(self, values: Iterable[ir.Value]) -> None:
        joined = set(values)
        apart = []
        for group in self._sets:
            if joined.isdisjoint(group):
                apart.append(group)
            else:
                joined |= group
        self._sets = [*apart, joined]

    def as_names(self) -> tuple[frozenset[str], ...]:
        named = (frozenset(str(value.name) for value in group) for group in self._sets)
        # Sorted, as sets have no order and the same graph must give the same plan.
        return tuple(sorted((g for g in named if len(g) > 1), key=sorted))


def skip_operands(
    model: ir.Model,
    convolutions: Set[ir.Node | None],
    policy: QdqPolicy,
    kept: dict[str, str],
    masked: Set[ir.Value],
) -> Iterator[tuple[ir.Node, int]]:
    """Each residual addition with the index of the operand that is to be INT8.

    The addition becomes part of the convolution before it (Conv + Add + ReLU in one kernel) when
    that convolution's result comes to it as it is. The other operand is then an input of the
    kernel, and a kernel with an INT8 output reads it as INT8. ``masked`` are the values of
    `carried_infinities`.
    """
    for node in model.graph:
        if node.op_type != "Add" or not _adds_two_activations(node):
            continue
        index = skip_operand(model, node, convolutions)
        reason = None if index is not None else "no quantized convolution ends in this addition"
        if index is not None and node.inputs[index] in masked:
            reason = INFINITE_OPERAND
        reason = _unwanted_skip(node, policy) or reason
        if reason is not None:
            kept[str(node.name)] = reason
        elif index is not None:
            yield node, index


def possible_skip_operands(
    model: ir.Model, convolutions: Set[ir.Node | None], masked: Set[ir.Value]
) -> Iterator[tuple[ir.Node, int]]:
    """Skip operands that `skip_operands` finds for ``convolutions`` or any subset of them.

    Where both operands come straight from a convolution, either may be the skip operand: if one
    of the two convolutions is not INT8, the addition is fused with the other.
    """
    for node in model.graph:
        if node.op_type == "Add" and _adds_two_activations(node):
            yield from (
                (node, index)
                for index in (0, 1)
                if _maker(node, 1 - index) in convolutions and node.inputs[index] not in masked
            )


def skip_operand(model: ir.Model, add: ir.Node, convolutions: Set[ir.Node | None]) -> int | None:
    """Index of the operand of ``add`` that does not come straight from its convolution.

    Where both do (a downsample block), the longer branch since their common ancestor is computed
    last, so that it is the one that the addition is fused with: it stays plain.
    """
    direct = [index for index in (0, 1) if _maker(add, index) in convolutions]
    if len(direct) != 2:  # noqa: PLR2004
        return 1 - direct[0] if direct else None
    lengths = _branch_lengths(model, add)
    return 1 if lengths[0] >= lengths[1] else 0


def _unwanted_skip(node: ir.Node, policy: QdqPolicy) -> str | None:
    pattern = policy.pattern_of(str(node.name))
    if pattern is not None:
        return f"excluded by {pattern!r}"
    return "residual additions are kept" if policy.residual == "keep" else None


def _adds_two_activations(node: ir.Node) -> bool:
    left, right = node.inputs
    # x + x is no residual: both operands are one value.
    if left is None or right is None or left is right:
        return False
    computed = all(is_float(value) and value.const_value is None for value in (left, right))
    return computed and _may_have_one_shape(left, right)


def _may_have_one_shape(left: ir.Value, right: ir.Value) -> bool:
    """True if the known dimensions of the shapes are equal.

    A smaller operand is broadcast: that is no residual, and no kernel fuses it.
    """
    if left.shape is None or right.shape is None:
        return True
    if len(left.shape) != len(right.shape):
        return False
    pairs = zip(left.shape, right.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _branch_lengths(model: ir.Model, add: ir.Node) -> tuple[int, int]:
    """Length in nodes of the longest path from the common ancestors to each operand.

    The graph is read backwards, and only until all that is left open belongs to both operands: a
    residual block costs its own nodes, wherever in the network it stands.
    """
    ends = [_maker(add, index) for index in (0, 1)]
    sides: dict[ir.Node, set[int]] = {}  # the operands that a node leads to
    for index, end in enumerate(ends):
        if end is not None:
            sides.setdefault(end, set()).add(index)
    open_nodes, branches = set(sides), []
    for node in reversed(model.graph):
        if all(len(sides[each]) == len(ends) for each in open_nodes):
            break
        if node in open_nodes:
            open_nodes.remove(node)
            if len(sides[node]) < len(ends):
                branches.append(node)
            for maker in _makers(node):
                sides.setdefault(maker, set()).update(sides[node])
                open_nodes.add(maker)
    longest: dict[ir.Node | None, int] = {}
    for node in reversed(branches):
        longest[node] = 1 + max((longest.get(maker, 0) for maker in _makers(node)), default=0)
    return longest.get(ends[0], 0), longest.get(ends[1], 0)


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes whose results ``node`` reads."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if maker is not None:
            yield maker


def _maker(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    return None if value is None else value.producer()


QUANTIZING_OPS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

WEIGHTED_OPS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with a weight that have INT8 kernels."""

CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})

AVERAGING_OPS: Final = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})

MATRIX_RANK: Final = 2

_NO_POLICY: Final = QdqPolicy()


def plan_qdq(model: ir.Model, policy: QdqPolicy = _NO_POLICY) -> QdqPlan:
    """Decide which values of a graph that `tidy` has seen become INT8.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    require_plannable(model)
    kept: dict[str, str] = {}
    # In this order: the INT8 layers decide the skip operands, and both decide how far rules 4 and 5
    # reach.
    masked = carried_infinities(model).keys()
    weights = quantized_weights(model, policy, kept, masked)
    demand = demanded(model, weights, policy, kept, masked)
    groups = share_scales(model, demand, policy, kept)
    explain_averages(model, kept, "INT8")
    return QdqPlan(in_graph_order(model, demand), tuple(weights.values()), groups, kept)


def calibration_tensors(model: ir.Model) -> tuple[str, ...]:
    """The values that a plan of any policy may need calibrated, in graph order.

    A policy only takes layers, additions and concatenations out of INT8. Without a layer an
    addition may have another skip operand, so each possible one is here. Rules 4 and 5 reach no
    further from fewer values, so that what they reach from all of these holds for each policy.

    Raises:
        ModelFileError: the graph is quantized already, or its nodes share names.
    """
    require_plannable(model)
    masked = carried_infinities(model).keys()
    weights = quantized_weights(model, ANY_SIZE, {}, masked)
    demand = _layer_inputs(model, weights)
    for add, index in possible_skip_operands(model, _convolutions(model, weights), masked):
        require(demand, add.inputs[index], Reader(str(add.name), index))
    share_scales(model, demand, ANY_SIZE, {})
    return tuple(in_graph_order(model, demand))


def require(demand: Demand, value: ir.Value | None, reader: Reader) -> None:
    """Add ``reader`` to the readers of the INT8 form of ``value``."""
    if value is not None:
        demand.setdefault(value, []).append(reader)


def weight_of(node: ir.Node, policy: QdqPolicy, *, is_first: bool) -> QuantizedWeight | str:
    """Rules 1, 2 and 7: the weight of a node that becomes INT8, or the reason against it.

    Rule 1: a scale for each output channel: axis 0 of a convolution's (M, C, ...) and of Gemm's
    (N, K) with ``transB=1``; axis 1 of ConvTranspose's (C, M, ...), Gemm's (K, N) and MatMul's.

    Rule 2: the inputs and the weight of a layer are quantized, not its output, so that nothing
    stands between it and the activation that the compiler fuses with it. The bias stays as it is.
    """
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        constant = node.inputs[0] is not None and node.inputs[0].const_value is not None
        return "its constant is the left operand" if constant else "it has no constant weight"
    if not is_float(weight) or not is_float(node.inputs[0]):
        unknown = node.inputs[0] is not None and node.inputs[0].dtype is None
        return "the type of its input is not known" if unknown else "it does not compute in FP32"
    if node.attributes.get_int("transA", 0) != 0:
        return "its data is transposed"
    shape = weight.const_value.shape.numpy()
    axis = _output_axis(node, len(shape))
    if axis is None:
        return f"its weight has {len(shape)} dimensions"
    small = _too_small(node, shape, policy, is_first=is_first)
    return small or QuantizedWeight(str(node.name), 1, str(weight.name), axis)


def _output_axis(node: ir.Node, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # The weight holds the outputs of one group only: channels of other groups share scales.
        return 1
    if rank != MATRIX_RANK:
        return None
    return 0 if node.attributes.get_int("transB", 0) != 0 else 1


def _too_small(
    node: ir.Node, shape: Sequence[int], policy: QdqPolicy, *, is_first: bool
) -> str | None:
    """Rule 7: small layers cost more as INT8 than they gain, but the first reads whole images."""
    if node.op_type in {"Gemm", "MatMul"}:
        if min(shape) < policy.min_features:
            return f"its weight {shape} is too small to gain from INT8"
        return None
    groups = node.attributes.get_int("group", 1)
    first, second = shape[:2]
    channels = (second * groups, first) if node.op_type == "Conv" else (first, second * groups)
    if min(channels) < policy.min_channels and not (
        is_first and channels[1] >= policy.min_channels
    ):
        return f"{channels[0]} to {channels[1]} channels are too few to gain from INT8"
    return None


class WeightRule(Protocol):
    """Says which weight of a node becomes eight bits wide, or the reason against it."""

    def __call__(
        self, node: ir.Node, policy: QdqPolicy, *, is_first: bool
    ) -> QuantizedWeight | str:
        """``is_first``: no other layer stands before the node."""


def quantized_weights(
    model: ir.Model,
    policy: QdqPolicy,
    kept: dict[str, str],
    masked: Set[ir.Value],
    rule: WeightRule = weight_of,
) -> dict[str, QuantizedWeight]:
    """The layers that ``policy`` and ``rule`` quantize; ``kept`` gets the others' reasons.

    No layer is quantized that reads one of ``masked``, the values of `carried_infinities`.
    """
    nodes = [node for node in model.graph if node.op_type in WEIGHTED_OPS and not node.domain]
    first, last = _ends(model, nodes)
    found: dict[str, QuantizedWeight] = {}
    for node in nodes:
        name = str(node.name)
        reason = _unwanted(node, policy, is_first=node in first, is_last=node in last)
        reason = reason or (INFINITE_OPERAND if node.inputs[0] in masked else None)
        weight = reason or rule(node, policy, is_first=node in first)
        if isinstance(weight, str):
            kept[name] = weight
        else:
            found[name] = weight
    return found


def demanded(
    model: ir.Model,
    weights: Mapping[str, QuantizedWeight],
    policy: QdqPolicy,
    kept: dict[str, str],
    masked: Set[ir.Value],
) -> Demand:
    """What the layers of ``weights`` read, and the skip operands of additions behind them."""
    demand = _layer_inputs(model, weights)
    for add, index in skip_operands(model, _convolutions(model, weights), policy, kept, masked):
        require(demand, add.inputs[index], Reader(str(add.name), index))
    return demand


def _layer_inputs(model: ir.Model, weights: Mapping[str, QuantizedWeight]) -> Demand:
    demand: Demand = {}
    for node in model.graph:
        if node.name in weights:
            require(demand, node.inputs[0], Reader(str(node.name), 0))
    return demand


def _convolutions(
    model: ir.Model, weights: Mapping[str, QuantizedWeight]
) -> frozenset[ir.Node | None]:
    return frozenset(
        node for node in model.graph if node.name in weights and node.op_type in CONVOLUTIONS
    )


def _unwanted(node: ir.Node, policy: QdqPolicy, *, is_first: bool, is_last: bool) -> str | None:
    if (reason := policy.reason_against(str(node.name))) is not None:
        return reason
    if is_first and policy.first_layer == "keep":
        return "the first layer is kept"
    return "the last layer is kept" if is_last and policy.last_layer == "keep" else None


def _ends(model: ir.Model, layers: Iterable[ir.Node]) -> tuple[set[ir.Node], set[ir.Node]]:
    """The layers without another layer before them, and those without one behind them.

    A product of constants and activations that is no layer of its own (irregular pooling, say)
    counts as well; it neither has a weight to quantize nor does it change which layer is last.
    """
    weighted = {
        node for node in layers if weight_of(node, ANY_SIZE, is_first=True).__class__ is not str
    }
    before: set[ir.Node] = set()  # nodes that a layer leads to
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker in before or maker in weighted for maker in makers):
            before.add(node)
    behind: set[ir.Node] = set()  # nodes that lead to a layer
    for node in reversed(list(model.graph)):
        readers = [use.node for value in node.outputs for use in value.uses()]
        if any(reader in behind or reader in weighted for reader in readers):
            behind.add(node)
    return weighted - before, weighted - behind


ANY_SIZE: Final = QdqPolicy(min_channels=0, min_features=0)


def explain_averages(model: ir.Model, kept: dict[str, str], name: str) -> None:
    """Rule 4: an average has more bits than its terms; it stays in high precision."""
    for node in model.graph:
        if node.op_type in AVERAGING_OPS and is_float(node.inputs[0]):
            kept[str(node.name)] = f"averages keep the bits that {name} would drop"


def require_plannable(model: ir.Model) -> None:
    """Refuse a graph that no plan can be made for.

    Raises:
        ModelFileError: it is quantized already, or its nodes share names.
    """
    quantizing = next((n for n in model.graph.all_nodes() if n.op_type in QUANTIZING_OPS), None)
    if quantizing is not None:
        raise ModelFileError(
            f"the graph is already quantized: it has {quantizing.op_type} {quantizing.name!r}\n"
            "give the FP32 graph that it was made from"
        )
    names = [str(node.name) for node in model.graph]
    if len(set(names)) < len(names):
        raise ModelFileError("the graph's nodes have no names of their own; tidy it first")


def in_graph_order(model: ir.Model, demand: Demand) -> Mapping[str, tuple[Reader, ...]]:
    """The readers of each value of ``demand`` by its name, each once."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {
        str(value.name): tuple(dict.fromkeys(demand[value])) for value in values if value in demand
    }

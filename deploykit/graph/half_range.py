"""Both ends of FP16's range: what overflows, what vanishes, and what must be measured to know.

FP16 ends at 65504, and below 6.1e-5 it loses its digits until nothing is left at 6e-8 (IEEE 754
binary16). An engine accumulates in FP32 as a rule, which nobody guarantees: so sums are judged by
what they would be in FP16.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, prod, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import add_constant, all_names
from deploykit.graph.external_weights import split_own

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from deploykit.core.specs import SplitGraph

FP16_MAX: Final = 65504.0
"""Largest finite FP16 number (IEEE 754 binary16)."""

FP16_EXACT: Final = 2048.0
"""FP16 has each whole number up to here; above it some are rounded to others."""

FP16_NORMAL: Final = 2.0**-14
"""Smallest FP16 number with all its digits; below are the subnormal ones, and 0."""

_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_SUMMING: Final = frozenset(
    {
        "AveragePool", "GlobalAveragePool", "Mean", "ReduceL1", "ReduceLogSum", "ReduceMean",
        "ReduceSum",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unfit:
    """Values and nodes that FP16 is not for, by name, each with the reason."""

    values: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)

    def joined(self, other: Unfit) -> Unfit:
        """What either rules out; the reasons of this one come first."""
        return Unfit({**other.values, **self.values}, {**other.nodes, **self.nodes})

    def without(self, nodes: Set[str]) -> Unfit:
        """The same but for the reasons of ``nodes``, which do not become FP16."""
        kept = {name: reason for name, reason in self.nodes.items() if name not in nodes}
        return Unfit(self.values, kept)


NOTHING_UNFIT: Final = Unfit()


# --- what must not vanish


def guarded_operands(node: ir.Node) -> tuple[int, ...]:
    """Places of operands that must not vanish."""
    if node.op_type in {"Log", "Sqrt", "Reciprocal"}:
        return (0,)
    if node.op_type in {"Div", "Mod"}:
        return (1,)
    exponent = number_of(node.inputs[1]) if node.op_type == "Pow" else None
    # A square of 0 is right; a root or an inverse of it is not what was meant.
    is_root = exponent is not None and (exponent < 0 or exponent != int(exponent))
    return (0,) if is_root else ()


# --- jumps


def jumping(model: ir.Model) -> Unfit:
    """Each Mod of fractions, and the nodes between the layers before it and itself.

    Its result jumps from the divisor to 0: rounding on the way to it can be the whole divisor.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        if node.op_type != "Mod" or node.domain or not _is_float(node.inputs[0]):
            continue
        reason = f"the result of Mod {node.name} jumps where its operand is rounded"
        waiting = [node]
        while waiting:
            each = waiting.pop()
            if str(each.name) in found:
                continue
            found[str(each.name)] = reason
            # A layer itself is among them: its result must not be rounded.
            if each.op_type in _WEIGHTED:
                continue
            makers = (value.producer() for value in each.inputs if _is_float(value) and value)
            waiting += [maker for maker in makers if maker is not None]
    return Unfit({}, found)


def ranked(model: ir.Model) -> Unfit:
    """Each ranking of probabilities, the Softmax or Sigmoid that makes them, and what is between.

    Rounded ones have no order: a Softmax has small ones, which FP16 makes 0, and a Sigmoid of 8 and
    of 10 is 1 with few digits. Those of one Softmax that are large have it, so that an ArgMax
    rounds nothing that counts. The probabilities (N, K) that a network gives may be ranked by what
    is put behind it.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        crowding = _CROWDING.get(node.op_type, ()) if not node.domain else ()
        if crowding:
            reason = f"{node.op_type} {node.name} ranks probabilities, which have no order rounded"
            passed = _back_to(crowding, node.inputs[0])
            found |= {str(each.name): reason for each in ([node, *passed] if passed else ())}
    for value in model.graph.outputs:
        is_rows = value.shape is not None and len(value.shape) == _ROWS
        passed = _back_to(("Softmax",), value) if is_rows else []
        reason = f"small probabilities of the output {value.name} have no order rounded"
        found |= {str(each.name): reason for each in passed}
    return Unfit({}, found)


def _back_to(kinds: tuple[str, ...], value: ir.Value | None) -> list[ir.Node]:
    """The nodes from the operator of one of ``kinds`` that made ``value``; none without such."""
    passed: list[ir.Node] = []
    while value is not None and len(passed) < _FARTHEST:
        maker = value.producer()
        if maker is None or maker.domain:
            return []
        passed.append(maker)
        if maker.op_type in kinds:
            return passed
        if maker.op_type not in _ORDERED:
            return []
        value = maker.inputs[0]
    return []


_CROWDING: Final = {
    "ArgMax": ("Sigmoid",),
    "ArgMin": ("Exp", "Sigmoid", "Softmax"),
    "TopK": ("Exp", "Sigmoid", "Softmax"),
}
"""Whose values come too near one another for a ranking."""

_ORDERED: Final = frozenset(
    {
        "Add", "Clip", "Div", "Flatten", "Gather", "Identity", "Mul", "Reshape", "Slice", "Sqrt",
        "Squeeze", "Sub", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that keep the order of what they are given first, with a constant or a sum."""

_FARTHEST: Final = 16
_ROWS: Final = 2


# --- products within a node


def attention_beyond_range(model: ir.Model, amax: Mapping[str, float]) -> Unfit:
    """Attention nodes whose products of queries and keys may pass 65504, each with the reason.

    These products have no name in the graph. Their bound is the largest query times the largest
    key times the size of a head, scaled.
    """
    nodes = {}
    for node in model.graph:
        if node.op_type == "Attention" and not node.domain:
            bound = _product_bound(node, amax)
            if bound > FP16_MAX:
                nodes[str(node.name)] = f"products of queries and keys may reach {bound:.4g}"
    return Unfit({}, nodes)


def _product_bound(node: ir.Node, amax: Mapping[str, float]) -> float:
    queries, keys = node.inputs[:2]
    if queries is None or keys is None or queries.shape is None:
        return inf
    size = queries.shape[-1]
    if not isinstance(size, int):
        return inf
    size //= node.attributes.get_int("q_num_heads", 1)
    scale = node.attributes.get_float("scale", 1 / sqrt(size))
    largest = [amax.get(str(value.name), inf) for value in (queries, keys)]
    return largest[0] * largest[1] * size * scale


# --- exponentials within a node


_LARGEST_EXPONENT: Final = 88.7
"""Of e, beyond which FP32 ends."""


def softplus_beyond_range(model: ir.Model, amax: Mapping[str, float], headroom: float) -> Unfit:
    """Softplus nodes that may be infinite as ONNX defines them, log(exp(x) + 1), in FP32 even.

    onnxruntime computes those of FP16 so, and those of FP32 without an overflow.
    """
    nodes = {}
    for node in model.graph:
        name = str(getattr(node.inputs[0], "name", "")) if node.inputs else ""
        largest = amax.get(name, 0.0)
        if node.op_type == "Softplus" and largest * headroom > _LARGEST_EXPONENT:
            nodes[str(node.name)] = f"its exponential may overflow: {name} reaches {largest:.4g}"
    return Unfit({}, nodes)


# --- what must be measured


@dataclass(frozen=True, slots=True)
class RangeProbe:
    """A number to measure at ``node``: the least magnitude of a value, or its largest sum.

    ``value`` is the name of the operand that must not vanish; ``None`` for a sum of magnitudes.
    """

    node: str
    value: str | None


def find_probes(model: ir.Model, amax: Mapping[str, float]) -> list[RangeProbe]:
    """Operands that must not vanish, and sums that may pass 65504 by the bound that ``amax`` gives.

    ``amax`` has the largest magnitude of each value. The bound of a sum is that of its operand
    times the sum of the weights' magnitudes, or times the number of terms.
    """
    found = []
    for node in model.graph:
        for index in guarded_operands(node):
            value = node.inputs[index]
            if value is not None and value.producer() is not None and _is_float(value):
                found.append(RangeProbe(str(node.name), str(value.name)))
        if not node.domain and _may_overflow(node, amax):
            found.append(RangeProbe(str(node.name), None))
    return found


def _may_overflow(node: ir.Node, amax: Mapping[str, float]) -> bool:
    if node.op_type not in _WEIGHTED | _SUMMING or not _is_float(node.inputs[0]):
        return False
    largest = amax.get(str(getattr(node.inputs[0], "name", "")), 0.0)
    factor = _weight_factor(node, amax) if node.op_type in _WEIGHTED else terms_of(node)
    return factor is None or largest * factor > FP16_MAX


def _weight_factor(node: ir.Node, amax: Mapping[str, float]) -> float | None:
    """Largest sum of magnitudes that one output has of the second operand; ``None`` if unknown."""
    if node.op_type == "Einsum":
        return None
    value = node.inputs[1]
    data = array_of(value)
    if data is None:
        terms = None if value is None or value.shape is None else value.shape[-2:][0]
        known = amax.get(str(getattr(value, "name", "")), 0.0)
        return known * terms if isinstance(terms, int) else None
    sizes = np.abs(data.astype(np.float32, copy=False))
    return float(_sum_of_outputs(node, sizes).max()) if sizes.size else 0.0


def _sum_of_outputs(node: ir.Node, sizes: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":
        return np.asarray(sizes.reshape(len(sizes), -1).sum(axis=1))
    if node.op_type == "ConvTranspose":
        # All that can reach one output: more than does, where strides leave gaps.
        return np.asarray(sizes.sum(axis=(0, *range(2, sizes.ndim))))
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    return np.asarray(sizes.sum(axis=-1 if transposed else max(-2, -sizes.ndim)))


def terms_of(node: ir.Node) -> float | None:
    """Numbers that are summed up for one result."""
    if node.op_type == "Mean":
        return None  # each operand has a largest magnitude of its own
    kernel = node.attributes.get_ints("kernel_shape", None)
    if kernel is not None:
        return float(prod(kernel))
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    axes = _axes(node, None if shape is None else len(shape))
    if shape is None or axes is None:
        return None
    sizes = [dim for axis in axes if isinstance(dim := shape[axis], int)]
    return float(prod(sizes)) if len(sizes) == len(axes) else None


def _axes(node: ir.Node, rank: int | None) -> Sequence[int] | None:
    if rank is None:
        return None
    if node.op_type == "GlobalAveragePool":
        return range(2, rank)
    given = node.attributes.get_ints("axes", None)
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        data = array_of(node.inputs[1])
        return None if data is None else [int(axis) for axis in data.reshape(-1)]
    return range(rank) if given is None else list(given)


def expose_probes(model: ir.Model, probes: Sequence[RangeProbe]) -> SplitGraph:
    """The graph with a scalar for each probe as its outputs, in order.

    Raises:
        ModelFileError: it is too large without its weights.
    """
    shown = model.clone()
    graph = shown.graph
    graph.outputs.clear()
    nodes = {str(node.name): node for node in graph}
    builder = _Builder(graph)
    for probe in probes:
        node = nodes[probe.node]
        result = builder.sum_of(node) if probe.value is None else builder.least_of(node, probe)
        graph.outputs.append(result)
    return split_own(shown, "the graph with its smallest values and sums")


class _Builder:
    """Adds the nodes that compute probes."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = all_names(graph)
        self._infinity = add_constant(graph, self._names.fresh("inf"), np.array(np.inf, np.float32))

    def least_of(self, node: ir.Node, probe: RangeProbe) -> ir.Value:
        """Least magnitude of an operand, its zeros left out: these stay 0."""
        value = next(v for v in node.inputs if v is not None and v.name == probe.value)
        size = self._add("Abs", [value], node)
        zero = add_constant(self._graph, self._names.fresh("zero"), np.zeros((), np.float32))
        is_zero = self._add("Equal", [size, zero], node, ir.DataType.BOOL)
        some = self._add("Where", [is_zero, self._infinity, size], node)
        return self._scalar("ReduceMin", some, node)

    def sum_of(self, node: ir.Node) -> ir.Value:
        """Largest sum of the magnitudes of what is added up for one output."""
        first = node.inputs[0]
        if node.op_type in {"Einsum", "Mean"}:
            op_type = "Sum" if node.op_type == "Mean" else node.op_type
            sizes = [self._add("Abs", [value], node) for value in node.inputs]
            total = self._add(op_type, sizes, node, attributes=node.attributes)
            return self._scalar("ReduceMax", total, node)
        size = self._add("Abs", [first], node)
        if node.op_type in _WEIGHTED:
            weights = self._add("Abs", [node.inputs[1]], node)
            total = self._add(node.op_type, [size, weights], node, attributes=node.attributes)
            return self._scalar("ReduceMax", total, node)
        if node.op_type == "AveragePool":
            mean = self._add(node.op_type, [size], node, attributes=node.attributes)
            count = np.float32(prod(node.attributes.get_ints("kernel_shape", ())))
            terms = add_constant(self._graph, self._names.fresh("terms"), np.asarray(count))
            return self._scalar("ReduceMax", self._add("Mul", [mean, terms], node), node)
        shape = None if first is None else first.shape
        axes = _axes(node, None if shape is None else len(shape))
        given = list(node.inputs[1:2])
        if axes is not None:
            data = np.array(list(axes), np.int64)
            given = [add_constant(self._graph, self._names.fresh("axes"), data)]
        total = self._add("ReduceSum", [size, *given], node)
        return self._scalar("ReduceMax", total, node)

    def _scalar(self, op_type: str, value: ir.Value, node: ir.Node) -> ir.Value:
        keep = {"keepdims": ir.AttrInt64("keepdims", 0)}
        result = self._add(op_type, [value], node, attributes=keep)
        result.shape = ir.Shape([])
        return result

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        node: ir.Node,
        dtype: ir.DataType = ir.DataType.FLOAT,
        *,
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> ir.Value:
        name = self._names.fresh(f"{node.name}_{op_type}")
        result = ir.Value(name=name, type=ir.TensorType(dtype))
        given = list((attributes or {}).values())
        self._graph.append(ir.Node("", op_type, inputs, given, outputs=[result], name=name))
        return result


def unfit_by_probes(probes: Sequence[RangeProbe], numbers: Sequence[float]) -> Unfit:
    """What the measured ``numbers`` of the probes, in order, rule out."""
    values, nodes = {}, {}
    for probe, number in zip(probes, numbers, strict=True):
        if probe.value is None:
            if number > FP16_MAX:
                nodes[probe.node] = (
                    f"magnitudes of {number:.4g} are added up in it: more than an FP16 "
                    "accumulator holds"
                )
        elif 0 < number < FP16_NORMAL:
            values[probe.value] = f"{probe.value} falls to {number:.3g}, which FP16 loses"
    return Unfit(values, nodes)


_CANCELLING: Final = 50 * 2.0**-11
"""Share of an operand below which FP16, of 11 bits, has a difference with an error above 2 %."""

_PASSING: Final = frozenset(
    {"Clip", "Flatten", "Identity", "Max", "Min", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that hand numbers on with the digits that they came with."""


def cancelled(
    model: ir.Model,
    amax: Mapping[str, float],
    probes: Sequence[RangeProbe],
    numbers: Sequence[float],
) -> Unfit:
    """Divisors and the like that are small differences of larger values, with these values.

    As 1 - p where p is near 1: FP16 has no number between 0.9995 and 1. ``numbers`` are those of
    the probes, in order, and ``amax`` the largest magnitudes.
    """
    makers = {str(value.name): node for node in model.graph for value in node.outputs}
    values: dict[str, str] = {}
    for probe, number in zip(probes, numbers, strict=True):
        node = makers.get(probe.value or "")
        if node is None or node.op_type != "Sub" or node.domain:
            continue
        operands = [each for each in node.inputs if each is not None and not is_constant(each)]
        largest = max((amax.get(str(each.name), 0.0) for each in operands), default=0.0)
        if number < largest * _CANCELLING:
            reason = f"{probe.value} falls to {number:.3g}, a difference that FP16 loses"
            values |= dict.fromkeys((str(each.name) for each in _passed_on(operands)), reason)
            values[str(probe.value)] = reason
    return Unfit(values)


def _passed_on(values: Sequence[ir.Value]) -> list[ir.Value]:
    """``values``, and those that they are up to operators that compute no new digits."""
    found = list(values)
    for value in found:  # which grows meanwhile
        maker = value.producer()
        if maker is not None and maker.op_type in _PASSING and not maker.domain:
            given = (each for each in maker.inputs if _is_float(each))
            found += [each for each in given if each is not None and not is_constant(each)]
    return found


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def is_constant(value: ir.Value) -> bool:
    """Whether the numbers of a value are in the file."""
    maker = value.producer()
    return value.is_initializer() or (maker is not None and maker.op_type == "Constant")


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def number_of(value: ir.Value | None) -> float | None:
    """The number of a constant that has one."""
    data = array_of(value)
    return float(data.reshape(-1)[0]) if data is not None and data.size == 1 else None

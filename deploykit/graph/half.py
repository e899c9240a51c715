"""FP16 or BF16 in a graph: which nodes change type, why others do not, and the casts between."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnx_ir as ir

from deploykit.core.errors import ModelFileError
from deploykit.graph.editing import Names, add_constant, insert_cast
from deploykit.graph.growth import exponentials, growth
from deploykit.graph.guards import (
    lost_below_one,
    makers_of_guarded,
    reaches_guarded,
    vanishing_guards,
    weak_guards,
)
from deploykit.graph.half_range import (
    FP16_EXACT,
    FP16_MAX,
    FP16_NORMAL,
    NOTHING_UNFIT,
    Unfit,
    attention_beyond_range,
    jumping,
    ranked,
    softplus_beyond_range,
)
from deploykit.graph.whole_numbers import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


HEAVY_OPS: Final = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that hold nearly all arithmetic; their precision is the network's precision."""

SQUARING_OPS: Final = frozenset(
    {
        "GlobalLpPool", "LRN", "LpNormalization", "LpPool", "MeanVarianceNormalization",
        "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare",
    }
)  # fmt: skip
"""Operators whose intermediate squares overflow FP16 from inputs of 256 on."""

_LOST_INSIDE: Final = dict.fromkeys(SQUARING_OPS, "its intermediate squares overflow") | {
    # onnx-tensorrt makes a Softmax and a Log of it: a probability of 2e-8 is 0 between them.
    "LogSoftmax": "compilers make it the logarithm of a Softmax, which FP16 loses"
}
"""Operators that pass the ends of FP16 inside, with the reason."""

NOT_COMPILED_IN_BF16: Final = frozenset(
    {"ConvTranspose", "GRU", "GlobalLpPool", "HardSwish", "LpNormalization", "LpPool", "Mish"}
)
"""Operators that TensorRT for RTX 1.7 compiles in FP32 and FP16 alone; ONNX has them in BF16 too.

The parser refuses most; of a ConvTranspose the compiler "could not infer output types". Found by
compiling each operator in BF16 by itself. A GRU becomes operators of two types; in FP32, in the
middle of a BF16 graph, the compiler fails in shapes of its own: no form of it is known to compile.
"""

QUANTIZING_OPS: Final = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Operators of quantized graphs: compilers take their scales in FP32, and FP16 ends at 6e-8."""


@dataclass(frozen=True, slots=True)
class HalfType:
    """A floating-point type of 16 bits, and whether it ends sooner than FP32 does.

    It has all whole numbers up to ``exact``, and ends at ``largest``.
    """

    name: str
    dtype: ir.DataType
    is_short: bool
    exact: float
    largest: float

    @property
    def schema_type(self) -> str:
        """What schemas of operators call it."""
        return f"tensor({self.dtype.name.lower()})"

    @property
    def suffix(self) -> str:
        """Of the names of values that become it."""
        return f"_{self.name.lower()}"


FP16: Final = HalfType(
    "FP16", ir.DataType.FLOAT16, is_short=True, exact=FP16_EXACT, largest=FP16_MAX
)
"""IEEE 754 binary16."""

BF16_MAX: Final = (2 - 2.0**-7) * 2.0**127
"""Largest finite BF16 number: 3.39e38, a little below that of FP32."""

BF16: Final = HalfType("BF16", ir.DataType.BFLOAT16, is_short=False, exact=256.0, largest=BF16_MAX)
"""The upper half of FP32's bits: its range, with 8 digits of 24."""


@dataclass(frozen=True)
class HalfPlan:
    """The nodes that become ``half``, and a reason for each other node with FP32 data."""

    halved: frozenset[str]
    kept: Mapping[str, str] = field(default_factory=dict)
    half: HalfType = FP16

    def kept_heavy(self, model: ir.Model) -> int:
        """Number of convolutions and matrix products that stay FP32, in subgraphs too."""
        kept = (node for node in model.graph if node.name in self.kept)
        return sum(inner.op_type in HEAVY_OPS for node in kept for inner in _with_subgraphs(node))


def plan_half(
    model: ir.Model,
    amax: Mapping[str, float],
    headroom: float,
    unfit: Unfit = NOTHING_UNFIT,
    half: HalfType = FP16,
) -> HalfPlan:
    """Decide for each node whether it becomes ``half``, from the largest magnitude of each value.

    ``headroom`` is by how much larger the activations may become: a value that grows with their
    square needs its square. A value that may pass 65504, is ``unfit``, vanishes, or counts beyond
    2048 keeps the node that makes it and the nodes that read it in FP32. So does a guard that FP16
    cannot hold for all nodes up to the one that it guards, and a Mod for those before it. BF16 has
    FP32's range: only what counts beyond 256, and a Mod, keep nodes from it. The graph must be one
    that `tidy` has seen.

    Raises:
        ModelFileError: two nodes have the same name, so that a plan by name would mix them up.
    """
    names = [str(node.name) for node in model.graph]
    if len(set(names)) < len(names):
        raise ModelFileError("the graph's nodes have no names of their own; tidy it first")
    unfit = _not_to_round(model, half).joined(unfit if half.is_short else NOTHING_UNFIT)
    if half.is_short:
        unfit = unfit.joined(_out_of_range(model, amax, headroom))
        unfit = unfit.joined(makers_of_guarded(model, unfit))
    shapes = _computed_from_shapes(model)
    halved: set[str] = set()
    kept: dict[str, str] = {}
    for node in model.graph:
        if not any(is_float(value) for value in (*node.inputs, *node.outputs)):
            continue
        reason = _reason_to_keep(node, model, half) or _reason_in_shapes(node, shapes, half)
        reason = reason or _reason_in_values(node, unfit.values, half)
        reason = reason or unfit.nodes.get(str(node.name))
        if reason:
            kept[str(node.name)] = reason
        else:
            halved.add(str(node.name))
    return HalfPlan(frozenset(halved), kept, half)


def half_slots(
    node: ir.Node, model: ir.Model, half: HalfType = FP16
) -> tuple[list[bool], list[bool]]:
    """Flags for the inputs and outputs of a node: True where its operator allows ``half``."""
    nothing = [False] * len(node.inputs), [False] * len(node.outputs)
    opset = model.graph.opset_imports.get(node.domain)
    if opset is None or not onnx.defs.has(node.op_type, opset, node.domain):
        return nothing
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    either = {"tensor(float)", half.schema_type}
    types = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if either <= set(constraint.allowed_type_strs)
    }
    # A type that no input fixes (Cast, RandomNormal) comes from an attribute: leave it alone.
    tied = types & {formal.type_str for formal in schema.inputs}
    inputs = _per_argument(schema.inputs, len(node.inputs), types)
    outputs = _per_argument(schema.outputs, len(node.outputs), tied)
    return inputs, outputs


def is_float(value: ir.Value | None) -> bool:
    """True if a value is known to be FP32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def _reason_to_keep(node: ir.Node, model: ir.Model, half: HalfType) -> str | None:
    """Reason against ``half`` in the operator itself, or ``None``."""
    if any(True for _ in _subgraphs(node)):
        return "control flow"
    if half.is_short and (reason := _LOST_INSIDE.get(node.op_type)):
        return reason
    if node.op_type in QUANTIZING_OPS:
        return "its scale stays FP32"
    if half is BF16 and node.op_type in NOT_COMPILED_IN_BF16:
        return "TensorRT does not compile it in BF16"
    in_slots, out_slots = half_slots(node, model, half)
    values = (*node.inputs, *node.outputs)
    typed = [v for v, slot in zip(values, (*in_slots, *out_slots), strict=True) if slot and v]
    if not any(is_float(value) for value in typed):
        return f"the operator has no {half.name} form"
    unknown = next((value for value in typed if value.name and value.dtype is None), None)
    return None if unknown is None else f"the type of {unknown.name} is not known"


def _reason_in_shapes(node: ir.Node, shapes: set[ir.Node], half: HalfType) -> str | None:
    computes = node in shapes and any(is_float(value) for value in node.outputs)
    return f"it computes with shapes, which {half.name} would round" if computes else None


def _not_to_round(model: ir.Model, half: HalfType) -> Unfit:
    """Whole numbers that a type of 16 bits does not have; what jumps, or is ranked, rounded."""
    numbers = {
        str(value.name): reason for value, reason in counted(model, half.name, half.exact).items()
    }
    below_one = lost_below_one(model, half.dtype.numpy())
    return Unfit(numbers).joined(jumping(model)).joined(ranked(model)).joined(below_one)


def _out_of_range(model: ir.Model, amax: Mapping[str, float], headroom: float) -> Unfit:
    """What FP16 is not for, by its rules and by the magnitudes."""
    unfit = vanishing_guards(model).joined(weak_guards(model))
    unfit = unfit.joined(attention_beyond_range(model, amax))
    unfit = unfit.joined(softplus_beyond_range(model, amax, headroom))
    beyond = _beyond_range(model, amax, headroom)
    return Unfit(beyond, _vanishing_weights(model, amax)).joined(unfit)


def _beyond_range(model: ir.Model, amax: Mapping[str, float], headroom: float) -> dict[str, str]:
    """Values that may pass 65504 on images that were not seen, or vanish where it matters."""
    powers, exponential = growth(model), exponentials(model, amax)
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    found = {}
    for value in values:
        name = str(value.name)
        largest = amax.get(name, 0.0)
        grown = largest * headroom ** powers.get(name, 1.0)
        is_beyond = grown > FP16_MAX
        if name in exponential:
            is_beyond = largest > FP16_MAX ** (1 / headroom)
        if is_beyond:
            found[name] = (
                f"{name} reaches {largest:.4g}" if largest < inf else f"{name} is infinite in FP32"
            )
        elif 0 < largest < FP16_NORMAL and (
            reaches_guarded(value) or not _is_absorbed(value, amax)
        ):
            found[name] = f"{name} reaches no more than {largest:.3g}, which FP16 loses"
    return found


_ABSORBING: Final = 2.0**-13
"""A sum from here on rounds by as much as FP16 loses of a small term: half of 2 ** -24."""


def _is_absorbed(value: ir.Value, amax: Mapping[str, float]) -> bool:
    """Whether ``value`` is only added to larger ones, which lose of it what FP16 loses."""
    uses = list(value.uses())
    sums = [use.node.outputs[0] for use in uses if use.node.op_type in {"Add", "Sub", "Sum"}]
    is_added = bool(uses) and len(sums) == len(uses) and not value.is_graph_output()
    return is_added and all(amax.get(str(each.name), 0.0) >= _ABSORBING for each in sums)


def _vanishing_weights(model: ir.Model, amax: Mapping[str, float]) -> dict[str, str]:
    """Nodes that multiply by constants of which FP16 leaves no digits, or nothing."""
    found = {}
    for node in model.graph:
        if node.op_type == "BatchNormalization" and (reason := _lost_variance(node)):
            found[str(node.name)] = reason
        if node.op_type not in HEAVY_OPS | {"Div", "Mul"}:
            continue
        if all(_is_absorbed(value, amax) for value in node.outputs):
            continue
        for value in node.inputs[:_FACTORS]:
            data = None if value is None or not value.is_initializer() else value.const_value
            if data is None or not is_float(value) or not data.size:
                continue
            largest = float(np.abs(data.numpy()).max())
            if 0 < largest < FP16_NORMAL:
                found[str(node.name)] = (
                    f"{data.name} reaches no more than {largest:.3g}, which FP16 loses"
                )
    return found


def _lost_variance(node: ir.Node) -> str | None:
    """Why a normalisation divides by another deviation, where a channel has hardly any."""
    data = None if node.inputs[_VARIANCE] is None else node.inputs[_VARIANCE].const_value
    if data is None or not data.size:
        return None
    variance = data.numpy().astype(np.float64)
    divided = variance + node.attributes.get_float("epsilon", 1e-5)
    with np.errstate(over="ignore"):  # what passes 65504 keeps its node for that
        rounded = variance.astype(np.float16)
    lost = np.abs(variance - rounded) > divided * _LOST_SHARE
    least = variance[lost & (variance < FP16_NORMAL)].min(initial=inf)
    return f"{data.name} falls to {least:.3g}, which FP16 loses" if least < inf else None


_VARIANCE: Final = 4
"""Place of the variance among the inputs of a BatchNormalization."""

_LOST_SHARE: Final = 1e-2
"""Of a variance, whose root is off by half of it."""

_FACTORS: Final = 2
"""Operands of a layer or product that are multiplied; a third is the bias."""


def _reason_in_values(node: ir.Node, unfit: Mapping[str, str], half: HalfType) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is not None and is_float(value):
            reason = _weight_beyond_range(value, node) if half.is_short else None
            reason = reason or unfit.get(str(value.name))
            if reason:
                return reason
    return None


def _weight_beyond_range(value: ir.Value, node: ir.Node) -> str | None:
    if not value.is_initializer() or value.const_value is None or not value.const_value.size:
        return None
    if node.op_type == "Clip":
        return None  # a bound outside the range is the range's own bound
    # Weights are used as they are: they need no headroom beyond FP16's own range. FP16 has the
    # infinities of a mask. It has no -3.4e38, and neither -infinity nor -65504 can stand for it:
    # of a row that is masked as a whole FP32 makes equal probabilities, of -infinities come NaN,
    # and -65504 and a score of -20 are -infinity.
    sizes = np.abs(value.const_value.numpy())
    largest = float(sizes.max(where=np.isfinite(sizes), initial=0.0))
    return f"{value.name} reaches {largest:.4g}" if largest > FP16_MAX else None


def _computed_from_shapes(model: ir.Model) -> set[ir.Node]:
    """Nodes that compute with shapes: FP16 is exact up to 2048, BF16 to 256; sizes are larger."""
    found: set[ir.Node] = set()
    for node in model.graph:
        given = [v for v in node.inputs if v is not None and not v.is_initializer()]
        follows = bool(given) and all(value.producer() in found for value in given)
        if follows or node.op_type in {"Shape", "Size"}:
            found.add(node)
    return found


def _per_argument(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], count: int, types: set[str]
) -> list[bool]:
    # A variadic operator (Concat) has one formal parameter for all its last arguments.
    return [formals[min(i, len(formals) - 1)].type_str in types for i in range(count)]


def _with_subgraphs(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for graph in _subgraphs(node):
        yield from graph.all_nodes()


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def convert_to_half(model: ir.Model, plan: HalfPlan) -> ir.Model:
    """A copy of the graph with the plan carried out; its inputs and outputs stay FP32."""
    result = model.clone()
    # Types differ from those recorded once the first node has changed, so slots are read first.
    half = plan.half
    work = [_Halved(node, result, half) for node in result.graph if node.name in plan.halved]
    changed = [value for item in work for value in item.results]
    lowered = set(changed)
    caster = _Caster(result, half)
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
    """A node of the plan with the FP32 values that its operator lets be narrower."""

    def __init__(self, node: ir.Node, model: ir.Model, half: HalfType) -> None:
        in_slots, out_slots = half_slots(node, model, half)
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
    """Inserts casts, one for each value and direction."""

    def __init__(self, model: ir.Model, half: HalfType) -> None:
        self._half = half
        self._graph = model.graph
        self._lowered: dict[ir.Value, ir.Value] = {}
        self._values = Names(ir.convenience.create_value_mapping(model.graph))
        self._nodes = Names(str(node.name) for node in model.graph)

    def down(self, value: ir.Value) -> ir.Value:
        """The narrow copy of a value that itself stays FP32."""
        if value not in self._lowered:
            name = self._values.fresh(f"{value.name}{self._half.suffix}")
            # A weight is converted here: behind a Cast the file would still hold it in FP32.
            constant = value.const_value if value.is_initializer() else None
            self._lowered[value] = (
                self._cast(value, self._half.dtype, name)
                if constant is None
                else self._lower(constant, name)
            )
        return self._lowered[value]

    def retype(self, value: ir.Value, half_readers: set[tuple[ir.Node, int]]) -> None:
        """Make a computed value narrow, with a cast back for its readers that stay FP32."""
        readers = [(use.node, use.idx) for use in value.uses()]
        readers = [reader for reader in readers if reader not in half_readers]
        places = [i for i, output in enumerate(self._graph.outputs) if output is value]
        value.type = ir.TensorType(self._half.dtype)  # the old one is shared with the original
        if not places and not readers:
            return
        name = str(value.name)
        if places:  # the caller's name goes to the FP32 value
            value.name = self._values.fresh(name + self._half.suffix)
        else:
            name = self._values.fresh(f"{name}_fp32")
        raised = self._cast(value, ir.DataType.FLOAT, name)
        for node, index in readers:
            node.replace_input_with(index, raised)
        for place in places:
            self._graph.outputs[place] = raised

    def drop_unused_initializers(self) -> None:
        """Remove the FP32 weights that no node reads any more."""
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(str(value.name))

    def _lower(self, constant: ir.TensorProtocol, name: str) -> ir.Value:
        data = constant.numpy()
        # What lies outside the range here are Clip bounds, and masks of -3.4e38, which BF16 would
        # round to -infinity: the nearest number means the same. Infinities stay what they are.
        near = np.clip(data, -self._half.largest, self._half.largest)
        data = np.where(np.isinf(data), data, near).astype(data.dtype)
        return add_constant(self._graph, name, data.astype(self._half.dtype.numpy()))

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        return insert_cast(self._graph, value, to, name, self._nodes)

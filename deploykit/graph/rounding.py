"""FP32 form of a converted graph for CPUs, which rounds where an engine rounds.

A CPU runs an FP16 graph in FP32: onnxruntime casts around operators that it has no FP16 kernels
for, and takes the casts between them away again. So nothing overflows, vanishes or is rounded
there. This form has FP32 operators with an explicit pair of casts, down and up again, behind each
value that an engine stores. Such a pair loses digits on purpose, and no optimiser removes it.

Sums inside an operator stay FP32, as engines usually accumulate; nobody guarantees it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from deploykit.graph.editing import Names, insert_cast
from deploykit.graph.element_types import has_bf16
from deploykit.graph.files import infer_shapes
from deploykit.graph.half import HEAVY_OPS
from deploykit.graph.half_range import Unfit, guarded_operands
from deploykit.graph.opset import OPSET_FOR_BF16

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

NARROW_TYPES: Final = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types that a CPU does not compute in."""

POINTWISE_OPS: Final = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp",
        "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish",
        "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign", "Sin",
        "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip
"""Operators that compilers fuse with their neighbours: values between them stay in registers."""

EXACT_OPS: Final = frozenset(
    {
        "Abs", "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg",
        "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "ScatterElements",
        "ScatterND", "Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK",
        "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators whose results are among their operands, or 0, so that they need no rounding."""


class Stored(StrEnum):
    """Which values an engine is taken to store in its narrow type.

    The two bound an engine: ``EVERY`` rounds more than a compiler that fuses, ``FUSED`` less than
    one that does not.
    """

    EVERY = "every value"
    FUSED = "what fusion leaves"


def rounding_form(model: ir.Model, stored: Stored = Stored.FUSED) -> ir.Model:
    """A copy in FP32 that rounds to the narrow type of each value that is ``stored``.

    Names of nodes and values are kept, so is every output. A graph that has no narrow values
    comes back as it is. Types that a file leaves out are inferred: nothing of unknown type would
    be rounded. That of a BF16 graph is of the opset before the one that brought BF16, which adds
    types alone: onnxruntime has no kernels of the later one for some operators, as RoiAlign.
    """
    result = _typed(model.clone())
    if result.opset_imports.get("") == OPSET_FOR_BF16 and has_bf16(result):
        result.opset_imports[""] = OPSET_FOR_BF16 - 1
    form = _Form(result, _inside(result) if stored is Stored.FUSED else frozenset())
    for value in list(result.graph.initializers.values()):
        form.raise_constant(value)
    for node in list(result.graph):
        form.raise_node(node)
    return result


def _typed(model: ir.Model) -> ir.Model:
    """The model with a type for each value that a node makes, as far as operators say it."""
    if any(value.dtype is None and value.name for node in model.graph for value in node.outputs):
        infer_shapes(model)
    return model


class _Form:
    """Rewrites one graph; ``inside`` are the narrow values that are never stored."""

    def __init__(self, model: ir.Model, inside: frozenset[ir.Value]) -> None:
        self._graph = model.graph
        self._inside = inside
        self._values = Names(ir.convenience.create_value_mapping(model.graph))
        self._nodes = Names(str(node.name) for node in model.graph)

    def raise_constant(self, value: ir.Value) -> None:
        """Keep the constant narrow, and put a cast between it and its readers."""
        if value.dtype not in NARROW_TYPES or not value.uses():
            return
        readers = list(value.uses())
        raised = self._cast(value, ir.DataType.FLOAT, self._values.fresh(f"{value.name}_fp32"))
        for node, index in readers:
            node.replace_input_with(index, raised)

    def raise_node(self, node: ir.Node) -> None:
        """Let a node compute in FP32, and round what it makes."""
        # What nobody wants of an operator, as a layer's last state, has no name.
        narrow = [value for value in node.outputs if value.dtype in NARROW_TYPES and value.name]
        if node.op_type == "Cast" and not node.domain:
            self._raise_cast(node)
            return
        for value in narrow:
            type_ = value.dtype
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type in {"Constant", "ConstantOfShape"} or type_ is None:
                self._raise_made(value, type_)
            elif value not in self._inside and not self._is_exact(node):
                self._round(value, type_)

    def _is_exact(self, node: ir.Node) -> bool:
        """Whether what the node makes is rounded already, because all that it reads is."""
        return node.op_type in EXACT_OPS and self._inside.isdisjoint(node.inputs)

    def _raise_cast(self, node: ir.Node) -> None:
        source, value = node.inputs[0], node.outputs[0]
        narrow = value.dtype
        if narrow not in NARROW_TYPES or source is None:
            return  # of what is FP32 by now to FP32, or to whole numbers
        value.type = ir.TensorType(ir.DataType.FLOAT)
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        if value not in self._inside:
            self._round(value, narrow)

    def _raise_made(self, value: ir.Value, narrow: ir.DataType | None) -> None:
        """A constant that a node holds stays narrow in the file."""
        value.type = ir.TensorType(narrow or ir.DataType.FLOAT)
        readers = list(value.uses())
        raised = self._cast(value, ir.DataType.FLOAT, self._values.fresh(f"{value.name}_fp32"))
        for reader, index in readers:
            reader.replace_input_with(index, raised)

    def _round(self, value: ir.Value, narrow: ir.DataType) -> None:
        """Give the name of ``value`` to the rounded one; what the node makes gets another."""
        name, shape = str(value.name), value.shape
        readers = list(value.uses())
        places = [i for i, output in enumerate(self._graph.outputs) if output is value]
        value.name = self._values.fresh(f"{name}_exact")
        lowered = self._cast(value, narrow, self._values.fresh(f"{name}_rounded"))
        rounded = self._cast(lowered, ir.DataType.FLOAT, name)
        rounded.shape = shape
        for reader, index in readers:
            reader.replace_input_with(index, rounded)
        for place in places:
            self._graph.outputs[place] = rounded

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        return insert_cast(self._graph, value, to, name, self._nodes)


def rounded_from(form: ir.Model) -> dict[str, str]:
    """The value that each rounded one of a `rounding_form` is made from, by name."""
    found = {}
    casts = [node for node in form.graph if node.op_type == "Cast" and not node.domain]
    lowered = {v: cast.inputs[0] for cast in casts for v in cast.outputs if v.dtype in NARROW_TYPES}
    for cast in casts:
        source = lowered.get(cast.inputs[0]) if cast.inputs[0] is not None else None
        if source is not None and source.dtype is ir.DataType.FLOAT:
            found[str(cast.outputs[0].name)] = str(source.name)
    return found


def _inside(model: ir.Model) -> frozenset[ir.Value]:
    """Narrow values that only the kernel which makes them reads."""
    groups = _Groups()
    for node in model.graph:
        if not _fuses(node):
            continue
        groups.begin(node, is_heavy=node.op_type in HEAVY_OPS)
        if node.op_type in HEAVY_OPS:
            continue
        # The nearest first: of two convolutions before an addition one alone fuses with it.
        makers = (value.producer() for value in reversed(node.inputs) if value is not None)
        groups.join(node, (maker for maker in makers if maker is not None))
    values = (value for node in model.graph if _fuses(node) for value in node.outputs)
    kept = (v for v in values if v.dtype in NARROW_TYPES and groups.hold(v))
    return frozenset((*kept, *_dequantized(model)))


def _fuses(node: ir.Node) -> bool:
    return not node.domain and (node.op_type in POINTWISE_OPS or node.op_type in HEAVY_OPS)


def _dequantized(model: ir.Model) -> Iterable[ir.Value]:
    """Narrow copies of what a DequantizeLinear makes for a convolution: never stored."""
    for node in model.graph:
        maker = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] else None
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        value = node.outputs[0]
        if all(use.node.op_type in HEAVY_OPS for use in value.uses()):
            yield value


class _Groups:
    """Sets of nodes that become one kernel, with one convolution or matrix product at the most."""

    def __init__(self) -> None:
        self._parent: dict[ir.Node, ir.Node] = {}
        self._heavy: dict[ir.Node, bool] = {}

    def begin(self, node: ir.Node, *, is_heavy: bool) -> None:
        """A group of its own."""
        self._parent[node] = node
        self._heavy[node] = is_heavy

    def join(self, node: ir.Node, makers: Iterable[ir.Node]) -> None:
        """Put ``node`` into the groups of the nodes before it, as long as they fit together."""
        for maker in makers:
            if maker not in self._parent:
                continue
            own, other = self._root(node), self._root(maker)
            if own is other or (self._heavy[own] and self._heavy[other]):
                continue
            self._parent[own] = other
            self._heavy[other] |= self._heavy[own]

    def hold(self, value: ir.Value) -> bool:
        """Whether all readers of ``value`` are in the group that makes it."""
        maker = value.producer()
        if maker is None or value.is_graph_output() or not value.uses():
            return False
        root = self._root(maker)
        return all(
            use.node in self._parent and self._root(use.node) is root for use in value.uses()
        )

    def _root(self, node: ir.Node) -> ir.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node


def unfit_by_overflow(narrow: ir.Model, broken: Set[str]) -> Unfit:
    """Narrow values of ``broken``, which are NaN or infinite, that turn so by themselves.

    ``narrow`` is the graph before its rounding form was made. What only follows from another
    broken value is left out. A node that stays FP32 and makes a broken value does so because what
    it reads was rounded: then that is unfit.
    """
    reason = "may overflow: it is NaN or infinite where each {} value is rounded"
    found = Unfit()
    for node in narrow.graph:
        if any(value is not None and value.name in broken for value in node.inputs):
            continue
        for value in node.outputs:
            if value.name not in broken:
                continue
            if value.dtype not in NARROW_TYPES:
                found = found.joined(_rounded_before(node))
                continue
            source = node.inputs[0] if node.op_type == "Cast" else value
            said = reason.format(_type_name(value))
            name = str(getattr(source, "name", value.name))
            found = found.joined(Unfit({name: said}, {str(node.name): said}))
    return found


def _rounded_before(node: ir.Node) -> Unfit:
    """Narrow values that a node in FP32 depends on, through others in FP32, and their nodes.

    They are those behind the operands that must not vanish, where there are some, or else all.
    """
    found = {index: _narrow_sources(value) for index, value in enumerate(node.inputs)}
    guarded = [value for index in guarded_operands(node) for value in found[index]]
    blamed = guarded or [value for values in found.values() for value in values]
    reason = "{} gives NaN or infinity where {} is rounded to {}"
    said = {value: reason.format(node.name, value.name, _type_name(value)) for value in blamed}
    return Unfit(
        {str(value.name): why for value, why in said.items()},
        {str(getattr(value.producer(), "name", "")): why for value, why in said.items()},
    )


def _narrow_sources(value: ir.Value | None) -> list[ir.Value]:
    """The nearest narrow values before ``value``."""
    found, seen = [], set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        maker = None if current is None else current.producer()
        if current is None or maker is None or current in seen:
            continue
        seen.add(current)
        if current.dtype in NARROW_TYPES:
            found.append(current)
        else:
            waiting.extend(maker.inputs)
    return found


def _type_name(value: ir.Value) -> str:
    return "BF16" if value.dtype is ir.DataType.BFLOAT16 else "FP16"


def computes_narrow(model: ir.Model) -> bool:
    """Whether a node of the graph makes a narrow value, also of types that the file leaves out."""
    made = [value for node in model.graph for value in node.outputs if value.name]
    if any(value.dtype is None for value in made):
        made = [value for node in _typed(model.clone()).graph for value in node.outputs]
    return any(value.dtype in NARROW_TYPES for value in made)

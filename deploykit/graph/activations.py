"""Activations of a graph as outputs, and those of two graphs of one network side by side.

A conversion keeps the names of nodes and values. What it adds are casts, Q/DQ pairs, and for an
output of the graph a cast that takes over its name; all of these lead back to the value that they
stand for, the *origin*.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.sizes import image_among
from deploykit.graph.editing import Names, add_constant, all_names
from deploykit.graph.external_weights import split_own
from deploykit.graph.files import infer_shapes
from deploykit.graph.infinities import Signs, carried_infinities, mended

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from deploykit.core.specs import SplitGraph


CHANGED: Final = "equalised/"
"""Beginning of the names of values that stand for no value of the graph before a conversion."""


def expose_named(model: ir.Model, names: Sequence[str]) -> SplitGraph:
    """The graph with the FP32 values ``names`` as outputs after its own, in the order given.

    Inputs of the graph may be among the names; they are not made outputs, the caller has them.

    Raises:
        UsageError: no node computes an FP32 value of such a name.
        ModelFileError: it is too large without its weights.
    """
    shown = model.clone()
    computed = {value.name: value for node in shown.graph for value in node.outputs}
    given = {value.name for value in shown.graph.inputs}
    for name in dict.fromkeys(names):
        if name in given:
            continue
        value = computed.get(name)
        if value is not None and value.dtype is None:
            infer_shapes(shown)  # for a graph that was never tidied
        if value is None or value.dtype != ir.DataType.FLOAT:
            raise UsageError(
                f"the graph computes no FP32 value {name!r}\n"
                "expected names of values between its nodes"
            )
        if not value.is_graph_output():
            shown.graph.outputs.append(value)
    return split_own(shown, "the graph with its activations")


_REDUCTIONS: Final = ("ReduceMax", "ReduceMin", "ReduceSum")


class Extremes(NamedTuple):
    """Names of three scalar outputs for one value.

    ``broken`` is 0, or NaN where the value has NaN or infinity, as a maximum may ignore NaN. Where
    the image decides how many numbers there are, 0 counts as one of them.

    Of a value that may have infinities which are no fault, of the signs ``expected``, the
    three are those of its numbers, an infinity counted as 0. Then ``signs`` is the name of a tensor
    of its shape, INT8: the sign where there is an infinity, and 0 elsewhere.
    """

    largest: str
    least: str
    broken: str
    signs: str = ""
    expected: Signs = frozenset()


def expose_magnitudes(
    model: ir.Model, own: Collection[str] = (), left_out: Collection[str] = ()
) -> tuple[SplitGraph, Mapping[str, Extremes]]:
    """The graph with the extremes of every FP32 value that a node computes, by name in graph order.

    Values ``left_out`` have none. ``own`` are names of values that were seen with infinities of
    FP32 itself: these are told from their numbers, as those of constants are.

    The values themselves would take gigabytes: those of one image of 518 pixels in a large vision
    transformer take 20. Values that are known to be empty have no extremes, and neither have those
    of `mended`, whose NaN goes no further.

    Raises:
        ModelFileError: it is too large without its weights.
    """
    shown = model.clone()
    graph = shown.graph
    names = all_names(graph)
    zero = add_constant(graph, names.fresh("nothing"), np.zeros((), np.float32))
    infinities, passed_over = carried_infinities(shown, own), mended(shown).union(left_out)
    apart = _Apart(graph, zero, names) if infinities else None
    found: dict[str, Extremes] = {}
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT or _has_none(value) or value.name in passed_over:
                continue
            if apart is None or value not in infinities:
                found[str(value.name)] = _watch(graph, node, value, zero, names)
                continue
            last, numbers, signs = apart.put(node, value)
            of = _watch(graph, last, numbers, zero, names)
            found[str(value.name)] = of._replace(signs=signs, expected=infinities[value])
    return split_own(shown, "the graph with its activations"), found


class _Apart:
    """Adds nodes that tell infinities from numbers, in operators that opset 9 has."""

    def __init__(self, graph: ir.Graph, zero: ir.Value, names: Names) -> None:
        self._graph, self._zero, self._names = graph, zero, names
        end = np.asarray(np.finfo(np.float32).max)
        self._end = add_constant(graph, names.fresh("largest_number"), end)

    def put(self, node: ir.Node, value: ir.Value) -> tuple[ir.Node, ir.Value, str]:
        """The last node added, the numbers of ``value``, and the output that has the signs."""
        added: list[ir.Node] = []

        def add(kind: str, inputs: Sequence[ir.Value], dtype: ir.DataType) -> ir.Value:
            name = self._names.fresh(f"{value.name}_{kind}")
            made = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
            to = [ir.AttrInt64("to", int(dtype))] if kind == "Cast" else []
            added.append(ir.Node("", kind, inputs, to, outputs=[made], name=name))
            return made

        size = add("Abs", [value], ir.DataType.FLOAT)
        # NaN is not greater than anything, so it stays among the numbers, and is found there.
        ends = add("Greater", [size, self._end], ir.DataType.BOOL)
        numbers = add("Where", [ends, self._zero, value], ir.DataType.FLOAT)
        infinite = add("Where", [ends, value, self._zero], ir.DataType.FLOAT)
        sign = add("Sign", [infinite], ir.DataType.FLOAT)
        signs = add("Cast", [sign], ir.DataType.INT8)
        self._graph.insert_after(node, added)
        self._graph.outputs.append(signs)
        return added[-1], numbers, str(signs.name)


def _watch(
    graph: ir.Graph, node: ir.Node, value: ir.Value, zero: ir.Value, names: Names
) -> Extremes:
    """Put the reductions right behind ``node``, so that a runner can free the value early."""
    nothing = ir.Value(name=names.fresh(f"{value.name}_nothing"), type=value.type)
    # 0 x NaN and 0 x infinity are NaN, and any other number times 0 is 0.
    added = [ir.Node("", "Mul", [value, zero], outputs=[nothing], name=str(nothing.name))]
    outputs = []
    for kind, source in zip(_REDUCTIONS, (value, value, nothing), strict=True):
        name = names.fresh(f"{value.name}_{kind}")
        output = ir.Value(name=name, type=value.type, shape=ir.Shape([]))
        keep = ir.AttrInt64("keepdims", 0)
        added.append(ir.Node("", kind, [source], [keep], outputs=[output], name=name))
        outputs.append(output)
    if not _has_known_size(value, graph):
        # The largest of no numbers is -infinity, and the least infinity.
        for at, kind in enumerate(("Max", "Min")):
            name = names.fresh(f"{outputs[at].name}_or_0")
            output = ir.Value(name=name, type=value.type, shape=ir.Shape([]))
            added.append(ir.Node("", kind, [outputs[at], zero], outputs=[output], name=name))
            outputs[at] = output
    graph.insert_after(node, added)
    graph.outputs.extend(outputs)
    largest, least, broken = (str(output.name) for output in outputs)
    return Extremes(largest, least, broken)


def _has_known_size(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether only the batch is open, as for most values; where boxes are found it is not so."""
    if value.shape is None:
        return False
    batches = {str(given.shape[0]) for given in graph.inputs if given.shape}
    first = [dim for dim in value.shape[:1] if not isinstance(dim, int)]
    is_batch = all(dim.value is not None and str(dim) in batches for dim in first)
    return is_batch and all(isinstance(dim, int) for dim in value.shape[1:])


def _has_none(value: ir.Value) -> bool:
    """Whether there are no numbers: it is empty, or an output of an operator that nobody wants."""
    return not value.name or (value.shape is not None and any(dim == 0 for dim in value.shape))


_SHOWN_TYPES: Final = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
"""Types of activations. Those of 16 bits are run in a form that has them in FP32, see
`rounding.rounding_form`."""

_QUANTIZERS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class ActivationPair:
    """A value of the candidate, and the value of the reference that it stands for.

    ``reads`` are the nearest pairs before it, by name; the graph's inputs are none. ``readers`` are
    the nodes that use it, past casts and Q/DQ pairs. ``numbers`` is its length for one run,
    ``None`` where shape inference does not tell.
    """

    name: str
    reference: str
    node: str
    op_type: str
    reads: tuple[str, ...]
    readers: tuple[str, ...]
    numbers: int | None


@dataclass(frozen=True)
class Pairing:
    """Matched values in the candidate's order, and the values that only one side has.

    ``of_candidate`` and ``of_reference`` count the floating-point activations of each side, casts
    and Q/DQ pairs not counted.
    """

    pairs: tuple[ActivationPair, ...]
    candidate_only: tuple[str, ...]
    reference_only: tuple[str, ...]
    of_candidate: int
    of_reference: int


def with_input_shape(model: ir.Model, shape: tuple[int, ...]) -> ir.Model:
    """A copy whose images have ``shape``, with the shapes and types that follow from it.

    Other inputs get the same batch where theirs is open.

    Raises:
        ModelFileError: the graph takes no input.
    """
    fixed = model.clone()
    image = _image_of(fixed)
    image.shape = ir.Shape(shape)
    for value in _inputs_of(fixed):
        dims = list(value.shape or ())
        if value is not image and dims and not isinstance(dims[0], int):
            value.shape = ir.Shape([shape[0], *dims[1:]])
    for node in fixed.graph:
        for value in node.outputs:
            value.shape = None  # inferred again for this batch
    infer_shapes(fixed)
    return fixed


def input_names(model: ir.Model) -> tuple[str, ...]:
    """Names of the graph's inputs, the images first.

    Raises:
        ModelFileError: the graph takes no input.
    """
    image = _image_of(model)
    others = (str(value.name) for value in _inputs_of(model) if value is not image)
    return str(image.name), *others


def first_computed(model: ir.Model) -> str:
    """Name of the first value that a node computes."""
    return next(str(value.name) for node in model.graph for value in node.outputs if value.name)


def expose_only(model: ir.Model, names: Sequence[str]) -> SplitGraph:
    """The part of the graph that computes the values ``names``, which become its only outputs.

    Raises:
        ModelFileError: it is too large without its weights.
    """
    part = model.clone()
    computed = {value.name: value for node in part.graph for value in node.outputs}
    # Without the old outputs all that lies behind the wanted values is unused, and goes.
    part.graph.outputs.clear()
    part.graph.outputs.extend(computed[name] for name in names)
    RemoveUnusedNodesPass()(part)
    return split_own(part, "the graph with its activations")


def pair_activations(candidate: ir.Model, reference: ir.Model) -> Pairing:
    """Match values by name, by the name of their origin, or by node, operator and place.

    Values that do not depend on an input (dequantized weights) are not activations. A cast to a
    wider type changes nothing and has no pair of its own; the output of a DequantizeLinear and of
    a cast to FP16 are compared with what they stand for. Both graphs are sorted.

    Raises:
        ModelFileError: a graph takes no input.
    """
    left, right = _Trace(candidate), _Trace(reference)
    found = {value: right.match(value, left) for value in left.shown}
    partners = {value: name for value, name in found.items() if name is not None}
    reads = left.nearest(set(partners))
    pairs = tuple(
        ActivationPair(
            name=str(value.name),
            reference=partner,
            node=str(node.name),
            op_type=node.op_type,
            reads=tuple(name for name in reads[node] if name != value.name),
            readers=tuple(dict.fromkeys(_readers(value))),
            numbers=_numbers(value),
        )
        for value, partner in partners.items()
        if (node := value.producer()) is not None
    )
    matched = set(partners.values())
    return Pairing(
        pairs=pairs,
        candidate_only=tuple(str(v.name) for v in left.origins if v not in partners),
        reference_only=tuple(str(v.name) for v in right.origins if v.name not in matched),
        of_candidate=len(left.origins),
        of_reference=len(right.origins),
    )


class _Place(NamedTuple):
    """Place where a value is computed; it stays the same when values are renamed."""

    node: str
    op_type: str
    output: int


class _Trace:
    """The values of one graph that depend on its inputs, with the origin of each."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes = list(model.graph)
        self.image = _image_of(model)
        self.inputs = {str(value.name): value for value in _inputs_of(model)}
        self._origin: dict[ir.Value, ir.Value] = {each: each for each in self.inputs.values()}
        self.shown: list[ir.Value] = []
        for value in self._following():
            self._origin[value] = self._origin_of(value)
            is_changed = str(self._origin[value].name).startswith(CHANGED)
            if value.dtype in _SHOWN_TYPES and not _is_exact(value) and not is_changed:
                self.shown.append(value)
        self.origins = [value for value in self.shown if self._origin[value] is value]
        self._aliases: dict[ir.Value, list[str]] = {}
        for value, origin in self._origin.items():
            self._aliases.setdefault(origin, []).append(str(value.name))
        self._exact = {str(value.name) for value in self.shown}
        self._by_alias = {
            str(value.name): str(origin.name)
            for value, origin in self._origin.items()
            if str(origin.name) in self._exact
        }
        self._by_place = {_place(value): str(value.name) for value in self.origins}

    def match(self, other: ir.Value, theirs: _Trace) -> str | None:
        """The name of the value here that ``other``, of the graph ``theirs``, stands for."""
        # From the surest to the least sure: the same name, a name of the same origin, the same
        # node.
        origin = theirs._origin[other]
        if origin is theirs.image:
            return str(self.image.name)
        if origin in theirs.inputs.values():
            return str(origin.name) if str(origin.name) in self.inputs else None
        if str(other.name) in self._exact:
            return str(other.name)
        aliases = theirs._aliases[origin]
        known = (self._by_alias[alias] for alias in aliases if alias in self._by_alias)
        return next(known, self._by_place.get(_place(origin)))

    def nearest(self, chosen: set[ir.Value]) -> dict[ir.Node, tuple[str, ...]]:
        """Names, for each node, of the nearest values before it that are ``chosen``."""
        reached: dict[ir.Value, tuple[str, ...]] = {}
        found = {}
        for node in self._nodes:
            before = [name for value in node.inputs if value for name in reached.get(value, ())]
            found[node] = tuple(dict.fromkeys(before))
            for value in node.outputs:
                # A value that is not chosen passes on what its node depends on.
                reached[value] = (str(value.name),) if value in chosen else found[node]
        return found

    def _following(self) -> Iterator[ir.Value]:
        following = set(self.inputs.values())
        for node in self._nodes:
            if not following.isdisjoint(value for value in node.inputs if value):
                following.update(node.outputs)
                yield from (value for value in node.outputs if value.name)

    def _origin_of(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        source = node.inputs[0] if node is not None and node.inputs else None
        if node is None or source is None or node.domain or source not in self._origin:
            return value
        casts = node.op_type == "Cast" and source.dtype in _SHOWN_TYPES
        stands = casts or node.op_type == "Identity" or node.op_type in _QUANTIZERS
        return self._origin[source] if stands else value


def _inputs_of(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _image_of(model: ir.Model) -> ir.Value:
    """The first input that is shaped as images are, else the first of all."""
    inputs = _inputs_of(model)
    if not inputs:
        raise ModelFileError("the graph takes no input, so it has no activations to compare")
    shapes = {
        value.name or "": [dim if isinstance(dim, int) else None for dim in value.shape or ()]
        for value in inputs
    }
    image = image_among(shapes)
    return next((value for value in inputs if value.name == image), inputs[0])


def _is_exact(value: ir.Value) -> bool:
    """True if the value is another one in the same or a wider type, so that nothing is rounded."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None or source.dtype is None or value.dtype is None:
        return False
    if node.op_type == "Identity":
        return True
    is_float = source.dtype in _SHOWN_TYPES
    return node.op_type == "Cast" and is_float and value.dtype.itemsize >= source.dtype.itemsize


def _place(value: ir.Value) -> _Place:
    node = value.producer()
    if node is None or not node.name:
        return _Place(f"{id(value)}", "", 0)  # like no other
    return _Place(node.name, node.op_type, value.index() or 0)


def _readers(value: ir.Value) -> Iterator[str]:
    for use in value.uses():
        if use.node.op_type in _QUANTIZERS or use.node.op_type in {"Cast", "Identity"}:
            yield from _readers(use.node.outputs[0])
        else:
            yield str(use.node.name)


def _numbers(value: ir.Value) -> int | None:
    dims = None if value.shape is None else value.shape.dims
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return prod(int(dim) for dim in dims if isinstance(dim, int))

"""Operators that a file writes out in single ones: LayerNorm, GroupNorm, RMSNorm, GELU, sigmoid.

Files from before opset 17 write LayerNorm out in nine operators, and those from before 20 GELU in
five. A compiler rounds behind each of them, and in FP16 the squares of a LayerNorm overflow; the
node of its own computes in FP32 inside and rounds once.

onnxscript has rules for LayerNorm and RMSNorm over the last axis alone, behind a gain. Files also
have several axes, no gain, or one that TensorFlow folded into the deviation: all are found here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, prod, sqrt
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from deploykit.graph.editing import Names, add_constant
from deploykit.graph.opset import OPSET, raise_opset
from deploykit.graph.polynomials import TERMS, is_near, polynomial, scalar
from deploykit.graph.sigmoids import write_sigmoid, written_sigmoids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

    from deploykit.graph.polynomials import Polynomial


LAYER_NORM_OPSET: Final = 17
GELU_OPSET: Final = 20
GROUP_NORM_OPSET: Final = 21
"""The operator of 18 scales groups, not channels, which no framework does."""

RMS_NORM_OPSET: Final = 23


def fuse_written_out(model: ir.Model) -> ir.Model:
    """A copy in which written-out normalisations, GELUs and sigmoids are nodes of their own.

    Where there is none, ``model`` itself is returned. A file is raised to opset 20 for a GELU, and
    no further: RMSNorm and GroupNorm become nodes in files of opset 23 and 21, which older
    compilers do not read. GroupNorm by ``InstanceNormalization`` needs no other node.

    Raises:
        ModelFileError: the opset cannot be raised as far as a GELU needs.
    """
    kinds = (_gelus, _normalisations, _group_norms)
    has_sigmoids = any(True for _ in written_sigmoids(model.graph))
    if not has_sigmoids and not any(found for kind in kinds for found in kind(model.graph)):
        return model
    fused = model.clone()
    if any(True for _ in _gelus(fused.graph)):
        fused = raise_opset(fused, needed=GELU_OPSET)
    writer = _Writer(fused)
    for kind in kinds:
        for found in list(kind(fused.graph)):
            writer.write(found)
    for sigmoid in list(written_sigmoids(fused.graph)):
        write_sigmoid(fused.graph, sigmoid, writer.names)
    RemoveUnusedNodesPass()(fused)
    ShapeInferencePass()(fused)
    return fused


# Normalisations


class _Found(NamedTuple):
    """A node that takes the place of ``result``; its constants follow ``x`` as inputs."""

    x: ir.Value
    result: ir.Value
    op_type: str
    constants: tuple[Floats, ...] = ()
    attributes: tuple[ir.Attr, ...] = ()


@dataclass(frozen=True)
class _Norm:
    """x, normalised over its last axes, times ``gain``, plus ``bias``.

    ``sizes`` are the lengths of these axes, and the shape of both constants. ``centred`` is false
    of RMSNorm, which does not subtract the mean.
    """

    x: ir.Value
    result: ir.Value
    epsilon: float
    sizes: tuple[int, ...]
    gain: Floats
    bias: Floats | None
    centred: bool

    def as_node(self) -> _Found:
        constants = (self.gain,) if self.bias is None else (self.gain, self.bias)
        attributes = (
            ir.AttrInt64("axis", -len(self.sizes)),
            ir.AttrFloat32("epsilon", self.epsilon),
        )
        op_type = "LayerNormalization" if self.centred else "RMSNormalization"
        return _Found(self.x, self.result, op_type, constants, attributes)


class _Core(NamedTuple):
    """The part of a normalisation up to the division."""

    x: ir.Value
    mean: ir.Value | None
    normalised: ir.Value
    deviation: ir.Value


def _normalisations(graph: ir.Graph) -> Iterator[_Found]:
    """Each written-out normalisation over last axes that the graph's opset has a node for."""
    opset = graph.opset_imports.get("", OPSET)
    for node in graph:
        found = _norm_at(node) if node.op_type == "Add" and not node.domain else None
        if found is None:
            continue
        if opset >= (LAYER_NORM_OPSET if found.centred else RMS_NORM_OPSET):
            yield found.as_node()


def _norm_at(node: ir.Node) -> _Norm | None:
    """The normalisation whose epsilon ``node`` adds to the variance."""
    epsilon, variance = _scalar_and_other(node)
    mean_of_squares = _made_by(variance, "ReduceMean")
    if epsilon is None or epsilon <= 0 or variance is None or mean_of_squares is None:
        return None
    deviation = _squared(mean_of_squares.inputs[0])
    if deviation is None or deviation.dtype != ir.DataType.FLOAT:
        return None
    axes = _axes(mean_of_squares)
    centre = _centre_of(deviation, axes)
    x, mean = (deviation, None) if centre is None else centre
    sizes = _last_sizes(x, axes)
    if sizes is None:
        return None
    for root, inverse in _roots(node.outputs[0]):
        for normalised in _divided(deviation, root, inverse=inverse):
            core = _Core(x, mean, normalised, deviation)
            return _with_constants(core, epsilon, sizes)
        if inverse:
            found = _folded_gain(x, mean, root, epsilon, sizes)
            if found is not None:
                return found
    return None


def _with_constants(core: _Core, epsilon: float, sizes: tuple[int, ...]) -> _Norm:
    """Take the gain and the bias behind a normalisation in, where there are some."""
    result, gain, bias = core.normalised, np.ones(sizes, np.float32), None
    scaled = _reader_with_constant(result, "Mul", sizes)
    if scaled is not None:
        result, gain = scaled
    moved = _reader_with_constant(result, "Add", sizes)
    if core.mean is not None and moved is not None:
        result, bias = moved
    return _Norm(core.x, result, epsilon, sizes, gain, bias, core.mean is not None)


def _folded_gain(
    x: ir.Value, mean: ir.Value | None, inverse: ir.Value, epsilon: float, sizes: tuple[int, ...]
) -> _Norm | None:
    """TensorFlow's form: x * (r * gain) + (bias - mean * (r * gain)), r the inverse deviation."""
    scaled = _reader_with_constant(inverse, "Mul", sizes)
    if scaled is None or mean is None:
        return None
    factor, gain = scaled
    result, moved = _product_of(x, factor), _product_of(mean, factor)
    if result is None or moved is None:
        return None
    for use in moved.uses():
        bias = _constant_over(use.node.inputs[0], sizes) if use.node.op_type == "Sub" else None
        if bias is None or use.idx != 1:
            continue
        for last in use.node.outputs[0].uses():
            if last.node.op_type == "Add" and result in last.node.inputs:
                return _Norm(x, last.node.outputs[0], epsilon, sizes, gain, bias, centred=True)
    return None


def _product_of(left: ir.Value, right: ir.Value) -> ir.Value | None:
    for use in right.uses():
        if use.node.op_type == "Mul" and left in use.node.inputs:
            return use.node.outputs[0]
    return None


def _roots(value: ir.Value) -> Iterator[tuple[ir.Value, bool]]:
    """The square roots of a value, and the inverse ones, which are marked by True."""
    for use in value.uses():
        power = scalar(use.node.inputs[1]) if use.node.op_type == "Pow" and use.idx == 0 else None
        if power == -0.5:  # noqa: PLR2004
            yield use.node.outputs[0], True
        if use.node.op_type != "Sqrt" and power != 0.5:  # noqa: PLR2004
            continue
        root = use.node.outputs[0]
        yield root, False
        for behind in root.uses():
            is_one_over = (
                behind.node.op_type == "Div"
                and behind.idx == 1
                and scalar(behind.node.inputs[0]) == 1
            )
            if behind.node.op_type == "Reciprocal" or is_one_over:
                yield behind.node.outputs[0], True


def _divided(deviation: ir.Value, root: ir.Value, *, inverse: bool) -> Iterator[ir.Value]:
    """``deviation`` over its root, or times the inverse of it."""
    for use in root.uses():
        if use.node.op_type != ("Mul" if inverse else "Div"):
            continue
        if not inverse and use.idx != 1:
            continue
        other = use.node.inputs[1 - use.idx]
        if other is not None and _same(other, deviation):
            yield use.node.outputs[0]


def _same(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values are one, or the same difference, which some exporters write twice."""
    if one is other:
        return True
    nodes = _made_by(one, "Sub"), _made_by(other, "Sub")
    return None not in nodes and nodes[0].inputs == nodes[1].inputs  # type: ignore[union-attr]


def _squared(value: ir.Value | None) -> ir.Value | None:
    """Return x of x^2."""
    product, power = _made_by(value, "Mul"), _made_by(value, "Pow")
    if product is not None and product.inputs[0] is not None:
        left, right = product.inputs
        return left if right is not None and left is not None and _same(left, right) else None
    return power.inputs[0] if power is not None and scalar(power.inputs[1]) == 2 else None  # noqa: PLR2004


def _centre_of(
    deviation: ir.Value, axes: tuple[int, ...] | None
) -> tuple[ir.Value, ir.Value] | None:
    """Return x and its mean, of x - mean(x)."""
    node = _made_by(deviation, "Sub")
    x, mean = (None, None) if node is None else node.inputs
    averaging = _made_by(mean, "ReduceMean")
    if x is None or mean is None or averaging is None or averaging.inputs[0] is not x:
        return None
    return (x, mean) if _axes(averaging) == axes and axes is not None else None


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a mean that keeps them, counted from the last one, -1; else ``None``."""
    source = node.inputs[0]
    if node.attributes.get_int("keepdims", 1) != 1 or source is None or source.shape is None:
        return None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None and given.const_value is not None:
        axes = given.const_value.numpy().reshape(-1).tolist()
    elif given is None and "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        return None
    rank = len(source.shape)
    return tuple(sorted(axis - rank if axis >= 0 else axis for axis in axes)) or None


def _last_sizes(x: ir.Value, axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Lengths of the axes where they are the last ones, and known."""
    if axes is None or x.shape is None or axes != tuple(range(-len(axes), 0)):
        return None
    sizes = [x.shape[axis] for axis in axes]
    return tuple(size for size in sizes if isinstance(size, int)) if _ints(sizes) else None


def _ints(sizes: Sequence[object]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _reader_with_constant(
    value: ir.Value, op_type: str, sizes: tuple[int, ...]
) -> tuple[ir.Value, Floats] | None:
    """The only reader of ``value``, where it takes a constant for the axes of ``sizes``."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        return None
    node = uses[0].node
    constant = _constant_over(node.inputs[1 - uses[0].idx], sizes)
    return None if constant is None else (node.outputs[0], constant)


def _constant_over(value: ir.Value | None, sizes: tuple[int, ...]) -> Floats | None:
    """A constant that is the same along all axes but those of ``sizes``, in their shape."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    data: Floats = tensor.numpy()
    first = data.ndim - len(sizes)
    if first > 0 and prod(data.shape[:first]) != 1:
        return None
    data = data.reshape(data.shape[max(first, 0) :])
    try:
        return np.ascontiguousarray(np.broadcast_to(data, sizes))
    except ValueError:
        return None


def _group_norms(graph: ir.Graph) -> Iterator[_Found]:
    """GroupNorm as torch writes it: the groups as instances, and a gain for each channel behind."""
    if graph.opset_imports.get("", OPSET) < GROUP_NORM_OPSET:
        return
    for node in graph:
        found = _group_norm_at(node) if node.op_type == "InstanceNormalization" else None
        if found is not None:
            yield found


def _group_norm_at(node: ir.Node) -> _Found | None:
    split, behind = _made_by(node.inputs[0], "Reshape"), list(node.outputs[0].uses())
    x = None if split is None else split.inputs[0]
    if x is None or x.shape is None or len(behind) != 1 or x.dtype != ir.DataType.FLOAT:
        return None
    gain, bias = (None if each is None else each.const_value for each in node.inputs[1:3])
    joined, channels = behind[0].node, x.shape[1] if len(x.shape) > 1 else None
    if joined.op_type != "Reshape" or not _same_shape(joined.outputs[0], x) or gain is None:
        return None
    if bias is None or (gain.numpy() != 1).any() or bias.numpy().any():
        return None
    groups, rank = gain.size, len(x.shape)
    grouped = node.inputs[0].shape if node.inputs[0] is not None else None
    if not isinstance(channels, int) or grouped is None or not _same_batch(grouped, x.shape):
        return None
    each = (channels, *(1,) * (rank - 2))
    scaled = _reader_with_constant(joined.outputs[0], "Mul", each)
    moved = None if scaled is None else _reader_with_constant(scaled[0], "Add", each)
    if scaled is None or moved is None:
        return None
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    attributes = (ir.AttrInt64("num_groups", groups), ir.AttrFloat32("epsilon", epsilon))
    constants = (scaled[1].reshape(-1), moved[1].reshape(-1))
    return _Found(x, moved[0], "GroupNormalization", constants, attributes)


def _same_batch(grouped: ir.Shape, shape: ir.Shape) -> bool:
    """Whether a Reshape of ``shape`` to (N, G, values) kept the images apart."""
    if len(grouped) != len(("images", "groups", "values")):
        return False
    return grouped[0] == shape[0] and isinstance(grouped[1], int)


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(a == b for a, b in zip(one.shape, other.shape, strict=True))


# GELU

_ERF: Final[Polynomial] = {(1, 0): 1 / sqrt(2)}
_TANH: Final[Polynomial] = {(1, 0): sqrt(2 / pi), (3, 0): sqrt(2 / pi) * 0.044715}
_GELU: Final[Polynomial] = {(1, 0): 0.5, (1, 1): 0.5}
"""x / 2 + x t / 2, with t the error function or the hyperbolic tangent."""

_DEPTH: Final = 5
"""Operators between x and the function, and between the function and the result."""


def _gelus(graph: ir.Graph) -> Iterator[_Found]:
    for node in graph:
        if node.op_type in {"Erf", "Tanh"} and not node.domain:
            found = _gelu_at(node)
            if found is not None:
                yield found


def _gelu_at(node: ir.Node) -> _Found | None:
    argument, bent = node.inputs[0], node.outputs[0]
    wanted, approximate = (_ERF, "none") if node.op_type == "Erf" else (_TANH, "tanh")
    if argument is None or argument.dtype != ir.DataType.FLOAT:
        return None
    form = (ir.AttrString("approximate", approximate),)
    for x in _before(argument):
        if is_near(polynomial(argument, x, None), wanted):
            for result in _behind(bent):
                if is_near(polynomial(result, x, bent), _GELU):
                    return _Found(x, result, "Gelu", (), form)
    return None


def _before(value: ir.Value) -> list[ir.Value]:
    """What ``value`` is computed from by a few operators, itself among them, the nearest first."""
    found, level = [value], [value]
    for _ in range(_DEPTH):
        nodes = [node for each in level if (node := each.producer()) and node.op_type in TERMS]
        level = [each for node in nodes for each in node.inputs if each is not None]
        found += [each for each in level if each.const_value is None and each not in found]
    return found


def _behind(value: ir.Value) -> list[ir.Value]:
    """What a few operators compute from ``value``, the nearest first."""
    found: list[ir.Value] = []
    level = [value]
    for _ in range(_DEPTH):
        nodes = [use.node for each in level for use in each.uses() if use.node.op_type in TERMS]
        level = [node.outputs[0] for node in nodes if node.outputs[0] not in found]
        found += level
    return found


# Both


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _scalar_and_other(node: ir.Node) -> tuple[float | None, ir.Value | None]:
    left, right = node.inputs
    number = scalar(right)
    return (number, left) if number is not None else (scalar(left), right)


_CONSTANTS: Final = ("gain", "bias")


class _Writer:
    """Writes the nodes; a value that was found keeps its name."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self.names = Names(ir.convenience.create_value_mapping(model.graph))

    def write(self, found: _Found) -> None:
        """Put the node in the place of the last operator, and leave the others without a reader."""
        old, op_type = found.result, found.op_type
        last = old.producer()
        assert last is not None  # noqa: S101 - it was found as the output of a node
        constants = [
            add_constant(self._graph, self.names.fresh(f"{old.name}_{part}"), data)
            for part, data in zip(_CONSTANTS, found.constants, strict=False)
        ]
        new = ir.Value(name=old.name, type=old.type, shape=old.shape)
        base = str(last.name).rpartition("/")[0]
        name = f"{base}/{op_type}" if base else str(last.name)
        inputs = [found.x, *constants]
        node = ir.Node("", op_type, inputs, found.attributes, outputs=[new], name=name)
        # It belongs to the module that the operators belonged to.
        node.metadata_props.update(last.metadata_props)
        ir.convenience.replace_nodes_and_values(self._graph, last, [last], [node], [old], [new])

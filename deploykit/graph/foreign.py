"""Foreign ``.onnx`` files that break the standard in ways whose meaning is clear: mended, and said.

Converters write open dimensions as -1, 0 or ``?``, leave shapes out, and tools that edit graphs
append nodes behind those that read them. onnxruntime takes most of it, ``onnx.checker`` nothing.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx
import onnx_ir as ir

from deploykit.core.errors import ModelFileError
from deploykit.core.sizes import IMAGE_DIMS, RGB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Dims = list[int | None]

_LARGE_BYTES: Final = 2**10
"""Size from which a constant is a weight; constants for shapes are smaller."""

_KEY: Final = "deploykit.mended"

_NO_NAMES: Final = frozenset({"any", "dyn", "dynamic", "none", "null", "unk", "unknown"})
"""Words for "open" that some converters write where a name belongs, the same for every size."""

_ONE_TO_ONE: Final = frozenset(
    {"Add", "BatchNormalization", "Cast", "Clip", "Div", "Identity", "Mul", "Pad", "Relu", "Sub"}
)
"""Operators that stand between images and the first convolution and keep the channels' axis."""

_GROUPS_SCALED: Final = range(18, 21)
"""Opsets whose GroupNormalization has a scale for each group; the standard withdrew it with 21."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What of a file was read otherwise than it is written, a note each.

    ``runs_as_written`` is false where a runtime takes the file literally: a batch of 0 images, or a
    shape that is not there for the one of a single number.
    """

    notes: tuple[str, ...] = ()
    changed: bool = False
    runs_as_written: bool = True

    def behind(self, notes: tuple[str, ...]) -> Mended:
        """The same with ``notes`` of what was changed before, which a runtime takes as written."""
        if not notes:
            return self
        return Mended((*notes, *self.notes), changed=True, runs_as_written=self.runs_as_written)

    def noted(self, notes: tuple[str, ...]) -> Mended:
        """The same with more notes, of shapes that a runtime would take from the file."""
        if not notes:
            return self
        return Mended((*self.notes, *notes), changed=True, runs_as_written=False)


def mended_of(model: ir.Model) -> Mended:
    """What was mended while ``model`` was read from its file; nothing for one that was made."""
    found = model.meta.get(_KEY)
    return found if isinstance(found, Mended) else Mended()


def remember(model: ir.Model, mended: Mended) -> None:
    """Keep ``mended`` with the model; it is not written to files."""
    model.meta[_KEY] = mended


def mend(proto: onnx.ModelProto, name: str) -> Mended:
    """Sort the nodes and open the dimensions of a message that was read from ``name``, in place.

    Raises:
        ModelFileError: nodes wait for one another, or an input has no shape and nothing shows it.
    """
    written = {value.name: _shape_text(value) for value in _true_inputs(proto.graph)}
    literal = any(_is_literal(value) for value in _true_inputs(proto.graph))
    is_sorted = _sort_all(proto, name)
    is_open = _open_dimensions(proto.graph)
    is_shaped = [_shape_input(value, proto.graph, name) for value in _true_inputs(proto.graph)]
    is_declared = declare_outputs(proto)
    notes = [] if is_sorted else [f"the nodes of {name} are not in order: sorted"]
    for value in _true_inputs(proto.graph):
        if _shape_text(value) != written[value.name]:
            before, now = written[value.name], _shape_text(value)
            legend = ", ? is open" if "?" in now else ""
            notes.append(f"{name} has {value.name!r} as {before}: read as {now}{legend}")
    changed = not is_sorted or is_open or any(is_shaped) or is_declared
    return Mended(tuple(notes), changed, runs_as_written=not literal)


def declare_outputs(proto: onnx.ModelProto) -> bool:
    """Give outputs without a shape the one that onnx infers, in place; True if there were any.

    Old converters leave it out, and the standard requires it.
    """
    bare = [value for value in proto.graph.output if lacks_shape(value.type)]
    if not bare:
        return False
    known = _inferred(proto)
    for value in bare:
        found = known.get(value.name)
        if found is not None:
            value.type.CopyFrom(found.type)
    return True


def redeclare(proto: onnx.ModelProto, name: str) -> tuple[str, ...]:
    """Give values the shapes that follow from their operators where the file says others, in place.

    Returns notes of it. ``proto`` was read from ``name``; its weights may be elsewhere.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        known = _inferred(bare)
    except Exception:  # of no common class; what else is wrong is for the checker to say
        return ()
    notes = []
    for value in proto.graph.output:
        found = known.get(value.name)
        if found is not None and _contradict(value.type, found.type):
            before = _shape_text(value)
            value.type.tensor_type.shape.CopyFrom(found.type.tensor_type.shape)
            notes.append(
                f"{name} declares its output {value.name!r} as {before}, its operators give "
                f"{_shape_text(value)}: read as this; if the other was meant, export it again"
            )
    wrong = [
        value
        for value in proto.graph.value_info
        if value.name in known and _contradict(value.type, known[value.name].type)
    ]
    for value in wrong:
        proto.graph.value_info.remove(value)
    if wrong:
        notes.append(
            f"{name} gives {len(wrong)} values between its nodes other shapes than their operators "
            f"do, as {wrong[0].name!r} {_shape_text(wrong[0])}: inferred again"
        )
    return tuple(notes)


def _contradict(left: onnx.TypeProto, right: onnx.TypeProto) -> bool:
    """Whether two shapes cannot both be right; what is open goes with any size."""
    if lacks_shape(left) or lacks_shape(right):
        return False
    pairs = [left.tensor_type.shape.dim, right.tensor_type.shape.dim]
    if len(pairs[0]) != len(pairs[1]):
        return True
    return any(
        a.HasField("dim_value") and b.HasField("dim_value") and a.dim_value != b.dim_value
        for a, b in zip(*pairs, strict=True)
    )


def declare_ranks(model: ir.Model, ranks: Mapping[str, int]) -> None:
    """Give outputs without a shape as many open dimensions as ``ranks`` says by name, in place."""
    for value in model.graph.outputs:
        rank = ranks.get(str(value.name))
        if value.shape is None and rank is not None:
            value.shape = ir.Shape([None] * rank)


def lacks_shape(kind: onnx.TypeProto) -> bool:
    """Whether it is a tensor of an unknown number of dimensions."""
    return kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")


def _inferred(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    apart = onnx.ModelProto()
    apart.CopyFrom(proto)
    for tensor in apart.graph.initializer:
        if len(tensor.raw_data) > _LARGE_BYTES:
            # Its numbers say nothing of shapes, and a message of more than 2 GiB is refused.
            tensor.ClearField("raw_data")
    # data_prop: follows the numbers in shapes too, so that the shape behind a Reshape is found.
    graph = onnx.shape_inference.infer_shapes(apart, data_prop=True).graph
    return {value.name: value for value in (*graph.output, *graph.value_info)}


def _true_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    # Old exporters list the weights among the inputs.
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


# Open dimensions


def _open_dimensions(graph: onnx.GraphProto) -> bool:
    """Take away sizes and names that say nothing; True if there were any."""
    unclear = _shared_names(graph)
    found = False
    for value in (*_true_inputs(graph), *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            has_size, has_name = dim.HasField("dim_value"), dim.HasField("dim_param")
            if (has_size and dim.dim_value <= 0) or (has_name and _is_unclear(dim, unclear)):
                dim.Clear()
                found = True
    return found


def _is_unclear(dim: onnx.TensorShapeProto.Dimension, shared: set[str]) -> bool:
    name = dim.dim_param
    has_letters = any(character.isalpha() for character in name)
    return not has_letters or name.casefold() in _NO_NAMES or name in shared


def _shared_names(graph: onnx.GraphProto) -> set[str]:
    """Names that a batch has in common with a height or width, which are never one size."""
    found = set()
    for value in _true_inputs(graph):
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        if len(names) == IMAGE_DIMS:
            # Where the channels are last, height and width come before them.
            found |= {names[0]} & set(names[1:]) - {""}
    return found


def _is_literal(value: onnx.ValueInfoProto) -> bool:
    """Whether a runtime would take images for none, or for a single number."""
    dims = value.type.tensor_type.shape.dim
    has_zero = any(dim.HasField("dim_value") and dim.dim_value == 0 for dim in dims)
    return has_zero or lacks_shape(value.type)


def _shape_text(value: onnx.ValueInfoProto) -> str:
    """The shape as a note shows it.

    A dimension without a name is a question mark, as in ``(?, 3, 32, 32)``.
    """
    if lacks_shape(value.type):
        return "a tensor without a shape"
    dims = value.type.tensor_type.shape.dim
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
    return f"({', '.join(map(str, sizes))})"


# Inputs without a shape


def _shape_input(value: onnx.ValueInfoProto, graph: onnx.GraphProto, name: str) -> bool:
    """Give an input the shape that its first layer shows; True if it had none, or no channels.

    Images that no convolution reads are taken for RGB ones, (N, 3, H, W). Sizes and names that the
    file has stay.
    """
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return False  # a map or a sequence, which is refused elsewhere
    is_bare = lacks_shape(value.type)
    known = [dim.HasField("dim_value") or bool(dim.dim_param) for dim in tensor.shape.dim]
    if not is_bare and (len(known) != IMAGE_DIMS or any(known)):
        return len(known) == IMAGE_DIMS and _fill_channels(value, graph)
    shown = _shown_shape(graph, value.name)
    if shown is None and tensor.elem_type == onnx.TensorProto.FLOAT:
        shown = [None, RGB, None, None]
    if shown is None:
        raise ModelFileError(
            f"{name} does not say the shape of its input {value.name!r}, and no layer shows it\n"
            "export it again with the shape, its open dimensions by name"
        )
    tensor.shape.Clear()
    for size in shown:
        dim = tensor.shape.dim.add()
        if size is not None:
            dim.dim_value = size
    return True


def _fill_channels(value: onnx.ValueInfoProto, graph: onnx.GraphProto) -> bool:
    """Write the number of channels where it is open, as exporters of "any image" leave it."""
    dims = value.type.tensor_type.shape.dim
    shown = _shown_shape(graph, value.name) or []
    if len(shown) != len(dims):
        return False
    open_ones = [
        (dim, size)
        for dim, size in zip(dims, shown, strict=True)
        if size is not None and not dim.HasField("dim_value")
    ]
    for dim, size in open_ones:
        dim.dim_value = size
    return bool(open_ones)


def _shown_shape(graph: onnx.GraphProto, name: str) -> Dims | None:
    """The shape of the input ``name`` as the first layer with weights behind it shows it."""
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            sizes[node.output[0]] = list(node.attribute[0].t.dims)
    # The order of the input's axes in each value that is reached; None: its own.
    reached: dict[str, list[int] | None] = {name: None}
    for node in graph.node:
        source = next((each for each in node.input if each in reached), None)
        if source is None:
            continue
        order = reached[source]
        operand = sizes.get(node.input[1]) if len(node.input) > 1 else None
        shape = None if operand is None else _shape_before(node, operand)
        if shape is not None and node.input[0] == source:
            return shape if order is None else _reordered(shape, order)
        if node.op_type in _ONE_TO_ONE:
            reached[node.output[0]] = order
        elif node.op_type == "Transpose" and order is None and node.attribute:
            reached[node.output[0]] = list(node.attribute[0].ints)
    return None


def _shape_before(node: onnx.NodeProto, weight: list[int]) -> Dims | None:
    """What a layer with ``weight`` reads: all open but the channels."""
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":  # weight (M, C / group, kH, kW)
        return [None, weight[1] * settings.get("group", 1), *(None for _ in weight[2:])]
    if node.op_type == "Gemm" and not settings.get("transA"):  # weight (K, N), or (N, K)
        return [None, weight[1 if settings.get("transB") else 0]]
    return None


def _reordered(shape: Dims, order: Sequence[int]) -> Dims | None:
    """The shape before a ``Transpose`` whose axis i is the input's axis ``order[i]``."""
    if sorted(order) != list(range(len(shape))):
        return None
    found: Dims = [None] * len(shape)
    for size, axis in zip(shape, order, strict=True):
        found[axis] = size
    return found


# Order of the nodes


def replace_withdrawn(proto: onnx.ModelProto, name: str) -> tuple[str, ...]:
    """Write GroupNormalization of opset 18 to 20 with operators that remain, in place.

    Returns notes of it; ``proto`` was read from ``name``. Its scale and bias are of groups, those
    of opset 21 of channels. ``onnx.checker`` and onnx's inference refuse the old one, onnxruntime
    runs it. The groups as channels of InstanceNormalization are the same formula:
    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html

    Raises:
        ModelFileError: there are scales for something else than the groups.
    """
    opsets = {each.domain: each.version for each in proto.opset_import}
    if opsets.get("", opsets.get("ai.onnx", 0)) not in _GROUPS_SCALED:
        return ()
    sizes = {each.name: list(each.dims) for each in proto.graph.initializer}
    count = 0
    # The innermost first: nodes are copied, with the graphs in them.
    for graph in reversed([proto.graph, *_subgraphs(proto.graph.node)]):
        found = sum(map(_is_group_normalization, graph.node))
        if found:
            nodes = [node for each in graph.node for node in _with_groups_apart(each, sizes, name)]
            del graph.node[:]
            graph.node.extend(nodes)
        count += found
    if not count:
        return ()
    note = (
        f"{name} has GroupNormalization with a scale for each group, which ONNX withdrew: read as "
        f"InstanceNormalization of each group, the same values ({count} of them)"
    )
    return (note,)


def _is_group_normalization(node: onnx.NodeProto) -> bool:
    return node.op_type == "GroupNormalization" and node.domain in {"", "ai.onnx"}


def _with_groups_apart(
    node: onnx.NodeProto, sizes: Mapping[str, list[int]], name: str
) -> list[onnx.NodeProto]:
    """``node`` as it is, or what a GroupNormalization is: (N, C, ...) as (N, groups, rest)."""
    if not _is_group_normalization(node):
        return [node]
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    groups, scales = int(given.get("num_groups", 0)), sizes.get(node.input[1])
    if scales is not None and scales != [groups]:
        raise ModelFileError(
            f"{name} has GroupNormalization of {groups} groups with a scale {tuple(scales)}\n"
            "up to opset 20 it is one for each group, from opset 21 one for each channel\n"
            "export it again with opset 21, which is what the file means"
        )
    x, scale, bias = node.input
    (y,) = node.output
    made = onnx.helper.make_node
    to_groups, shape, apart, normal = (
        f"{y}/{part}" for part in ("to", "shape", "groups", "normal")
    )
    wanted = onnx.helper.make_tensor(to_groups, onnx.TensorProto.INT64, [3], [0, groups, -1])
    epsilon = float(given.get("epsilon", 1e-5))
    return [
        made("Constant", [], [to_groups], value=wanted, name=to_groups),
        made("Shape", [x], [shape], name=shape),
        made("Reshape", [x, to_groups], [apart], name=apart),
        made("InstanceNormalization", [apart, scale, bias], [normal], normal, epsilon=epsilon),
        made("Reshape", [normal, shape], [y], name=node.name or y),
    ]


def _sort_all(proto: onnx.ModelProto, name: str) -> bool:
    """Sort every graph of the file, in place; True if all were in order."""
    outer = [proto.graph, *proto.functions]
    graphs = [*outer, *(inner for graph in outer for inner in _subgraphs(graph.node))]
    # The innermost first: sorting copies nodes, with the graphs in them.
    unsorted = [each for each in reversed(graphs) if not _sort(each, name)]
    return not unsorted


def _subgraphs(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield graph
                yield from _subgraphs(graph.node)


def _sort(graph: onnx.GraphProto | onnx.FunctionProto, name: str) -> bool:
    """Sort nodes so that each comes behind what it reads, and else in the order of the file.

    Raises:
        ModelFileError: some wait for one another.
    """
    nodes = graph.node
    made = {out: at for at, node in enumerate(nodes) for out in node.output if out}
    awaited = [{made[name] for name in _names_read(node) if name in made} for node in nodes]
    if all(max(needs, default=-1) < at for at, needs in enumerate(awaited)):
        return True
    readers: dict[int, list[int]] = {}
    for at, needs in enumerate(awaited):
        for source in needs:
            readers.setdefault(source, []).append(at)
    ready = [at for at, needs in enumerate(awaited) if not needs]
    order: list[int] = []
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for reader in readers.get(at, ()):
            awaited[reader].discard(at)
            if not awaited[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(node for at, node in enumerate(nodes) if at not in set(order))
        raise ModelFileError(
            f"{name} has a circle: {stuck.op_type} {stuck.name!r} reads what is computed from it\n"
            "the file is damaged: export the model again"
        )
    arranged = [nodes[at] for at in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in arranged]
    del nodes[:]
    nodes.extend(copies)
    return False


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs([node]):
        for inner in graph.node:
            yield from inner.input
        # A branch may return a value of the graph around it.
        yield from (value.name for value in graph.output)

"""Shape propagation: the shapes of all values at one batch size, node by node."""

from __future__ import annotations

from math import ceil, prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx_ir as ir

from deploykit.core.errors import ModelFileError
from deploykit.core.sizes import IMAGE_AXES, IMAGE_DIMS
from deploykit.core.specs import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Data = NDArray[Any]


_SMALL: Final = 64
"""Most elements of a value that is evaluated: a shape, or a step on the way to one."""

_GROWING: Final = frozenset(
    {"BlackmanWindow", "Col2Im", "ConstantOfShape", "Expand", "EyeLike", "HammingWindow"}
    | {"HannWindow", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"}
)
"""Operators that make much of a few numbers: evaluated where their result is known to be small."""

_LEAST_LIMIT: Final = 2**30
"""Bytes of one value that any network may have for one image."""

_TIMES_INPUT: Final = 64
"""The same for large images: VGG's first layers, with 64 channels at full size, have 21 times."""

_NUMBERS: Final = 2**20
"""Constants in a list that a graph may compute. onnx follows them one by one, at 40 bytes each."""

_TRIED: Final = (2, 14)
"""Two batches to propagate; a dimension of 2 at the first and 14 at the second is the batch."""


def fixed_batch(model: ir.Model) -> int | None:
    """The batch that the first input has whoever calls; ``None`` where it is open."""
    image = next((value for value in model.graph.inputs if not value.is_initializer()), None)
    size = image.shape[0] if image is not None and image.shape else None
    return size if isinstance(size, int) else None


class ShapesAt:
    """Shapes, types and small contents of all values at one size of the batch.

    The images are the first input; another input with an open first dimension has the same batch.
    Other open dimensions stay open, or have the size ``others``.
    """

    def __init__(self, model: ir.Model, batch: int, others: int | None = None) -> None:
        self._opset = model.graph.opset_imports.get("", 0)
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._data: dict[ir.Value, Data] = {}
        image = model.graph.inputs[0]
        for value in model.graph.inputs:
            dims = list(value.shape or ())
            grows = value is image or (dims and not isinstance(dims[0], int))
            known = [batch, *dims[1:]] if grows else dims
            if others is not None:
                known = [dim if isinstance(dim, int) else others for dim in known]
            self._types[value] = _type_proto(value, known)

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The dimensions of ``value``; ``None`` where one of them is not known."""
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        known = self._types.get(value)
        if known is None or not known.tensor_type.HasField("shape"):
            return None
        dims = known.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return None
        return tuple(dim.dim_value for dim in dims)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type of the elements of ``value``, where it is known."""
        known = self._types.get(value)
        return None if known is None else ir.DataType(known.tensor_type.elem_type)

    def data(self, value: ir.Value | None) -> Data | None:
        """The numbers in ``value`` where they follow from shapes and constants and are few."""
        if value is None:
            return None
        constant = value.const_value
        if constant is not None:
            # Numbers in a file beside are not needed, and that file has not been looked at yet.
            is_here = constant.size <= _SMALL and not isinstance(constant, ir.ExternalTensor)
            return constant.numpy() if is_here else None
        return self._data.get(value)

    def follow(self, node: ir.Node) -> None:
        """Propagate through ``node``; its inputs must have been propagated before.

        Raises:
            onnx.shape_inference.InferenceError: its inputs do not go together.
        """
        if node.op_type in _GROWING:
            # Its size first: the numbers of a shape may ask for any amount of memory.
            self._infer(node)
            if len(node.outputs) == 1 and 0 <= self._elements(node.outputs[0]) <= _SMALL:
                self._computed(node)
        elif not self._computed(node):
            self._infer(node)

    def bytes_of(self, value: ir.Value) -> int:
        """Memory that ``value`` takes; 0 where it is not known."""
        dtype = self.dtype(value)
        if dtype in {None, ir.DataType.UNDEFINED, ir.DataType.STRING}:
            return 0
        return max(self._elements(value), 0) * ceil(dtype.itemsize)

    def _elements(self, value: ir.Value) -> int:
        """How many numbers ``value`` has; -1 where it is not known."""
        shape = self.shape(value)
        return -1 if shape is None else prod(shape)

    def _infer(self, node: ir.Node) -> None:
        if node.domain:
            return
        given = [value for value in node.inputs if value is not None]
        types = {str(v.name): kind for v in given if (kind := self._type(v)) is not None}
        if len(types) < len({v.name for v in given}):
            return
        data = {str(v.name): self.data(v) for v in given}
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, self._opset),
            ir.serde.serialize_node(node),
            types,
            {name: onnx.numpy_helper.from_array(d) for name, d in data.items() if d is not None},
        )
        for value in node.outputs:
            if value.name in found:
                self._types[value] = found[value.name]

    def _type(self, value: ir.Value) -> onnx.TypeProto | None:
        if value.const_value is not None:
            return _type_proto(value, list(value.const_value.shape.numpy()))
        return self._types.get(value)

    def _computed(self, node: ir.Node) -> bool:
        """Evaluate the node's only output where its inputs are known; True if that was done."""
        single = len(node.outputs) == 1 and not node.domain
        result = self._evaluate(node) if single else None
        if result is None or result.size > _SMALL:
            return False
        (value,) = node.outputs
        self._data[value] = result
        dtype = onnx.helper.np_dtype_to_tensor_dtype(result.dtype)
        self._types[value] = onnx.helper.make_tensor_type_proto(dtype, result.shape)
        return True

    def _evaluate(self, node: ir.Node) -> Data | None:
        if node.op_type in {"Shape", "Size"}:
            return self._measure(node)
        if node.op_type == "Constant":
            return self._stored(node)
        inputs = [self.data(value) for value in node.inputs]
        left_out = [value is None for value in node.inputs]
        unknown = (d is None and not out for d, out in zip(inputs, left_out, strict=True))
        if not inputs or any(unknown) or _has_graph(node):
            return None
        from onnx.reference.ops import load_op

        attributes = {name: _plain(attribute) for name, attribute in node.attributes.items()}
        try:
            result = load_op("", node.op_type, self._opset).eval(*inputs, **attributes)
        except Exception:  # what onnx's evaluator cannot compute stays unknown
            return None
        return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None

    def _stored(self, node: ir.Node) -> Data | None:
        given = node.attributes.get("value")
        tensor = None if given is None else given.as_tensor()
        if tensor is None or tensor.size > _SMALL or isinstance(tensor, ir.ExternalTensor):
            return None
        return tensor.numpy()

    def _measure(self, node: ir.Node) -> Data | None:
        shape = self.shape(node.inputs[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(np.prod(shape, dtype=np.int64))
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(shape))
        return np.array(shape[start:end], np.int64)


def require_bounded(model: ir.Model, name: str) -> None:
    """Refuse a graph that needs an absurd amount of memory for one image, before anything runs it.

    A graph of forty nodes that each join a value with itself makes terabytes of a few numbers. onnx
    follows the numbers in shapes and would compute these, so this comes before its inference.

    Raises:
        ModelFileError: one of its values would be larger than 1 GiB and 64 times the input;
            ``name`` is the file's.
    """
    sides = ShapesAt(model, 1, others=1)
    given = sum(map(sides.bytes_of, model.graph.inputs))
    limit = max(_LEAST_LIMIT, _TIMES_INPUT * given)
    stored = [v.const_value.size for v in model.graph.initializers.values() if v.const_value]
    most = max(_NUMBERS, *stored, 0)
    known: set[ir.Value] = set()
    for node in _all_nodes(model):
        try:
            sides.follow(node)
        # Whoever reads the graph next says what is wrong with a node, or that nobody knows it.
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, RuntimeError):
            continue
        if node.op_type in {"Shape", "Size"} or all(_is_known(v, known) for v in node.inputs):
            known.update(node.outputs)
        for value in node.outputs:
            made = f"{name}: {node.op_type} {node.name!r} would make"
            shape = sides.shape(value) or ()
            if (size := sides.bytes_of(value)) > limit:
                raise ModelFileError(
                    f"{made} a value of {size:,} bytes for one image, {shape}\n"
                    f"expected at most {limit:,}: no classifier needs as much; is the file damaged?"
                )
            if value in known and len(shape) == 1 and shape[0] > most:
                raise ModelFileError(
                    f"{made} a list of {shape[0]:,} constants\n"
                    f"expected at most {most:,}: no classifier needs as many; is the file damaged?"
                )


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes of the graph, of the graphs inside it and of the file's own functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _is_known(value: ir.Value | None, known: set[ir.Value]) -> bool:
    return value is None or value.const_value is not None or value in known


def complete_shapes(model: ir.Model) -> None:
    """Add shapes that `ShapesAt` finds at two batches where onnx's inference found none.

    Does nothing unless the batch is the only open dimension of the inputs.
    """
    name = _open_batch(model)
    if name is None or all(_is_complete(v, name) for v in _computed_values(model)):
        return
    sides = [ShapesAt(model, batch) for batch in _TRIED]
    for node in model.graph:
        for side in sides:
            try:
                side.follow(node)
            except onnx.shape_inference.InferenceError:
                return  # the graph holds for one batch only
    write_shapes(model, sides, _TRIED, name)


def write_shapes(
    model: ir.Model, sides: list[ShapesAt], batches: tuple[int, int], name: str
) -> None:
    """Give every value the shape that it has at both of ``batches``, the batch as ``name``."""
    for value in _computed_values(model):
        shapes = [side.shape(value) for side in sides]
        if None not in shapes and len({len(shape or ()) for shape in shapes}) == 1:
            pairs = zip(*(shape or () for shape in shapes), strict=True)
            value.shape = ir.Shape([_dim(pair, batches, name) for pair in pairs])
            if value.dtype is None and (dtype := sides[0].dtype(value)) is not None:
                value.type = ir.TensorType(dtype)


def _dim(pair: tuple[int, ...], batches: tuple[int, int], name: str) -> int | str | None:
    if pair == batches:
        return name
    return pair[0] if pair[0] == pair[1] else None


def _open_batch(model: ir.Model) -> str | None:
    """Name of the batch in the file; ``None`` where it is fixed or not the only open dimension."""
    name = None
    for value in model.graph.inputs:
        batch, *others = value.shape or (None,)
        if not all(isinstance(dim, int) for dim in others):
            return None
        if isinstance(batch, ir.SymbolicDim):
            name = str(batch.value or BATCH)
    return name


def _computed_values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if value.name]


def _is_complete(value: ir.Value, name: str) -> bool:
    # Inference makes up names for what it does not know.
    return value.shape is not None and all(
        isinstance(dim, int) or dim.value == name for dim in value.shape
    )


def _has_graph(node: ir.Node) -> bool:
    kinds = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _plain(attribute: ir.Attr) -> object:
    if attribute.type is ir.AttributeType.TENSOR:
        return ir.serde.serialize_tensor(attribute.as_tensor())
    return attribute.value


def _type_proto(value: ir.Value, dims: list[Any]) -> onnx.TypeProto:
    dtype = ir.DataType.FLOAT if value.dtype is None else value.dtype
    known = [dim if isinstance(dim, int) else None for dim in dims]
    return onnx.helper.make_tensor_type_proto(int(dtype), known)


def fix_image_size(model: ir.Model, size: Sequence[int]) -> bool:
    """Give the open height and width of its images (N, C, H, W) the size (height, width).

    Returns:
        Whether one of them was open.
    """
    sizes = dict(zip(IMAGE_AXES, size, strict=True))
    changed = False
    for value in model.graph.inputs:
        dims = list(value.shape or ())
        if len(dims) == IMAGE_DIMS and not all(isinstance(dims[axis], int) for axis in sizes):
            filled = (
                dim if isinstance(dim, int) else sizes.get(axis, dim)
                for axis, dim in enumerate(dims)
            )
            value.shape = ir.Shape(list(filled))
            changed = True
    return changed

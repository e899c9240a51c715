"""A batch that was fixed when the file was written, opened again where the graph allows it.

The graph is followed at its own batch and at another one. A shape that is written into the file as
numbers shows there: the batch does not go through it. What was changed is a guess until the graph
has run: whether it computes the same, image by image, is for the caller to prove.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import onnx_ir as ir

from deploykit.core.errors import ModelFileError
from deploykit.core.specs import BATCH
from deploykit.graph.editing import Names, add_constant
from deploykit.graph.shapes import ShapesAt, write_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Shape = tuple[int, ...]

_FACTOR: Final = 7
"""The other batch is seven times the file's own, so that it divides whatever its own divides."""

_BROADCASTING: Final = frozenset({"Add", "Div", "MatMul", "Max", "Min", "Mul", "Pow", "Sub"})
"""Operators with two operands, of which one may be written out for each image of the batch."""


def open_batch(model: ir.Model) -> ir.Model:
    """A copy of a tidied graph whose batch is fixed, with an open one.

    Shapes of ``Reshape`` and ``Expand`` that hold the batch let it through, and a constant that
    stands for one image, as a class token, is repeated for each. The images are the first input;
    other inputs of the same first dimension have one entry for each image.

    Raises:
        ModelFileError: the graph holds for its own batch only; the node is named.
    """
    opened = model.clone()
    image = opened.graph.inputs[0]
    if image.shape is None or not image.shape.is_static():
        raise ModelFileError(f"{image.name} has other open dimensions, which hide the batch")
    dims = image.shape.numpy()
    for value in opened.graph.inputs[1:]:
        if value.shape is not None and value.shape[:1] == (dims[0],):
            value.shape = ir.Shape([BATCH, *value.shape[1:]])
    batches = (dims[0], dims[0] * _FACTOR)
    opening = _Opening(opened, batches)
    # A list, as opening a node inserts others before it.
    for node in list(opened.graph):
        opening.open(node)
    opening.require_open_outputs()
    image.shape = ir.Shape([BATCH, *dims[1:]])
    write_shapes(opened, opening.sides, batches, BATCH)
    return opened


class _Opening:
    """Shape propagation at two batches, with the changes that open the batch."""

    def __init__(self, model: ir.Model, batches: tuple[int, int]) -> None:
        self._graph = model.graph
        self._batches = batches
        self.sides = [ShapesAt(model, batch) for batch in batches]
        values = [*model.graph.inputs, *model.graph.initializers.values()]
        values += [value for node in model.graph for value in node.outputs]
        self._names = Names(str(value.name) for value in values)

    def open(self, node: ir.Node) -> None:
        """Change ``node``, whose inputs are open already, so that it accepts any batch."""
        change = {
            "Reshape": self._open_reshape,
            "Expand": self._open_expand,
            "Concat": self._open_concat,
        }.get(node.op_type, self._open_operands)
        change(node)
        self._follow(node)
        carried = any(self._axis(value) is not None for value in node.inputs)
        for value in node.outputs if carried else ():
            self._require_carried(node, value)

    def require_open_outputs(self) -> None:
        """Refuse a graph with an output that does not grow with the batch."""
        for value in self._graph.outputs:
            axis = self._axis(value)
            if axis != 0 and self._shapes(value) is not None:
                raise ModelFileError(f"the output {value.name!r} has no batch of its own")

    def _follow(self, node: ir.Node) -> None:
        for side in self.sides:
            try:
                side.follow(node)
            except onnx.shape_inference.InferenceError as exc:
                reason = str(exc).strip().splitlines()[0].rpartition("] ")[2]
                raise ModelFileError(
                    f"{_called(node)} holds for a batch of {self._batches[0]} only ({reason})"
                ) from exc

    def _require_carried(self, node: ir.Node, value: ir.Value) -> None:
        shapes = self._shapes(value)
        is_data = self.sides[0].data(value) is not None or value.dtype is not ir.DataType.FLOAT
        if shapes is not None and not is_data and shapes[0] == shapes[1]:
            raise ModelFileError(
                f"{_called(node)} gives {shapes[0]} whatever the batch: it mixes the images, or "
                "its sizes are written into the file"
            )

    def _shapes(self, value: ir.Value | None) -> tuple[Shape, Shape] | None:
        own, other = (side.shape(value) for side in self.sides)
        return None if own is None or other is None else (own, other)

    def _axis(self, value: ir.Value | None) -> int | None:
        """The one dimension of ``value`` that grows with the batch."""
        shapes = self._shapes(value)
        if shapes is None or len(shapes[0]) != len(shapes[1]):
            return None
        axes = [axis for axis, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
        return axes[0] if len(axes) == 1 else None

    def _written(self, value: ir.Value | None) -> NDArray[np.int64] | None:
        """The numbers of a shape that does not depend on the batch."""
        own, other = (side.data(value) for side in self.sides)
        return own if own is not None and other is not None and np.array_equal(own, other) else None

    def _open_reshape(self, node: ir.Node) -> None:
        axis, wanted = self._axis(node.inputs[0]), self._written(node.inputs[1])
        shapes = self._shapes(node.inputs[0])
        if axis is None or wanted is None or shapes is None:
            return
        result = _reshaped(wanted.tolist(), shapes[0])
        place = _batch_place(result, shapes[0][:axis], self._batches[0])
        # Open already: -1 is computed at run time, and 0 copies the size at the same place.
        if place is None or wanted[place] == -1 or (wanted[place] == 0 and place == axis):
            return
        # -1: Reshape computes the batch from the number of elements.
        free = [size if at != place else -1 for at, size in enumerate(result)]
        node.replace_input_with(1, self._constant(node, "shape", free))

    def _open_expand(self, node: ir.Node) -> None:
        axis, wanted = self._axis(node.inputs[0]), self._written(node.inputs[1])
        shapes = self._shapes(node.inputs[0])
        if axis is None or wanted is None or shapes is None:
            return
        # Expand aligns shapes at their last axis, as numpy does.
        place = axis + max(len(wanted) - len(shapes[0]), 0) - max(len(shapes[0]) - len(wanted), 0)
        if 0 <= place < len(wanted) and wanted[place] == shapes[0][axis]:
            # 1: Expand keeps the input's own size there, which is the batch.
            kept = [size if at != place else 1 for at, size in enumerate(wanted.tolist())]
            node.replace_input_with(1, self._constant(node, "shape", kept))

    def _open_concat(self, node: ir.Node) -> None:
        axes = [self._axis(value) for value in node.inputs]
        leading = next((i for i, axis in enumerate(axes) if axis is not None), None)
        if leading is None:
            return
        axis, like = axes[leading], node.inputs[leading]
        for at, value in enumerate(node.inputs):
            shapes = self._shapes(value)
            if value is None or axes[at] is not None or shapes is None or like is None:
                continue
            if axis is not None and shapes[0][axis : axis + 1] == (self._batches[0],):
                node.replace_input_with(at, self._repeated(node, value, like, axis))

    def _open_operands(self, node: ir.Node) -> None:
        """Replace a constant that has one copy for each image of the batch by one copy."""
        own = self._batches[0]
        # A batch of 1 broadcasts to any other as it is.
        grows = [value for value in node.inputs if self._axis(value) == 0]
        if own == 1 or not grows or node.op_type not in _BROADCASTING:
            return
        rank = len((self._shapes(grows[0]) or ((),))[0])
        for at, value in enumerate(node.inputs):
            shapes = self._shapes(value)
            alike = shapes is not None and shapes[0] == shapes[1] and len(shapes[0]) == rank
            if value is not None and alike and shapes is not None and shapes[0][0] == own:
                node.replace_input_with(at, self._first(node, value, 0))

    def _repeated(self, node: ir.Node, value: ir.Value, like: ir.Value, axis: int) -> ir.Value:
        """The part of ``value`` for one image, repeated for each image of ``like``."""
        one = value if self._batches[0] == 1 else self._first(node, value, axis)
        shapes = self._shapes(value)
        sizes = [1 if at == axis else size for at, size in enumerate(shapes[0] if shapes else ())]
        # The batch is read at run time, so that any fits.
        count = self._added(node, "Shape", [like], start=axis, end=axis + 1)
        before = [self._constant(node, "before", sizes[:axis])] if axis else []
        after = [self._constant(node, "after", sizes[axis + 1 :])] if sizes[axis + 1 :] else []
        shape = self._added(node, "Concat", [*before, count, *after], axis=0)
        return self._added(node, "Expand", [one, shape])

    def _first(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        ends = [self._constant(node, name, [at]) for name, at in (("from", 0), ("to", 1))]
        return self._added(node, "Slice", [value, *ends, self._constant(node, "axis", [axis])])

    def _added(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value], **attributes: int
    ) -> ir.Value:
        name = self._names.fresh(f"{node.name}_{op_type}")
        result = ir.Value(name=name)
        kinds = [ir.AttrInt64(key, number) for key, number in attributes.items()]
        added = ir.Node("", op_type, inputs, kinds, outputs=[result], name=name)
        self._graph.insert_before(node, added)
        self._follow(added)
        return result

    def _constant(self, node: ir.Node, what: str, numbers: list[int]) -> ir.Value:
        name = self._names.fresh(f"{node.name}_{what}")
        return add_constant(self._graph, name, np.array(numbers, np.int64))


def _reshaped(wanted: list[int], shape: Shape) -> list[int]:
    """The shape that ``Reshape`` makes of ``shape``, with 0 and -1 resolved."""
    sizes = [shape[at] if size == 0 and at < len(shape) else size for at, size in enumerate(wanted)]
    known = prod(size for size in sizes if size != -1)
    return [prod(shape) // max(known, 1) if size == -1 else size for size in sizes]


def _batch_place(result: list[int], before: Shape, batch: int) -> int | None:
    """The dimension of ``result`` that begins where the batch does: after ``before``."""
    for at, size in enumerate(result):
        if prod(result[:at]) == prod(before) and size % batch == 0:
            return at
    return None


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"

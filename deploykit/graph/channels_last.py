"""Images that a graph takes with channels last, (N, H, W, C): the same graph with channels first.

TensorFlow keeps images so, and its converters put a ``Transpose`` in front of the first
convolution. That node goes. Operators between it and the input that take each value by itself, as
a normalisation, work on channels first from then on. What else reads the images in their old order
gets them transposed, so that every graph can be changed; that it computes the same is for the
caller to prove.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from deploykit.core.sizes import CHANNELS_FIRST, CHANNELS_LAST
from deploykit.graph.editing import Names, add_constant, drop_unused_initializers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_RANK: Final = len(CHANNELS_FIRST)

_ONE_BY_ONE: Final = frozenset(
    {"Abs", "Cast", "Ceil", "Clip", "Floor", "Identity", "Neg", "Relu", "Round", "Sqrt", "Tanh"}
)
"""Operators whose first input has its order of axes in the output; others of theirs are numbers."""

_BROADCASTING: Final = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})

_PAD_AXES: Final = 3
"""Place of the axes among the inputs of a ``Pad``."""


@dataclass(frozen=True, slots=True)
class ChannelsMoved:
    """How the order of the axes was changed.

    ``dropped`` counts the nodes that transposed the images and are gone; ``transposed`` names
    those that read the images in their old order still, behind a ``Transpose`` of ours.
    """

    dropped: int
    transposed: tuple[str, ...]


def put_channels_first(model: ir.Model, name: str) -> ChannelsMoved:
    """Let the input ``name`` take images (N, C, H, W) in place of (N, H, W, C), in place."""
    image = next(value for value in model.graph.inputs if value.name == name)
    return _Mover(model.graph, image).move()


class _Mover:
    """Changes the order of the axes of an image, and of what follows from it value by value."""

    def __init__(self, graph: ir.Graph, image: ir.Value) -> None:
        self._graph = graph
        self._names = Names(ir.convenience.create_value_mapping(graph))
        self._nodes = [node for node in graph if not node.domain]
        self._moved: dict[ir.Value, None] = {image: None}
        self._carriers: list[ir.Node] = []
        for node in self._nodes:
            if self._carries(node):
                self._carriers.append(node)
                self._moved[node.outputs[0]] = None

    def move(self) -> ChannelsMoved:
        """Change the graph."""
        others = [node for value in self._moved for node in self._other_readers(value)]
        others = list(dict.fromkeys(others))
        turned = [node for node in others if node.op_type == "Transpose" and not node.domain]
        rest = [node for node in others if node not in set(turned)]
        for value in list(self._moved):
            self._turn_back(value, rest)
        for node in self._carriers:
            self._permute_constants(node)
        for value in self._moved:
            if value.shape is not None:
                value.shape = ir.Shape([value.shape[axis] for axis in CHANNELS_FIRST])
        dropped = [self._compose(node) for node in turned].count(True)
        drop_unused_initializers(self._graph)
        return ChannelsMoved(dropped, tuple(f"{node.op_type} {node.name!r}" for node in rest))

    def _carries(self, node: ir.Node) -> bool:
        """Whether the node can take its moved inputs in the new order, and gives its output so."""
        if not any(value in self._moved for value in node.inputs):
            return False
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            return False
        if node.op_type in _ONE_BY_ONE:
            return node.inputs[0] in self._moved
        if node.op_type == "Pad":
            return node.inputs[0] in self._moved and _pads_of(node) is not None
        if node.op_type not in _BROADCASTING:
            return False
        others = [value for value in node.inputs if value not in self._moved]
        return all(_broadcasts(_numbers(value)) for value in others)

    def _other_readers(self, value: ir.Value) -> Iterator[ir.Node]:
        carriers = set(self._carriers)
        yield from (use.node for use in value.uses() if use.node not in carriers)

    def _turn_back(self, value: ir.Value, readers: Sequence[ir.Node]) -> None:
        """Give ``value`` in its old order to those of ``readers`` that read it."""
        uses = [use for use in value.uses() if use.node in set(readers)]
        if not uses:
            return
        name = self._names.fresh(f"{value.name}_channels_last")
        back = ir.Value(name=name, type=value.type, shape=value.shape)
        order = [ir.AttrInt64s("perm", list(CHANNELS_LAST))]
        node = ir.Node("", "Transpose", [value], order, outputs=[back], name=f"{name}/Transpose")
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        for use in uses:
            use.node.replace_input_with(use.idx, back)

    def _compose(self, node: ir.Node) -> bool:
        """Let a ``Transpose`` begin at the new order; True where nothing is left of it to do."""
        given = node.attributes.get_ints("perm", list(reversed(range(_RANK))))
        order = [CHANNELS_LAST[axis] for axis in given]
        result, source = node.outputs[0], node.inputs[0]
        if source is None or order != sorted(order) or result.is_graph_output():
            node.attributes["perm"] = ir.AttrInt64s("perm", order)
            return False
        result.replace_all_uses_with(source)
        (node.graph or self._graph).remove(node, safe=True)
        return True

    def _permute_constants(self, node: ir.Node) -> None:
        if node.op_type == "Pad":
            self._permute_pads(node)
        elif node.op_type in _BROADCASTING:
            for place, value in enumerate(node.inputs):
                numbers = None if value in self._moved else _numbers(value)
                if numbers is not None and numbers.size > 1:
                    full = numbers.reshape((1,) * (_RANK - numbers.ndim) + numbers.shape)
                    self._replace(node, place, np.transpose(full, CHANNELS_FIRST))

    def _permute_pads(self, node: ir.Node) -> None:
        pads = _pads_of(node)
        if pads is None:
            return
        if len(node.inputs) > _PAD_AXES and node.inputs[_PAD_AXES] is not None:
            axes = _numbers(node.inputs[_PAD_AXES])
            if axes is not None:
                # The new place of an old axis.
                moved = [CHANNELS_LAST[axis] for axis in axes.tolist()]
                self._replace(node, _PAD_AXES, np.array(moved, axes.dtype))
            return
        turned = np.array(pads, np.int64).reshape(2, _RANK)[:, CHANNELS_FIRST].ravel()
        if "pads" in node.attributes:  # before opset 11
            node.attributes["pads"] = ir.AttrInt64s("pads", turned.tolist())
        else:
            self._replace(node, 1, turned)

    def _replace(self, node: ir.Node, place: int, numbers: NDArray[np.generic]) -> None:
        # A new constant: others may read the old one.
        name = self._names.fresh(f"{node.name or node.outputs[0].name}_channels_first")
        constant = add_constant(self._graph, name, np.ascontiguousarray(numbers))
        node.replace_input_with(place, constant)


def _numbers(value: ir.Value | None) -> NDArray[np.generic] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _broadcasts(numbers: NDArray[np.generic] | None) -> bool:
    """Whether it is a constant that an image takes up without getting more dimensions."""
    return numbers is not None and numbers.ndim <= _RANK and prod(numbers.shape) > 0


def _pads_of(node: ir.Node) -> list[int] | None:
    """The numbers of a ``Pad`` whose amounts and axes are written in the file."""
    attribute = node.attributes.get("pads")
    if attribute is not None:
        return list(attribute.as_ints())
    amounts = _numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = node.inputs[_PAD_AXES] if len(node.inputs) > _PAD_AXES else None
    if amounts is None or (axes is not None and _numbers(axes) is None):
        return None
    return [int(number) for number in amounts.ravel().tolist()]

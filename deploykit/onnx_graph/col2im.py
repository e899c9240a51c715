"""``Col2Im`` as a transposed convolution, which compilers have kernels for.

Col2Im (ONNX operator specification, opset 18) puts each column of kH x kW values at its place in
the image and adds what overlaps. A transposed convolution does so too if the weights of each
channel hand the k-th value of a column to the k-th place of the kernel, and nothing else: they are
ones and zeros, so the same numbers are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import onnx_ir as ir

from deploykit.onnx_graph.constants import add_constant
from deploykit.onnx_graph.naming import Names
from deploykit.onnx_graph.replacing import replace_each

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AXES: Final = 2
"""Height and width; in one axis or in three there is no compiler's kernel to gain."""


def col2ims_to_convolutions(model: ir.Model) -> dict[str, str]:
    """Replace every ``Col2Im`` that makes images by a ``ConvTranspose``, in place.

    `replace_each` says what is returned.
    """
    return replace_each(model, "Col2Im", _replace)


@dataclass(frozen=True)
class _Columns:
    """What a ``Col2Im`` is told, height before width."""

    values: int
    """Of all channels of one column."""
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node) -> Self | str:
        """From the node, or why it cannot be told."""
        columns = node.inputs[0]
        image, kernel = (_numbers(value) for value in node.inputs[1:])
        if not image or not kernel:
            return "the sizes of its image or of its blocks are computed"
        if len(image) != _AXES:
            return f"it makes tensors of {len(image)} axes, not images"
        values = None if columns is None or columns.shape is None else columns.shape[1]
        if not isinstance(values, int):
            return "its number of channels is not known"

        def told(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(node.attributes[name].as_ints()) if name in node.attributes else default

        ones, zeros = (1,) * _AXES, (0,) * 2 * _AXES
        strides, dilations = told("strides", ones), told("dilations", ones)
        return cls(values, image, kernel, strides, dilations, told("pads", zeros))

    @property
    def channels(self) -> int:
        return self.values // prod(self.kernel)

    @property
    def room(self) -> tuple[int, ...]:
        """How far a kernel can move along each axis."""
        return tuple(
            size
            + self.pads[axis]
            + self.pads[axis + _AXES]
            - self.dilations[axis] * (kernel - 1)
            - 1
            for axis, (size, kernel) in enumerate(zip(self.image, self.kernel, strict=True))
        )

    @property
    def blocks(self) -> tuple[int, ...]:
        """Columns along each axis."""
        return tuple(room // step + 1 for room, step in zip(self.room, self.strides, strict=True))

    @property
    def rest(self) -> tuple[int, ...]:
        """Pixels at the end that no kernel reaches."""
        return tuple(room % step for room, step in zip(self.room, self.strides, strict=True))

    @property
    def weight(self) -> NDArray[np.float32]:
        """(values, 1, kH, kW): a one where a value of a column has its place."""
        places = prod(self.kernel)
        one_hot = np.eye(places, dtype=np.float32).reshape(places, 1, *self.kernel)
        return np.tile(one_hot, (self.channels, 1, 1, 1))


def _replace(node: ir.Node, graph: ir.Graph) -> str | None:
    told = _Columns.of(node)
    if isinstance(told, str):
        return told
    names = Names(ir.convenience.create_value_mapping(graph))
    name, old = str(node.name or node.outputs[0].name), node.outputs[0]
    sizes = np.array([0, told.values, *told.blocks], np.int64)
    shape = add_constant(graph, names.fresh(f"{name}_sizes"), sizes)
    weight = add_constant(graph, names.fresh(f"{name}_places"), told.weight)
    blocks = ir.Value(name=names.fresh(f"{name}_blocks"))
    image = ir.Value(name=old.name, type=old.type, shape=old.shape)
    attributes = {
        "kernel_shape": told.kernel,
        "strides": told.strides,
        "dilations": told.dilations,
        "pads": told.pads,
        "output_padding": told.rest,
    }
    kinds = [
        ir.AttrInt64("group", told.channels),
        *(ir.AttrInt64s(key, numbers) for key, numbers in attributes.items()),
    ]
    new = [
        ir.Node("", "Reshape", [node.inputs[0], shape], outputs=[blocks], name=f"{name}/Reshape"),
        ir.Node("", "ConvTranspose", [blocks, weight], kinds, outputs=[image], name=node.name),
    ]
    for each in new:  # they belong to the module that the Col2Im belonged to
        each.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [image])
    return None


def _numbers(value: ir.Value | None) -> tuple[int, ...]:
    """A constant's; none of what is computed."""
    constant = None if value is None else value.const_value
    return () if constant is None else tuple(constant.numpy().tolist())

"""Rewrites operators that TensorRT does not support: ``Einsum`` and ``Col2Im``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from string import ascii_letters, ascii_lowercase
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import Names, add_constant, replace_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Groups = list[str]
    """The labels of each axis; an empty one stands for an axis of length 1."""


_AXES: Final = 2
"""Axes of an image: height and width; others gain nothing, as compilers have no kernel."""


def col2ims_to_convolutions(model: ir.Model) -> dict[str, str]:
    """Replace every ``Col2Im`` that makes images by a ``ConvTranspose``, in place.

    See `replace_each` for the result.
    """
    return replace_each(model, "Col2Im", _replace_col2im)


@dataclass(frozen=True)
class _Columns:
    """Sizes and attributes of a ``Col2Im``, height before width."""

    values: int
    """Number of values in one column, of all channels."""
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node) -> Self | str:
        """Read them from the node, or return the reason why they are not known."""
        columns = node.inputs[0]
        image, kernel = (_numbers(value) for value in node.inputs[1:])
        if not image or not kernel:
            return "the sizes of its image or of its blocks are computed"
        if len(image) != _AXES:
            return f"it makes tensors of {len(image)} axes, not images"
        values = None if columns is None or columns.shape is None else columns.shape[1]
        if not isinstance(values, int):
            return "its number of channels is not known"

        def attribute(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(node.attributes[name].as_ints()) if name in node.attributes else default

        ones, zeros = (1,) * _AXES, (0,) * 2 * _AXES
        strides, dilations = attribute("strides", ones), attribute("dilations", ones)
        return cls(values, image, kernel, strides, dilations, attribute("pads", zeros))

    @property
    def channels(self) -> int:
        return self.values // prod(self.kernel)

    @property
    def room(self) -> tuple[int, ...]:
        """Distance that a kernel can move along each axis."""
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
        """Number of columns along each axis."""
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


def _replace_col2im(node: ir.Node, graph: ir.Graph) -> str | None:
    columns = _Columns.of(node)
    if isinstance(columns, str):
        return columns
    names = Names(ir.convenience.create_value_mapping(graph))
    name, old = str(node.name or node.outputs[0].name), node.outputs[0]
    # 0 copies the batch, which may be open.
    sizes = np.array([0, columns.values, *columns.blocks], np.int64)
    shape = add_constant(graph, names.fresh(f"{name}_sizes"), sizes)
    weight = add_constant(graph, names.fresh(f"{name}_places"), columns.weight)
    blocks = ir.Value(name=names.fresh(f"{name}_blocks"))
    image = ir.Value(name=old.name, type=old.type, shape=old.shape)
    attributes = {
        "kernel_shape": columns.kernel,
        "strides": columns.strides,
        "dilations": columns.dilations,
        "pads": columns.pads,
        "output_padding": columns.rest,
    }
    kinds = [
        # A group for each channel: the columns of a channel add up in that channel alone.
        ir.AttrInt64("group", columns.channels),
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
    """The numbers of a constant; empty for a value that is computed."""
    constant = None if value is None else value.const_value
    return () if constant is None else tuple(constant.numpy().tolist())


_OPERANDS: Final = 2
_ELLIPSIS: Final = "..."


def einsums_to_products(model: ir.Model) -> dict[str, str]:
    """Replace every ``Einsum`` of two operands by a ``MatMul``, in place.

    An ``Einsum`` that stays gets lower-case labels, the only ones that TensorRT's parser reads;
    see `replace_each` for the result.
    """
    return replace_each(model, "Einsum", _replace_or_simplify)


@dataclass(frozen=True)
class _Equation:
    """Labels of both operands and of the result, one letter for each axis."""

    left: str
    right: str
    result: str

    @property
    def batch(self) -> str:
        return "".join(x for x in self.result if x in self.left and x in self.right)

    @property
    def rows(self) -> str:
        return "".join(x for x in self.result if x not in self.right)

    @property
    def columns(self) -> str:
        return "".join(x for x in self.result if x not in self.left)

    @property
    def inner(self) -> str:
        return "".join(x for x in self.left if x in self.right and x not in self.result)

    @property
    def groups(self) -> tuple[Groups, Groups, Groups]:
        """Labels on each axis of the product's operands and of its result."""
        if self.rows and not self.batch:
            # MatMul applies a matrix to every row there is: they need not be on one axis.
            return [*self.rows, self.inner], [self.inner, self.columns], [*self.rows, self.columns]
        return (
            [*self.batch, self.rows, self.inner],
            [*self.batch, self.inner, self.columns],
            [*self.batch, self.rows, self.columns],
        )


def _replace_or_simplify(node: ir.Node, graph: ir.Graph) -> str | None:
    reason = _replace_einsum(node, graph)
    if reason is not None:
        equation = _in_lower_case(node.attributes["equation"].as_string())
        node.attributes.add(ir.AttrString("equation", equation))
    return reason


def _replace_einsum(node: ir.Node, graph: ir.Graph) -> str | None:
    """Replace ``node`` by a product, or return the reason why not."""
    if len(node.inputs) != _OPERANDS:
        return f"it has {len(node.inputs)} operands, not two"
    left, right = (value for value in node.inputs if value is not None)
    equation = _read(node.attributes["equation"].as_string(), (_rank(left), _rank(right)))
    if isinstance(equation, str):
        return equation
    if left.const_value is not None and right.const_value is None:
        # A constant becomes the right operand, as of any other layer with a weight.
        left, right = right, left
        equation = _Equation(equation.right, equation.left, equation.result)
    reason = _unequal(equation, left, right)
    if reason is None and _needs_product(equation):
        reason = _too_open(equation, left, right)
    if reason is None:
        _Writer(node, graph).write(equation, left, right)
    return reason


def _read(text: str, ranks: tuple[int | None, int | None]) -> _Equation | str:
    """The equation with letters for its ellipses, or the reason why it is no matrix product."""
    operands, result = _terms(text)
    named = [term.replace(_ELLIPSIS, "") for term in operands]
    if any(len(set(labels)) < len(labels) for labels in named):
        return f"{text!r} repeats a label within an operand"
    if None in ranks and _ELLIPSIS in text:
        return "the shape of an operand is not known, so what its ellipsis stands for is not either"
    hidden = [
        (rank or 0) - len(labels) if _ELLIPSIS in term else 0
        for term, labels, rank in zip(operands, named, ranks, strict=True)
    ]
    if all(hidden) and hidden[0] != hidden[1]:
        return f"its ellipses stand for {hidden[0]} and {hidden[1]} axes"
    letters = "".join(letter for letter in ascii_letters if letter not in text)[: max(hidden)]
    left, right, result = (term.replace(_ELLIPSIS, letters) for term in (*operands, result))
    alone = sorted(label for label in set(left) ^ set(right) if label not in result)
    if alone:
        return f"{text!r} sums {', '.join(alone)} of one operand alone"
    return _Equation(left, right, result)


def _terms(text: str) -> tuple[list[str], str]:
    """The terms of the operands, and the result's: alphabetical where it is not given."""
    terms, arrow, result = text.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(label for label in terms if label.isalpha() and terms.count(label) == 1)
        result = "".join((_ELLIPSIS if _ELLIPSIS in terms else "", *once))
    return terms.split(","), result


def _in_lower_case(text: str) -> str:
    operands, result = _terms(text)
    labels = dict.fromkeys(label for label in "".join(operands) if label.isalpha())
    renamed = str.maketrans(dict(zip(labels, ascii_lowercase, strict=False)))
    return f"{','.join(operands)}->{result}".translate(renamed)


def _unequal(equation: _Equation, left: ir.Value, right: ir.Value) -> str | None:
    """Reason why an inner axis cannot be summed: Einsum broadcasts a 1, MatMul does not."""
    of_left, of_right = _sizes(equation.left, left), _sizes(equation.right, right)
    for label in equation.inner:
        pair = of_left.get(label), of_right.get(label)
        if 1 in pair and pair != (1, 1):
            return f"{label} is 1 long in one operand and not in the other"
    return None


def _too_open(equation: _Equation, left: ir.Value, right: ir.Value) -> str | None:
    """Reason why axes cannot be joined or split: a Reshape has one open length at most."""
    of_left, of_right = _sizes(equation.left, left), _sizes(equation.right, right)
    joined_left, joined_right, joined = equation.groups
    shapes = (
        _joined_shape(joined_left, of_left),
        _joined_shape(joined_right, of_right),
        _split_shape(joined, {**of_right, **of_left}),
    )
    if any(shape.count(-1) > 1 for shape in shapes):
        return "more than one of the lengths that a Reshape would need is open"
    return None


def _needs_product(equation: _Equation) -> bool:
    return bool(equation.rows or equation.inner or equation.columns)


class _Writer:
    """Writes the nodes that take the place of one ``Einsum``."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        self._node = node
        self._graph = graph
        self._names = Names(ir.convenience.create_value_mapping(graph))
        self._nodes: list[ir.Node] = []

    def write(self, equation: _Equation, left: ir.Value, right: ir.Value) -> None:
        result, labels = self._product(equation, left, right)
        result = self._transposed(result, labels, equation.result)
        old = self._node.outputs[0]
        ir.convenience.replace_nodes_and_values(
            self._graph, self._node, [self._node], self._nodes, [old], [result]
        )

    def _product(
        self, equation: _Equation, left: ir.Value, right: ir.Value
    ) -> tuple[ir.Value, str]:
        if not _needs_product(equation):
            pair = (
                self._transposed(left, equation.left, equation.batch),
                self._transposed(right, equation.right, equation.batch),
            )
            return self._add("Mul", pair), equation.batch
        of_left, of_right = _sizes(equation.left, left), _sizes(equation.right, right)
        joined_left, joined_right, joined = equation.groups
        pair = (
            self._joined(left, equation.left, joined_left, of_left),
            self._joined(right, equation.right, joined_right, of_right),
        )
        result = self._add("MatMul", pair)
        if any(len(group) != 1 for group in joined):
            result = self._reshaped(result, _split_shape(joined, {**of_right, **of_left}))
        return result, "".join(joined)

    def _joined(
        self, value: ir.Value, labels: str, groups: Groups, sizes: dict[str, int]
    ) -> ir.Value:
        turned = self._transposed(value, labels, "".join(groups))
        if all(len(group) == 1 for group in groups):
            return turned
        return self._reshaped(turned, _joined_shape(groups, sizes))

    def _transposed(self, value: ir.Value, labels: str, wanted: str) -> ir.Value:
        if labels == wanted:
            return value
        order = [labels.index(label) for label in wanted]
        if value.const_value is not None:
            # Here and not in the graph: later stages know a weight only as a constant.
            return self._constant(value, np.transpose(value.const_value.numpy(), order))
        return self._add("Transpose", (value,), [ir.AttrInt64s("perm", order)])

    def _reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        if value.const_value is not None:
            data = value.const_value.numpy()
            lengths = [data.shape[axis] if n == 0 else n for axis, n in enumerate(shape)]
            return self._constant(value, data.reshape(lengths))
        name = self._names.fresh(f"{self._node.outputs[0].name}_shape")
        target = add_constant(self._graph, name, np.array(shape, np.int64))
        return self._add("Reshape", (value, target))

    def _constant(self, value: ir.Value, data: np.ndarray) -> ir.Value:
        name = self._names.fresh(f"{value.name}_turned")
        return add_constant(self._graph, name, np.ascontiguousarray(data))

    def _add(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        name = f"{self._node.name}/{op_type}" if self._node.name else ""
        node = ir.Node("", op_type, inputs, attributes, name=name)
        # They belong to the module that the Einsum belonged to.
        node.metadata_props.update(self._node.metadata_props)
        node.outputs[0].name = self._names.fresh(f"{self._node.outputs[0].name}_{op_type.lower()}")
        node.outputs[0].type = self._node.outputs[0].type
        self._nodes.append(node)
        return node.outputs[0]


def _joined_shape(groups: Groups, sizes: dict[str, int]) -> list[int]:
    """Target shape of a Reshape that joins axes; 0 copies a length, -1 is what is left."""
    shape: list[int] = []
    for axis, group in enumerate(groups):
        copied = all(len(before) == 1 for before in groups[: axis + 1])
        known = all(label in sizes for label in group)
        shape.append(0 if copied else prod(sizes[x] for x in group) if known else -1)
    return shape


def _split_shape(groups: Groups, sizes: dict[str, int]) -> list[int]:
    """Target shape of a Reshape that splits axes again, one for every label."""
    copied = 0
    while copied < len(groups) and len(groups[copied]) == 1:
        copied += 1
    return [0] * copied + [sizes.get(label, -1) for label in "".join(groups[copied:])]


def _sizes(labels: str, value: ir.Value) -> dict[str, int]:
    dims = value.shape or ()
    return {x: dim for x, dim in zip(labels, dims, strict=False) if isinstance(dim, int)}


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)

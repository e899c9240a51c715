"""Places inside an attention where channels may change without a change of the result.

Probabilities sum up to one and the product with them is linear. So what is taken off each channel
of the values, or what it is divided by, passes on to the projection that reads their average. A
number that is added to a channel of all keys adds the same to all scores of a query, which a
softmax does not see. Both fold into the linear layer that computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.graph.editing import add_constant, drop_unused_initializers
from deploykit.graph.qdq.placement import MOVING_OPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.graph.qdq.plan import QdqPlan


_SELECTING_OPS: Final = frozenset({"Gather", "Slice", "Split"})
"""What takes the values out of queries, keys and values that one layer computes."""

_ADDING_OPS: Final = frozenset({"Add", "Identity", "Sub"})
"""What shifts scores: a shift of all scores of a query stays one."""

_SCALING_OPS: Final = frozenset({"Div", "Mul"})

_TOLERANCE: Final = 1 / 8
"""Of a channel's number, behind averages in FP32 whose weights sum up to 1 within a few ulps."""


@dataclass(frozen=True)
class LinearSource:
    """The linear layer that computes values or keys: its node, and the one that adds its bias.

    ``path`` are the values from its output to where they are read. Of a layer that computes more,
    ``channels`` (K,) are those of its output, in the order of the reader's.
    """

    node: str
    bias: str
    path: tuple[str, ...]
    channels: tuple[int, ...] = ()

    @property
    def output(self) -> str:
        """What the layer computes, its bias added."""
        return self.path[self.node != self.bias]


def find_values(model: ir.Model) -> dict[str, LinearSource]:
    """Where values come from, by the name of what the projection behind their average reads."""
    found = {}
    for node in model.graph:
        left, right = (*node.inputs, None, None)[:2]
        if node.op_type != "MatMul" or right is None or not _is_softmax(left):
            continue
        before = _back_to_linear(right, MOVING_OPS | _SELECTING_OPS)
        behind = list(_moved_on(node.outputs[0]))
        if before is not None:
            path = (*before.path, *(str(value.name) for value in behind))
            found[path[-1]] = LinearSource(before.node, before.bias, path)
    return found


def find_keys(model: ir.Model, plan: QdqPlan) -> dict[str, LinearSource]:
    """Where keys come from, of the products of ``plan``, by the name of the layer's output."""
    found = {}
    for node in model.graph:
        right = node.inputs[1] if node.name in plan.products else None
        if right is None or not _softmax_ignores_shifts(node.outputs[0]):
            continue
        before = _back_to_linear(right, MOVING_OPS | _SCALING_OPS)
        if before is not None and all(_is_read_once(model, name) for name in before.path):
            found[before.output] = before
    return found


def number_channels(model: ir.Model, sources: Sequence[LinearSource]) -> ir.Model:
    """A graph in which each of ``sources`` gives for every channel its number, whatever it reads.

    What the projections read then says which channel each of theirs is; see `channels_of`.
    """
    result = model.clone()
    nodes = {str(node.name): node for node in result.graph}
    for source in sources:
        layer, bias = nodes[source.node], nodes[source.bias]
        weight = layer.inputs[1].const_value.numpy()  # type: ignore[union-attr]  # as it was found
        place = bias_place(bias)
        given = bias.inputs[place].const_value.numpy()  # type: ignore[union-attr]
        numbers = np.arange(given.size, dtype=np.float32)
        for node, index, data in ((layer, 1, np.zeros_like(weight)), (bias, place, numbers)):
            name = f"{node.name}_numbered_{index}"
            node.replace_input_with(index, add_constant(result.graph, name, data))
    drop_unused_initializers(result.graph)
    return result


def channels_of(numbered: NDArray[np.float32]) -> tuple[int, ...]:
    """The channel that each of the last axis is; empty where they are not whole channels.

    >>> channels_of(np.float32([[[2, 3.0001], [2, 3]]]))
    (2, 3)
    >>> channels_of(np.float32([[[2, 3], [3, 2]]]))
    ()
    """
    rows = numbered.reshape(-1, numbered.shape[-1])
    whole = np.rint(rows[0])
    is_same = bool((np.abs(rows - whole) < _TOLERANCE).all())
    channels = tuple(int(each) for each in whole)
    return channels if is_same and len(set(channels)) == len(channels) else ()


def bias_place(node: ir.Node) -> int:
    """The input of an Add or a Gemm that is its bias."""
    if node.op_type == "Gemm":
        return 2
    return next(index for index, value in enumerate(node.inputs) if _is_row(value))


def _is_row(value: ir.Value | None) -> bool:
    constant = None if value is None else value.const_value
    return constant is not None and len(constant.shape) == 1


def _back_to_linear(value: ir.Value, ops: frozenset[str]) -> LinearSource | None:
    """The layer whose output comes to ``value`` by nothing but ``ops``."""
    path = [str(value.name)]
    node = value.producer()
    while node is not None and node.op_type in ops and node.inputs[0] is not None:
        if node.op_type in _SCALING_OPS and not _is_scalar(node.inputs[1]):
            return None
        path.append(str(node.inputs[0].name))
        node = node.inputs[0].producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Gemm" and len(node.inputs) > 2 and _is_row(node.inputs[2]):  # noqa: PLR2004
        is_plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        is_known = is_plain and _has_own_weight(node)
        name = str(node.name)
        return LinearSource(name, name, tuple(reversed(path))) if is_known else None
    if node.op_type != "Add" or sum(map(_is_row, node.inputs)) != 1:
        return None
    product = node.inputs[1 - bias_place(node)]
    layer = None if product is None else product.producer()
    if layer is None or layer.op_type != "MatMul" or not _has_own_weight(layer):
        return None
    start = str(layer.outputs[0].name)
    return LinearSource(str(layer.name), str(node.name), (start, *reversed(path)))


def _has_own_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    constant = None if weight is None else weight.const_value
    return constant is not None and len(constant.shape) == 2 and len(weight.uses()) == 1  # type: ignore[union-attr]  # noqa: PLR2004


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.size == 1


def _is_softmax(value: ir.Value | None) -> bool:
    """Whether it is the output of a softmax over the last axis, whose sums are one."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "Softmax" and _is_over_last(node)


def _is_over_last(node: ir.Node) -> bool:
    axis = node.attributes.get_int("axis", -1)
    shape = node.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _moved_on(value: ir.Value) -> Iterator[ir.Value]:
    """The value, and what moving its numbers makes of it, as long as nothing else reads it."""
    yield value
    while len(value.uses()) == 1 and not value.is_graph_output():
        node = next(iter(value.uses())).node
        if node.op_type not in MOVING_OPS:
            return
        value = node.outputs[0]
        yield value


def _softmax_ignores_shifts(value: ir.Value) -> bool:
    """Whether all that is made of scores is a softmax of them, shifted and scaled."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        node = next(iter(value.uses())).node
        if node.op_type == "Softmax":
            return _is_over_last(node)
        factors = node.inputs if node.op_type == "Mul" else node.inputs[1:]
        scales = node.op_type in _SCALING_OPS and any(map(_is_scalar, factors))
        if not scales and node.op_type not in _ADDING_OPS:
            return False
        value = node.outputs[0]
    return False


def _is_read_once(model: ir.Model, name: str) -> bool:
    value = next(v for node in model.graph for v in node.outputs if v.name == name)
    return len(value.uses()) == 1 and not value.is_graph_output()

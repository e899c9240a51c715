"""Groups of convolutions and matrix products that change their format together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph import HEAVY_OPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

Group = tuple[str, ...]
"""Names of nodes, in graph order."""


def groups_of(model: ir.Model) -> tuple[Group, ...]:
    """The groups of a graph that `tidy` has seen, each once, in the order of their first nodes.

    Together are layers that read one value, as it would be stored in two formats otherwise (query,
    key and value; the branches of a block), layers that share a weight, and the two products of an
    attention, which compilers make one kernel of.
    """
    layers = [node for node in model.graph if node.op_type in HEAVY_OPS and not node.domain]
    joined = _Joined(str(node.name) for node in layers)
    first: dict[ir.Value, str] = {}
    for node in layers:
        for value in _operands(node):
            joined.join(first.setdefault(value, str(node.name)), str(node.name))
        scores = _scores_before(node)
        if scores is not None:
            joined.join(str(scores.name), str(node.name))
    return joined.groups()


def formats_by_layer(groups: Sequence[Group], formats: Sequence[str]) -> Mapping[str, str]:
    """The format of each layer, from that of each group.

    >>> formats_by_layer([("a", "b"), ("c",)], ["int8", "fp16"])
    {'a': 'int8', 'b': 'int8', 'c': 'fp16'}
    """
    return {name: wanted for group, wanted in zip(groups, formats, strict=True) for name in group}


def _operands(node: ir.Node) -> list[ir.Value]:
    """The data that a layer reads, and its weight; of a product of activations the left one."""
    values = [value for value in node.inputs[:2] if value is not None]
    return [value for at, value in enumerate(values) if at == 0 or value.const_value is not None]


def _scores_before(node: ir.Node) -> ir.Node | None:
    """The product of queries and keys whose softmax a product of activations reads."""
    if node.op_type != "MatMul" or any(v is None or v.const_value is not None for v in node.inputs):
        return None
    current = node.inputs[0].producer()  # type: ignore[union-attr]  # it has two operands
    seen_softmax = False
    while current is not None and current.inputs and current.inputs[0] is not None:
        seen_softmax |= current.op_type == "Softmax"
        if current.op_type in HEAVY_OPS:
            return current if seen_softmax else None
        current = current.inputs[0].producer()
    return None


class _Joined:
    """Names that belong together, by the first of each group."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parent = {name: name for name in names}

    def join(self, one: str, other: str) -> None:
        order = list(self._parent)
        first, second = sorted((self._root(one), self._root(other)), key=order.index)
        self._parent[second] = first

    def groups(self) -> tuple[Group, ...]:
        found: dict[str, list[str]] = {}
        for name in self._parent:
            found.setdefault(self._root(name), []).append(name)
        return tuple(map(tuple, found.values()))

    def _root(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

"""Editing a graph: fresh names, constants, and the replacement of operators."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray


def add_constant(graph: ir.Graph, name: str, data: NDArray[np.generic]) -> ir.Value:
    """Register ``data`` as an initializer; ``name`` must be free in ``graph``."""
    tensor = ir.Tensor(data, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(data.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove the weights that no node reads any more."""
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name))


class Names:
    """A set of names that are taken; a repeated one gets a number.

    >>> names = Names(["conv"])
    >>> names.fresh("conv"), names.fresh("conv"), names.fresh("relu")
    ('conv_2', 'conv_3', 'relu')
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        # The last number of each name, so that many repeats do not each search from 2 on.
        self._last: Counter[str] = Counter()

    def fresh(self, wanted: str) -> str:
        """``wanted``, or ``wanted`` with the first free number; the result is taken from now on."""
        name = wanted
        while name in self._taken:
            self._last[wanted] = max(self._last[wanted], 1) + 1
            name = f"{wanted}_{self._last[wanted]}"
        self._taken.add(name)
        return name


def all_names(graph: ir.Graph) -> Names:
    """The names of values and of nodes, for nodes that are called as what they give.

    A runtime wants the names of nodes to differ from one another, and so those of values.
    """
    nodes = (str(node.name) for node in graph)
    return Names((*ir.convenience.create_value_mapping(graph), *nodes))


def insert_cast(
    graph: ir.Graph, value: ir.Value, to: ir.DataType, name: str, nodes: Names
) -> ir.Value:
    """A copy of ``value`` in another type, called ``name``, right behind the node that makes it.

    ``nodes`` are the names of the graph's nodes.
    """
    result = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
    cast = ir.Node(
        "",
        "Cast",
        [value],
        [ir.AttrInt64("to", int(to))],
        outputs=[result],
        name=nodes.fresh(f"{name}/Cast"),
    )
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, cast)
    else:
        # An input or a constant: its cast may stand before all nodes, which keeps them sorted.
        graph.insert_before(graph[0], cast)
    return result


def replace_each(
    model: ir.Model, op_type: str, replace: Callable[[ir.Node, ir.Graph], str | None]
) -> dict[str, str]:
    """Replace each node of the standard operator ``op_type`` by ``replace``, in place.

    Returns the reason that ``replace`` gives for each node that stays, by its name. Nodes in
    subgraphs are left alone and have no entry. Shapes must have been inferred, and are inferred
    again where something changed.
    """
    nodes = [node for node in model.graph if node.op_type == op_type and not node.domain]
    reasons = {str(node.name): replace(node, model.graph) for node in nodes}
    stay = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(stay) < len(nodes):
        RemoveUnusedNodesPass()(model)  # constants that were rewritten have no reader any more
        ShapeInferencePass()(model)
    return stay

"""Whole numbers in a graph, of classes and places, that a type of 16 bits does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHOLE: Final = frozenset(
    {
        ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT16,
        ir.DataType.UINT32, ir.DataType.UINT64,
    }
)  # fmt: skip
"""Types of class numbers, places and counts; pixels are of eight bits, which FP16 holds."""

_RANKING: Final = frozenset({"ArgMax", "ArgMin", "TopK"})
"""Operators whose last result are places along an axis."""

_KEEPING: Final = frozenset(
    {
        "Abs", "Cast", "Ceil", "Clip", "Compress", "Concat", "Expand", "Flatten", "Floor", "Gather",
        "GatherElements", "GatherND", "Identity", "Max", "Min", "Neg", "Pad", "ReduceMax",
        "ReduceMin", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Slice", "Split",
        "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators whose results are no larger than the largest number that they are given."""

_ADDING: Final = frozenset({"Add", "Sub", "Sum"})
_COUNTING: Final = frozenset(
    {"CumSum", "Div", "Mod", "Pow", "ReduceMean", "ReduceProd", "ReduceSum"}
)
"""Operators whose results of whole numbers may be any, or fractions that are rounded again."""


def counted(model: ir.Model, name: str, exact: float) -> dict[ir.Value, str]:
    """FP32 values that hold whole numbers beyond ``exact``, each with the reason.

    ``exact`` is up to where the type ``name`` has all of them.

    They are numbers of classes or places, from an ArgMax or a TopK, and what is made of them and of
    constants: in FP16 class 2049 is class 2048.
    """
    bounds: dict[ir.Value, float] = {}
    for node in model.graph:
        if node.op_type in _RANKING and not node.domain:
            bounds[node.outputs[-1]] = _places(node)
        elif not node.domain and (bound := _count_bound(node, bounds, exact)) is not None:
            bounds.update(dict.fromkeys(node.outputs, bound))
    return {
        value: f"{value.name} holds whole numbers, {_most(bound)}: {name} has them to {exact:.0f}"
        for value, bound in bounds.items()
        if value.dtype == ir.DataType.FLOAT and bound > exact
    }


def _most(bound: float) -> str:
    return "any" if bound == np.inf else f"up to {bound:.0f}"


def _places(node: ir.Node) -> float:
    """The last place that an ArgMax or TopK can name."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    axis = node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
    size = None if shape is None else shape[axis]
    return float(size - 1) if isinstance(size, int) else float(np.inf)


def _count_bound(node: ir.Node, bounds: Mapping[ir.Value, float], exact: float) -> float | None:
    """Largest whole number that a node may give; ``None`` where it gives others."""
    numbers = _numbers_in(node)
    if not any(value in bounds for value in numbers):
        return _bound_of_cast(node)
    given = [_bound_of(value, bounds) for value in numbers]
    known = [bound for bound in given if bound is not None]
    if len(known) < len(given):
        # What is added to a place is a place too, even if it has fractions.
        is_place = node.op_type in _ADDING and max(known) > exact
        return float(np.inf) if is_place else None
    if node.op_type in _ADDING:
        return sum(known)
    if node.op_type == "Mul":
        return float(np.prod(known))
    if node.op_type in _KEEPING:
        return max(known)
    return float(np.inf) if node.op_type in _COUNTING else None


def _bound_of_cast(node: ir.Node) -> float | None:
    """Of whole numbers that nothing is known of; those of a yes or no are 0 and 1."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    if source is None or source.dtype not in _WHOLE:
        return None
    maker = source.producer()
    before = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else None
    return 1.0 if before is not None and before.dtype == ir.DataType.BOOL else float(np.inf)


def _numbers_in(node: ir.Node) -> list[ir.Value]:
    """Operands that the results are made of; not axes, shapes, and conditions."""
    variadic = {"Clip", "Concat", "Div", "Max", "Min", "Mod", "Mul", "Pow", *_ADDING}
    if node.op_type == "Where":
        given = node.inputs[1:]
    elif node.op_type in {"ScatterElements", "ScatterND"}:
        given = (node.inputs[0], node.inputs[2])
    else:
        given = node.inputs if node.op_type in variadic else node.inputs[:1]
    return [value for value in given if value is not None]


def _bound_of(value: ir.Value, bounds: Mapping[ir.Value, float]) -> float | None:
    data = value.const_value if value.is_initializer() else None
    if data is None:
        return bounds.get(value)
    return float(np.abs(data.numpy()).max()) if data.size else 0.0

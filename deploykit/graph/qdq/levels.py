"""A graph for trials in which each group of layers computes in FP32, FP16 or eight bits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import add_constant
from deploykit.graph.external_weights import split_own
from deploykit.graph.half import HEAVY_OPS, is_float
from deploykit.graph.qdq.insertion import insert_qdq
from deploykit.graph.qdq.trials import SwitchBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deploykit.core.specs import SplitGraph
    from deploykit.graph.qdq.plan import QdqPlan

LEVELS: Final = "levels"
"""Name of the extra input: int64 (G,), for each group one of `EXACT`, `HALF`, `NARROW`."""

EXACT: Final = 0
HALF: Final = 1
NARROW: Final = 2


def with_levels(
    model: ir.Model,
    plan: QdqPlan,
    amax: Mapping[str, float],
    groups: Sequence[Sequence[str]],
) -> SplitGraph:
    """The form of an FP32 graph, for a runner, with the input `LEVELS`.

    The operands of a layer are rounded to its group's level; a skip operand goes with the layer
    that the addition ends. A layer that ``plan`` does not quantize is exact at the level `NARROW`.
    What belongs to no group computes in FP32.

    Raises:
        DataError: ``amax`` lacks a value of the plan, or is not a number from 0 up.
        ModelFileError: it is too large without its weights.
    """
    of_layer = {name: at for at, group in enumerate(groups) for name in group}
    readers = _readers(model, plan, of_layer)
    result = insert_qdq(model, _of_readers(plan, readers), amax)
    builder = _LevelBuilder(model, result, len(groups))
    for name, (group, positions) in readers.items():
        for position in positions:
            builder.level(group, name, position)
    return split_own(result, "the graph with its levels")


def _readers(
    model: ir.Model, plan: QdqPlan, of_layer: Mapping[str, int]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Of each node whose operands have levels the group and the positions.

    Operators that only move values are left out: rounding before them and behind them is the same.
    """
    found: dict[str, tuple[int, tuple[int, ...]]] = {
        str(node.name): (of_layer[str(node.name)], (0, 1))
        for node in model.graph
        if node.op_type in HEAVY_OPS and str(node.name) in of_layer
    }
    for reader in (reader for each in plan.activations.values() for reader in each):
        node = next(node for node in model.graph if node.name == reader.node)
        other = node.inputs[1 - reader.position] if node.op_type == "Add" else None
        maker = None if other is None else other.producer()
        if maker is not None and str(maker.name) in of_layer:
            found[reader.node] = (of_layer[str(maker.name)], (reader.position,))
    return found


def _of_readers(plan: QdqPlan, readers: Mapping[str, tuple[int, tuple[int, ...]]]) -> QdqPlan:
    activations = {
        tensor: tuple(reader for reader in each if reader.node in readers)
        for tensor, each in plan.activations.items()
    }
    return replace(plan, activations={name: each for name, each in activations.items() if each})


class _LevelBuilder(SwitchBuilder):
    """Adds levels to a graph of eight bits; ``source`` is the FP32 graph that it was made from."""

    def __init__(self, source: ir.Model, result: ir.Model, groups: int) -> None:
        super().__init__(source, result, LEVELS, ir.DataType.INT64, groups)
        self._is: dict[tuple[int, int], ir.Value] = {}

    def level(self, group: int, name: str, position: int) -> None:
        """Let an operand of the node ``name`` be read as its group's level says."""
        node, original = self.nodes[name], self.source[name]
        if position >= len(node.inputs) or not is_float(original.inputs[position]):
            return
        exact = self.exact(original.inputs[position])
        down = self.insert("Cast", [exact], ir.DataType.FLOAT16, node, _to(ir.DataType.FLOAT16))
        half = self.insert("Cast", [down], ir.DataType.FLOAT, node, _to(ir.DataType.FLOAT))
        chosen = self._where(group, HALF, half, exact, node)
        narrow = node.inputs[position]
        if narrow is not exact and narrow is not original.inputs[position]:
            chosen = self._where(group, NARROW, narrow, chosen, node)
        node.replace_input_with(position, chosen)

    def _where(
        self, group: int, level: int, then: ir.Value | None, other: ir.Value, before: ir.Node
    ) -> ir.Value:
        condition = self._is.get((group, level))
        if condition is None:
            place, wanted = (
                add_constant(
                    self.graph, self.value_names.fresh(f"{what}_{number}"), np.asarray(number)
                )
                for what, number in (("group", group), ("level", level))
            )
            first = self.graph[0]
            own = self.insert("Gather", [self.switches, place], ir.DataType.INT64, first)
            condition = self.insert("Equal", [own, wanted], ir.DataType.BOOL, first)
            self._is[group, level] = condition
        return self.either(condition, then, other, before)


def _to(dtype: ir.DataType) -> Iterator[ir.Attr]:
    yield ir.AttrInt64("to", int(dtype))

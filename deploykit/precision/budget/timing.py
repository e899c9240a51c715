"""Predicted time of each group in each format, and of a change of format between neighbours."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from deploykit.core.precision import Precision
from deploykit.costs.kernels import layer_in
from deploykit.costs.network import LayerCost
from deploykit.costs.predicted import predicted_ms
from deploykit.graph.kernel_costs import VANISHING_OPS, fix_batch, network_cost
from deploykit.graph.products import shape_of
from deploykit.precision.budget.solver import GroupTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir

    from deploykit.costs.network import NetworkCost
    from deploykit.costs.peaks import DevicePeak
    from deploykit.graph.kernel_costs import RunGraph
    from deploykit.precision.budget.grouping import Group

REST: Final = -1
"""Place of what belongs to no group: it stays beside the groups, in the precision of the rest."""


@dataclass(frozen=True)
class GroupCosts:
    """What the groups of an FP32 graph cost; ``kernels`` are by group, `REST` among them.

    ``passed`` are the elements of values that go from one group to another, or to the rest.
    """

    kernels: Mapping[int, Sequence[LayerCost]]
    passed: Mapping[tuple[int, int], int]

    def ms(
        self,
        group: int,
        wanted: Precision,
        peak: DevicePeak,
        can_narrow: frozenset[str] = frozenset(),
    ) -> float:
        """Milliseconds of a group's kernels with all their operands in one format.

        Of eight bits are only the layers that ``can_narrow``, the others are FP16 then.
        """
        found = 0.0
        for kernel in self.kernels.get(group, ()):
            narrow = not wanted.facts.quantized or kernel.name in can_narrow
            found += predicted_ms(layer_in(kernel, wanted if narrow else Precision.FP16), peak)
        return found

    def reformat_ms(
        self, pair: tuple[int, int], formats: tuple[Precision, Precision], peak: DevicePeak
    ) -> float:
        """Milliseconds of the passes that change what goes between two groups, in either way."""
        if formats[0] is formats[1]:
            return 0.0
        elements = self.passed.get(pair, 0) + self.passed.get(pair[::-1], 0)
        read, written = (elements * each.facts.operand_bits // 8 for each in formats)
        kernel = LayerCost("reformat", ("Cast",), Precision.FP32, 0, 0, read, written, False)  # noqa: FBT003 - as the field is called
        return predicted_ms(kernel, peak)


def group_costs(
    model: ir.Model, groups: Sequence[Group], batch: int, run: RunGraph | None = None
) -> GroupCosts:
    """Count the kernels of an FP32 graph that `tidy` has seen, for a batch, its own if it is fixed.

    Raises:
        UsageError: a dimension beside the batch is open.
        ModelFileError: shape inference finds no shape for a value.
    """
    fixed = model.clone()
    fix_batch(fixed, batch, run)
    cost = network_cost(fixed, batch, run)
    of_layer = {name: at for at, group in enumerate(groups) for name in group}
    kernels: dict[int, list[LayerCost]] = {}
    place: dict[str, int] = {}
    for kernel in cost.layers:
        group = of_layer.get(kernel.name, REST)
        kernels.setdefault(group, []).append(kernel)
        place.update(dict.fromkeys(kernel.nodes, group))
    return GroupCosts(kernels, _passed(fixed, place, cost))


def group_table(
    costs: GroupCosts,
    formats: Sequence[Precision],
    noise: Sequence[Sequence[float]],
    peak: DevicePeak,
    can_narrow: frozenset[str],
) -> GroupTable:
    """Predicted times beside the noise; a group's edges to the rest, which is FP16, are its own."""
    ms = [
        [
            costs.ms(group, each, peak, can_narrow)
            + costs.reformat_ms((group, REST), (each, Precision.FP16), peak)
            for each in formats
        ]
        for group in range(len(noise))
    ]
    pairs = {(min(pair), max(pair)) for pair in costs.passed if REST not in pair}
    edges = {
        pair: [
            [costs.reformat_ms(pair, (one, other), peak) for other in formats] for one in formats
        ]
        for pair in sorted(pairs)
    }
    return GroupTable(ms, noise, edges, costs.ms(REST, Precision.FP16, peak))


def _passed(
    model: ir.Model, place: Mapping[str, int], cost: NetworkCost
) -> dict[tuple[int, int], int]:
    kernel_of = {name: kernel.name for kernel in cost.layers for name in kernel.nodes}
    # A value that several nodes of a group read is stored in its format once.
    seen: set[tuple[ir.Value, str]] = set()
    found: Counter[tuple[int, int]] = Counter()
    for node in model.graph:
        name = str(node.name)
        if name not in place:
            continue
        for value in _stored_operands(node):
            maker = value.producer()
            if maker is None or maker.name not in place:
                continue
            there, here = place[str(maker.name)], place[name]
            outside = kernel_of[str(maker.name)] != kernel_of[name]
            if there != here and outside and (value, str(here)) not in seen:
                seen.add((value, str(here)))
                found[there, here] += prod(shape_of(value))
    return dict(found)


def _stored_operands(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, traced back through operators that have no kernel of their own."""
    for operand in node.inputs:
        value = operand
        while value is not None and (maker := value.producer()) is not None:
            if maker.op_type not in VANISHING_OPS or maker.domain:
                break
            value = maker.inputs[0]
        if value is not None and not value.is_initializer() and value.producer() is not None:
            yield value

"""Nodes that are alike in what a reader asks of them, as one row of a table."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.onnx_graph.precision import GraphPrecision, NodePrecision
    from deploykit.specs import Precision

_PARTICULAR: Final = re.compile(r"\S*\d\S*|'[^']*'|\S+(?= reaches )")
"""Numbers, and names that have one: what differs between reasons that are alike."""


@dataclass(frozen=True)
class Work:
    """One kernel of the compiled network, or a node that is none and still has a reason."""

    nodes: tuple[NodePrecision, ...]

    @property
    def head(self) -> NodePrecision:
        """What it is named after; its precision is that of the arithmetic."""
        return self.nodes[0]

    @property
    def operators(self) -> str:
        """In order: ``Conv + Add + Relu``."""
        return " + ".join(node.op_type for node in self.nodes)

    @property
    def reason(self) -> str:
        """Why it, or something that is computed with it, is not lower."""
        found = {self.head.reason: self.head.reason} if self.head.reason else {}
        for node in self.nodes[1:]:
            if node.reason and node.reason not in found:
                found[node.reason] = f"{node.op_type}: {node.reason}"
        return "; ".join(text for text in found.values() if text)

    @property
    def trials(self) -> tuple[str, ...]:
        """What of it trials on images may change."""
        return tuple(dict.fromkeys(node.trial for node in self.nodes if node.trial))


@dataclass(frozen=True)
class Group:
    """Works that are alike, in graph order."""

    works: tuple[Work, ...]

    @property
    def precision(self) -> Precision:
        """Of all of them."""
        return self.works[0].head.precision

    @property
    def operators(self) -> str:
        """Those of one, or how many there are of each."""
        counts = Counter(work.operators for work in self.works)
        if len(counts) == 1:
            return self.works[0].operators
        return ", ".join(f"{count} {operators}" for operators, count in counts.items())

    @property
    def multiply_adds(self) -> int:
        """Of all of them."""
        return sum(work.head.multiply_adds for work in self.works)

    @property
    def where(self) -> str:
        """The first and the last by name, without the operator that their names end with."""
        first, last = _place(self.works[0]), _place(self.works[-1])
        return first if first == last else f"{first} .. {last}"

    @property
    def because(self) -> str:
        """The reason of the heaviest, and what is still open."""
        heaviest = max(self.works, key=lambda work: work.head.multiply_adds)
        differ = len({work.reason for work in self.works}) > 1
        reason = f"{heaviest.reason}, and the like" if differ else heaviest.reason
        trials = ", ".join(heaviest.trials)
        return "; ".join(filter(None, (reason, f"trials decide: {trials}" if trials else "")))


def _place(work: Work) -> str:
    module, _, operator = work.head.name.rpartition("/")
    return module if module and operator.startswith(work.head.op_type) else work.head.name


def works_of(graph: GraphPrecision) -> tuple[Work, ...]:
    """What the compiled network computes, in graph order, with nodes that have a reason only."""
    kernels: dict[str, list[NodePrecision]] = {}
    for node in graph.nodes:
        if node.kernel is not None or node.reason:
            kernels.setdefault(node.kernel or node.name, []).append(node)
    return tuple(Work(tuple(nodes)) for nodes in kernels.values())


def group(works: Iterable[Work]) -> tuple[Group, ...]:
    """Works with the same operators, precision and kind of reason together.

    Those without multiply-adds are alike whatever their operators. Groups are in the order of
    their first member.
    """
    found: dict[tuple[object, ...], list[Work]] = {}
    for work in works:
        kind = _PARTICULAR.sub("#", work.reason)
        operators = work.operators if work.head.multiply_adds else ""
        key = (operators, work.head.precision, kind, work.trials)
        found.setdefault(key, []).append(work)
    return tuple(Group(tuple(members)) for members in found.values())


def left_out(graph: GraphPrecision) -> Mapping[str, int]:
    """Nodes that are no work and have no reason, counted by operator."""
    return Counter(n.op_type for n in graph.nodes if n.kernel is None and not n.reason)

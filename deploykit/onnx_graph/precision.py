"""The nouns of a look at precision: what each node of a graph runs in, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit.onnx_graph.half import HEAVY_OPS
from deploykit.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

RANK: Final = {Precision.INT8: 0, Precision.FP16: 1, Precision.FP32: 2}
"""The lowest first."""

INTEGER_OPS: Final = frozenset(
    {"ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul"}
)
"""Operators that are INT8 by themselves, without Q/DQ pairs; TensorRT takes none of them."""


@dataclass(frozen=True, slots=True)
class NodePrecision:
    """One node of the network; casts and Q/DQ pairs are part of its edges.

    ``kernel`` is the first of the nodes that it becomes one kernel with when the graph is
    compiled, ``None`` where it is no work of its own. ``reason`` says why it is not lower,
    ``trial`` what of it a trial on images may still change.
    """

    name: str
    op_type: str
    precision: Precision
    multiply_adds: int
    kernel: str | None
    reason: str | None = None
    trial: str | None = None


@dataclass(frozen=True)
class GraphPrecision:
    """All nodes in graph order, and what the graph has between those of different precision.

    ``casts`` are those between floating-point types, ``qdq_pairs`` stand behind activations,
    ``int8_weights`` are constants that are stored as INT8.
    """

    nodes: tuple[NodePrecision, ...]
    casts: int
    qdq_pairs: int
    int8_weights: int

    @property
    def multiply_adds(self) -> int:
        """Of the batch that was asked for."""
        return sum(node.multiply_adds for node in self.nodes)

    @property
    def multiply_adds_in(self) -> Mapping[Precision, int]:
        """Multiply-adds by the precision they run in."""
        found = dict.fromkeys(Precision, 0)
        for node in self.nodes:
            found[node.precision] += node.multiply_adds
        return found

    @property
    def heavy_in(self) -> Mapping[Precision, int]:
        """Convolutions and matrix products by precision."""
        found = dict.fromkeys(Precision, 0)
        for node in self.nodes:
            found[node.precision] += node.op_type in HEAVY_OPS
        return found

    @property
    def integer_ops(self) -> Mapping[str, int]:
        """How many nodes there are of each operator that is INT8 without Q/DQ pairs."""
        return Counter(node.op_type for node in self.nodes if node.op_type in INTEGER_OPS)

    def share(self, multiply_adds: int) -> float:
        """The part of all multiply-adds, 0 to 1."""
        return multiply_adds / self.multiply_adds if self.multiply_adds else 0.0

    def heaviest_above(self, precision: Precision) -> tuple[NodePrecision, ...]:
        """Convolutions and matrix products that are not as low as ``precision``, largest first."""
        low = RANK[precision]
        high = (n for n in self.nodes if n.op_type in HEAVY_OPS and RANK[n.precision] > low)
        return tuple(sorted(high, key=lambda node: -node.multiply_adds))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "multiply_adds": {str(p): count for p, count in self.multiply_adds_in.items()},
            "share": {str(p): self.share(count) for p, count in self.multiply_adds_in.items()},
            "heavy_nodes": {str(p): count for p, count in self.heavy_in.items()},
            "casts": self.casts,
            "qdq_pairs": self.qdq_pairs,
            "int8_weights": self.int8_weights,
            "nodes": [self._row(node) for node in self.nodes],
        }

    def _row(self, node: NodePrecision) -> dict[str, Any]:
        return {
            "name": node.name,
            "op_type": node.op_type,
            "precision": str(node.precision),
            "multiply_adds": node.multiply_adds,
            "share": self.share(node.multiply_adds),
            "kernel": node.kernel,
            "reason": node.reason,
            "trial": node.trial,
        }


@dataclass(frozen=True)
class Known:
    """What is known of a graph beside its nodes: why, by name, and what is still open."""

    reasons: Mapping[str, str] = field(default_factory=dict)
    trials: Mapping[str, str] = field(default_factory=dict)

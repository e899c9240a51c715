"""INT8 and FP8 where they differ: formats, placement of pairs, ways to find ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deploykit.core.precision import Precision
from deploykit.graph import (
    OLDEST_FOR_FP8,
    OLDEST_FOR_INT8,
    OPSET_FOR_BF16,
    LoadedGraph,
    qdq,
    tidy_in_opset,
)
from deploykit.precision.calibration.calibrators import METHODS
from deploykit.precision.quantization.conversion import require_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from deploykit.graph.qdq import QdqPlan, QdqPolicy


@dataclass(frozen=True)
class QuantizedKind:
    """A precision of eight bits.

    ``place`` decides where its pairs go, ``calibrated`` names the values that any of its plans may
    need ranges of, ``methods`` are those that trials compare; its pairs need ``opset``.
    ``rounds_together`` says that weights rounded together are tried. ``equalisation_pixels`` are
    those of the images that show the channels: ranges of two thirds of them, noise on the others.
    """

    precision: Precision
    place: Callable[[ir.Model, QdqPolicy], QdqPlan]
    calibrated: Callable[[ir.Model], tuple[str, ...]]
    methods: tuple[str, ...]
    opset: int
    rounds_together: bool
    equalisation_pixels: int

    def plan(self, graph: LoadedGraph, policy: QdqPolicy, name: str | None = None) -> QdqPlan:
        """What would be of eight bits; ``name`` is how the user calls the network.

        Raises:
            ModelFileError: the graph is quantized already, or has nothing to quantize.
        """
        plan = self.place(graph.model, policy)
        require_layers(graph, plan, policy, self.precision, name)
        return plan

    def raised(self, graph: LoadedGraph, rest: Precision = Precision.FP16) -> LoadedGraph:
        """The same graph in an opset that has the pairs, and the types of the ``rest``."""
        opset = max(self.opset, OPSET_FOR_BF16) if rest is Precision.BF16 else self.opset
        if graph.artifact.opset >= opset:
            return graph
        return LoadedGraph(graph.artifact, tidy_in_opset(graph.model, opset))


INT8: Final = QuantizedKind(
    Precision.INT8,
    qdq.plan_qdq,
    qdq.calibration_tensors,
    tuple(METHODS),
    OLDEST_FOR_INT8,
    rounds_together=True,
    equalisation_pixels=48 * 224 * 224,
)
"""Scales of single channels want more images: of 24, a vision transformer lost 1.5 dB on others.

Behind equalised inputs its weights make much of a transformer's noise: rounding them together
took off 1 dB there (`benchmarks/transformer_int8.py`).
"""

FP8: Final = QuantizedKind(
    Precision.FP8,
    qdq.plan_fp8,
    qdq.fp8_calibration_tensors,
    ("max",),
    OLDEST_FOR_FP8,
    rounds_together=True,
    equalisation_pixels=24 * 224 * 224,
)
"""Clipping gains nothing on its relative steps (`benchmarks/fp8_accuracy.py`)."""

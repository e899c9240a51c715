"""From a verified FP32 graph to the FP8 graph that loses least on images it was not made from.

FP8 has four binary digits wherever a value lies in its range: unlike the even steps of INT8,
clipping outliers makes nothing else finer. So the largest value is the range, and trials compare
no methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.core.errors import UsageError
from deploykit.core.precision import Precision
from deploykit.graph import OLDEST_FOR_FP8, tidy_in_opset
from deploykit.graph.node_precisions import planned_quantized
from deploykit.graph.qdq import QdqPolicy, plan_fp8
from deploykit.precision import Conversion, Converted
from deploykit.precision.fp16 import HEADROOM
from deploykit.precision.int8 import converted
from deploykit.precision.quantization.choice import AUTO
from deploykit.precision.quantization.kinds import FP8
from deploykit.precision.quantization.request import require_request

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal
    from deploykit.graph.node_precisions import GraphPrecision, Planned
    from deploykit.precision import PlanSource
    from deploykit.precision.quantization.request import QuantizationRequest


METHODS: Final = ("max", "percentile")
"""Calibrators whose range does not depend on INT8's 127 even steps."""


def require_possible(request: QuantizationRequest) -> None:
    """Refuse ranges that are none for FP8.

    Raises:
        UsageError: ``request`` asks for them.
    """
    method = request.int8_choices.method
    if method not in {AUTO, *METHODS}:
        raise UsageError(
            f"--method {method} finds ranges for INT8's even steps, which FP8 has not\n"
            f"possible for --fp8: {', '.join(METHODS)}"
        )


class _Fp8(Conversion):
    """Calibrates, makes choices on held-out images, and quantizes."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,
        journal: Journal,
    ) -> Converted:
        require_possible(require_request(Precision.FP8, request))
        return converted(FP8, reference, path, request, journal)

    def plan(self, source: PlanSource) -> Planned:
        model = tidy_in_opset(source.model, OLDEST_FOR_FP8)
        plan = plan_fp8(model, QdqPolicy(exclude=source.exclude))
        return planned_quantized(model, plan, source.magnitudes, HEADROOM, source.unfit)

    def notes(self, planned: Planned, graph: GraphPrecision, batch: int) -> tuple[str, ...]:
        del planned, batch
        if graph.fp8_weights:
            return ("only GPUs of compute capability 8.9 and later have FP8",)
        return ("nothing of it can be FP8: an export with --fp8 refuses it",)


CONVERSION: Final[Conversion] = _Fp8()

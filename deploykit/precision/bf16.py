"""FP32 graph to BF16 graph: nothing overflows or vanishes there, so nothing is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.core.precision import Precision
from deploykit.graph import (
    BF16,
    OPSET_FOR_BF16,
    convert_to_half,
    plan_half,
    tidy_in_opset,
    write_graph,
)
from deploykit.graph.node_precisions import planned_half
from deploykit.precision import Conversion, Converted
from deploykit.precision.fp16 import HEADROOM, HalfResult, judged

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal
    from deploykit.graph import LoadedGraph
    from deploykit.graph.node_precisions import Planned
    from deploykit.precision import PlanSource
    from deploykit.precision.quantization.request import QuantizationRequest


def convert_to_bf16(graph: LoadedGraph, path: Path) -> HalfResult:
    """Write the BF16 form of ``graph`` to ``path``; inputs and outputs stay FP32.

    Raises:
        ModelFileError: the graph cannot be raised to an opset that has BF16, or the result is not
            a valid model.
    """
    model = tidy_in_opset(graph.model, OPSET_FOR_BF16)
    plan = plan_half(model, {}, HEADROOM, half=BF16)
    parents = (graph.artifact.sha256, *graph.artifact.parents)
    written = write_graph(convert_to_half(model, plan), path, Precision.BF16, parents)
    return HalfResult(
        written, len(plan.halved), kept_fp32=plan.kept, kept_heavy=plan.kept_heavy(model)
    )


class _Bf16(Conversion):
    """Converts all that has a BF16 form."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,  # noqa: ARG002
        journal: Journal,
    ) -> Converted:
        with journal.stage("convert to bf16"):
            result = convert_to_bf16(reference.graph, path)
        return judged(reference, result, journal)

    def plan(self, source: PlanSource) -> Planned:
        raised = tidy_in_opset(source.model, OPSET_FOR_BF16)
        return planned_half(raised, {}, HEADROOM, half=BF16)


CONVERSION: Final[Conversion] = _Bf16()

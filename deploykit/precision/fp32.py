"""The precision that a network has already: nothing is converted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.graph.node_precisions import Known, Planned
from deploykit.precision import Conversion, Converted

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal
    from deploykit.precision import PlanSource
    from deploykit.precision.quantization.request import QuantizationRequest


class _Fp32(Conversion):
    """The identity."""

    def convert(
        self,
        reference: Reference,
        path: Path,  # noqa: ARG002 - the reference lies there
        request: QuantizationRequest | None,  # noqa: ARG002
        journal: Journal,  # noqa: ARG002
    ) -> Converted:
        compared = reference.batches, reference.outputs
        return Converted(
            reference.artifact, (reference.report,), dict(reference.conversion), compared
        )

    def plan(self, source: PlanSource) -> Planned:
        return Planned(source.model, Known())


CONVERSION: Final[Conversion] = _Fp32()

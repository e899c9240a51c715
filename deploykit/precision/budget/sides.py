"""Sources of INT8 and FP8 graphs: ranges, placement, and the trials of INT8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.core.precision import Precision
from deploykit.graph import qdq
from deploykit.precision.budget.making import Side
from deploykit.precision.fp8 import METHODS as FP8_METHODS
from deploykit.precision.int8 import (
    QuantizedSide,
    choose_for_side,
    equalise_side,
    measure_side,
)
from deploykit.precision.quantization.conversion import QuantizationErrors
from deploykit.precision.quantization.kinds import FP8, INT8

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal
    from deploykit.precision.calibration.graphs import Calibrated
    from deploykit.precision.quantization.request import QuantizationRequest

    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class HeldOut:
    """Images of the calibration set by which formats are chosen, and what FP32 answers to them.

    ``expected`` are the first of the ``answers`` of each batch.
    """

    batches: Batches
    answers: list[Answers]
    expected: Batches


@dataclass(frozen=True)
class SideMaker:
    """Makes the sides of one export; graphs that it writes lie in ``folder``."""

    reference: Reference
    request: QuantizationRequest
    calibrated: Calibrated
    held_out: HeldOut
    folder: Path
    journal: Journal

    def made(self, precision: Precision, known: Mapping[str, Any]) -> Side:
        """The side of an eight-bit format; where choices of INT8 are ``known``, without trials.

        Raises:
            DataError: an image gives NaN.
        """
        return self._fp8() if precision is Precision.FP8 else self._int8(known)

    def _int8(self, known: Mapping[str, Any]) -> Side:
        plain = QuantizedSide(INT8, self.reference, self.calibrated)
        if known:
            side, method, policy, errors = self._as_known(plain, known)
        else:
            compared = self.held_out.batches, self.held_out.answers
            spare = self.folder / "equalised.onnx"
            choice, side = choose_for_side(plain, compared, self.request, spare, self.journal)
            method, policy, errors = choice.method, choice.policy, choice.errors
        table = side.calibrated.table
        record = {
            "method": method,
            "residual": policy.residual,
            "corrected": bool(errors.shifts),
            "equalised": bool(side.strengths),
        }
        return Side(
            Precision.INT8,
            self.reference,
            side.reference.graph,
            qdq.plan_qdq,
            policy,
            table.select(method),
            table.select_trial(method),
            errors,
            record,
        )

    def _as_known(
        self, side: QuantizedSide, known: Mapping[str, Any]
    ) -> tuple[QuantizedSide, str, qdq.QdqPolicy, QuantizationErrors]:
        """What an earlier export chose, made again."""
        method, errors = str(known["method"]), QuantizationErrors()
        policy = replace(self.request.policy, residual=known["residual"])
        if known["equalised"]:
            pairs = self.held_out.batches, self.held_out.expected
            spare = self.folder / "equalised.onnx"
            side = equalise_side(side, pairs, self.request, spare, self.journal) or side
        if known["corrected"]:
            with self.journal.stage("correct biases") as task:
                errors = measure_side(side, task, method, policy)
        return side, method, policy, errors

    def _fp8(self) -> Side:
        asked = self.request.int8_choices.method
        method = asked if asked in FP8_METHODS else FP8.methods[0]
        graph, table = self.reference.graph, self.calibrated.table
        raised = FP8.raised(graph)
        return Side(
            Precision.FP8,
            self.reference,
            raised,
            qdq.plan_fp8,
            self.request.policy,
            table.select(method),
            table.select_trial(method),
            record={"method": method, "residual": self.request.policy.residual},
        )

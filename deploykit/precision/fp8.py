"""From a verified FP32 graph to the FP8 graph, by the ranges of a calibration.

FP8 has four binary digits wherever a value lies in its range: unlike the even steps of INT8,
clipping outliers makes nothing else finer. So the largest value is the range, and there are no
trials of methods; those of INT8's placement and biases have no counterpart yet.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.manifest import CALIBRATION
from deploykit.comparison.converted import FP32_GRAPH, require_valid
from deploykit.core.errors import UsageError
from deploykit.core.precision import Precision
from deploykit.graph import OLDEST_FOR_FP8, LoadedGraph, tidy_in_opset
from deploykit.graph.node_precisions import planned_quantized
from deploykit.graph.qdq import QdqPolicy, fp8_calibration_tensors, plan_fp8
from deploykit.precision import Conversion, Converted
from deploykit.precision.calibration.graphs import calibrate_graph
from deploykit.precision.fp16 import HEADROOM
from deploykit.precision.int8 import COMPARED_PIXELS, halving, load_images
from deploykit.precision.quantization.choice import AUTO
from deploykit.precision.quantization.conversion import quantize_by_plan, require_layers
from deploykit.precision.quantization.noise import fp32_answers
from deploykit.precision.quantization.request import require_request

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import Journal
    from deploykit.graph.node_precisions import GraphPrecision, Planned
    from deploykit.graph.qdq import QdqPlan
    from deploykit.precision import PlanSource
    from deploykit.precision.calibration.graphs import Calibrated
    from deploykit.precision.quantization.conversion import QuantizedResult
    from deploykit.precision.quantization.request import QuantizationRequest

    Batches = list[NDArray[np.float32]]

METHODS: Final = ("max", "percentile")
"""Calibrators whose range does not depend on INT8's 127 even steps."""

METHOD: Final = "max"
"""Of ``auto``: clipping gains nothing (`benchmarks/fp8_accuracy.py`)."""


def require_possible(request: QuantizationRequest) -> str:
    """The method of ``request``, which asks for nothing that FP8 has not.

    Raises:
        UsageError: it does.
    """
    choices = request.int8_choices
    asked = {
        "--sensitive-layers keep": choices.sensitive_layers == "keep",
        "--bias-correction on": choices.bias_correction == "on",
    }
    wrong = next((option for option, is_asked in asked.items() if is_asked), None)
    if wrong is not None:
        raise UsageError(f"{wrong} is for --int8: --fp8 has no such trial\nleave it out")
    method = METHOD if choices.method == AUTO else choices.method
    if method not in METHODS:
        raise UsageError(
            f"--method {method} finds ranges for INT8's even steps, which FP8 has not\n"
            f"possible for --fp8: {', '.join(METHODS)}"
        )
    return method


def plan_of(graph: LoadedGraph, policy: QdqPolicy, name: str | None = None) -> QdqPlan:
    """What would become FP8; ``name`` is how the user calls the network, for the message.

    Raises:
        ModelFileError: the graph is quantized already, or has nothing to quantize.
    """
    plan = plan_fp8(graph.model, policy)
    require_layers(graph, plan, policy, Precision.FP8, name)
    return plan


def convert_to_fp8(
    reference: Reference, path: Path, request: QuantizationRequest, journal: Journal
) -> tuple[QuantizedResult, Calibrated, str]:
    """Calibrate and write the graph to ``path``; with the calibration and its method.

    Raises:
        UsageError: ``request`` asks for what FP8 has not.
        DataError: the calibration images cannot be used.
        ModelFileError: the graph is quantized already, or nothing in it can be FP8.
    """
    graph, method = reference.graph, require_possible(request)
    name = str(reference.model["name"])
    plan_of(graph, request.policy, name)  # refuses what has nothing to quantize, before calibrating
    calibrated = calibrate_graph(
        graph,
        name,
        reference.preprocessing,
        request.calibration,
        journal,
        reference.runners,
        tensors=fp8_calibration_tensors(graph.model),
    )
    with journal.stage("convert to fp8") as task:
        raised = LoadedGraph(graph.artifact, tidy_in_opset(graph.model, OLDEST_FOR_FP8))
        plan = plan_of(raised, request.policy)
        result = quantize_by_plan(
            raised,
            plan,
            calibrated.table.select(method),
            path,
            Precision.FP8,
            halve=halving(reference, plan.layers, request.rest, task),
        )
    return result, calibrated, method


class _Fp8(Conversion):
    """Calibrates and quantizes; validated on images that are held out."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,
        journal: Journal,
    ) -> Converted:
        given = require_request(Precision.FP8, request)
        result, calibrated, method = convert_to_fp8(reference, path, given, journal)
        data = calibrated.data
        held_out = load_images(data, data.held_out, reference.artifact, COMPARED_PIXELS)
        _, expected = fp32_answers(reference, held_out)
        compared = held_out, expected
        report = require_valid(reference, result.graph, compared, journal, made_by=FP32_GRAPH)
        calibrated.table.save(path.with_name(CALIBRATION))
        conversion = {
            **reference.conversion,
            **result.to_dict(),
            "kept_heavy": result.kept_heavy,
        }
        return Converted(
            result.artifact,
            (reference.report, report),
            conversion,
            compared,
            _recorded(calibrated, method, given.policy),
            graph=result.graph,
        )

    def plan(self, source: PlanSource) -> Planned:
        model = tidy_in_opset(source.model, OLDEST_FOR_FP8)
        plan = plan_fp8(model, QdqPolicy(exclude=source.exclude))
        return planned_quantized(model, plan, source.magnitudes, HEADROOM, source.unfit)

    def notes(self, planned: Planned, graph: GraphPrecision, batch: int) -> tuple[str, ...]:
        del planned, batch
        if graph.fp8_weights:
            return ("only GPUs of compute capability 8.9 and later have FP8",)
        return ("nothing of it can be FP8: an export with --fp8 refuses it",)


def _recorded(calibrated: Calibrated, method: str, policy: QdqPolicy) -> dict[str, Any]:
    """Plain data for the manifest, as INT8 has it, without trials."""
    return {**calibrated.to_dict(), "method": method, "policy": asdict(policy), "trials": []}


CONVERSION: Final[Conversion] = _Fp8()

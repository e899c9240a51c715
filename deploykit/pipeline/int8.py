"""From a verified FP32 graph to the INT8 graph that loses least on images it was not made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit import images, onnx_graph
from deploykit.backends.ort import OrtRunner
from deploykit.calibrators import METHODS
from deploykit.errors import ModelFileError, UnknownNameError
from deploykit.pipeline.calibrate import CalibrationOptions, calibrate_graph
from deploykit.pipeline.runners import open_judge
from deploykit.pipeline.samples import BATCHES
from deploykit.specs import Precision
from deploykit.stages.fp16 import measure_magnitudes
from deploykit.stages.int8 import (
    Int8Options,
    QuantizationErrors,
    measure_errors,
    plan_int8,
    quantize_to_int8,
)
from deploykit.stages.validate import kl_divergence, outputs_of, validate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.artifacts import OnnxArtifact
    from deploykit.pipeline.calibrate import Calibrated
    from deploykit.pipeline.journal import Journal
    from deploykit.pipeline.sources import Reference
    from deploykit.stages.calibrate import CalibrationData
    from deploykit.stages.int8 import Int8Result
    from deploykit.stages.validate import ValidationReport

    Batches = list[NDArray[np.float32]]

AUTO: Final = "auto"

COMPARED_PIXELS: Final = 32 * 224 * 224
"""Pixels of the held-out images that methods are compared on: 32 images of ImageNet's size.

Each method is simulated on all of them, which takes most of the time after calibration. Smaller
images cost less, so that more of them make the choice surer.
"""

CORRECTED_ON: Final = 32
"""Images that the shift of each channel is measured on; a mean needs no more."""


@dataclass(frozen=True)
class Int8Request:
    """Images, the method or "auto", what stays out of INT8, and whether biases are corrected."""

    calibration: CalibrationOptions
    method: str = AUTO
    options: Int8Options = field(default_factory=Int8Options)
    bias_correction: bool = True

    def __post_init__(self) -> None:
        known = (AUTO, *METHODS)
        if self.method not in known:
            raise UnknownNameError("calibration method", self.method, known, ", ".join(known))


@dataclass(frozen=True, slots=True)
class Trial:
    """One method on the held-out images: mean KL divergence in nats, and top-1 agreement."""

    method: str
    mean_kl: float
    agreement: float


@dataclass(frozen=True)
class Int8Outcome:
    """The INT8 graph, how it compares with FP32, and how its ranges were chosen.

    ``judged`` are the batches of held-out images that it was compared on, and the FP32 logits.
    """

    result: Int8Result
    judged: tuple[Batches, Batches]
    report: ValidationReport
    calibrated: Calibrated
    method: str
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            **self.calibrated.to_dict(),
            "method": self.method,
            "trials": [asdict(trial) for trial in self.trials],
        }


def convert_to_int8(
    reference: Reference, path: Path, request: Int8Request, journal: Journal
) -> Int8Outcome:
    """Calibrate, choose the method, correct the biases, write the graph to ``path``, validate it.

    Raises:
        DataError: the calibration images cannot be used.
        ModelFileError: the graph is quantized already, or nothing in it can be INT8.
        ValidationError: the result is not the model any more.
    """
    _require_opset(reference.artifact)
    plan = plan_int8(reference.artifact, request.options.policy)
    calibrated = calibrate_graph(
        reference.artifact,
        str(reference.model["name"]),
        reference.preprocessing,
        request.calibration,
        journal,
    )
    height, width = reference.preprocessing.crop
    affordable = max(1, COMPARED_PIXELS // (height * width))
    held_out = _load(calibrated.held_out, affordable, reference.artifact)
    with OrtRunner(reference.artifact.path) as runner:
        expected = outputs_of(runner, held_out)
    method, trials = _choose(reference, calibrated, request, (held_out, expected), path, journal)
    amax = calibrated.table.select(method)
    errors = QuantizationErrors()
    if request.bias_correction:
        with journal.stage("measure errors") as task:
            seen = _load(calibrated.seen, CORRECTED_ON, reference.artifact)
            errors = measure_errors(
                reference.artifact, plan, amax, seen, open_runner=OrtRunner, task=task
            )
    with journal.stage("convert to int8"):
        result = quantize_to_int8(
            reference.artifact,
            amax,
            path,
            options=request.options,
            magnitudes=_magnitudes(reference, request.options.rest, journal),
            errors=errors,
        )
    with journal.stage("validate int8"), open_judge(path) as runner:
        # Ranges hold for images like those of the calibration: others would judge the data.
        names = ("the int8 graph", "the fp32 graph")
        outputs = outputs_of(runner, held_out)
        report = validate(outputs, expected, precision=Precision.INT8, names=names)
        report.require_pass()
    return Int8Outcome(result, (held_out, expected), report, calibrated, method, trials)


def _require_opset(artifact: OnnxArtifact) -> None:
    if artifact.opset < onnx_graph.OLDEST_FOR_INT8:
        raise ModelFileError(
            f"this graph is of opset {artifact.opset} and cannot be raised automatically\n"
            f"INT8 needs {onnx_graph.OLDEST_FOR_INT8} or later: export the model again"
        )


def _choose(
    reference: Reference,
    calibrated: Calibrated,
    request: Int8Request,
    judged: tuple[Batches, Batches],
    path: Path,
    journal: Journal,
) -> tuple[str, tuple[Trial, ...]]:
    if request.method != AUTO:
        return request.method, ()
    # What is not INT8 stays FP32 in a trial: FP16 changes all of them alike, and takes longer.
    options = Int8Options(request.options.policy, Precision.FP32)
    trials = []
    with journal.stage("choose method") as task:
        for done, method in enumerate(METHODS):
            task.update(done, len(METHODS), method)
            amax = calibrated.table.select(method)
            quantize_to_int8(reference.artifact, amax, path, options=options)
            trials.append(_try(path, method, judged))
            path.unlink()
    best = min(trials, key=lambda trial: trial.mean_kl)
    return best.method, tuple(trials)


def _try(path: Path, method: str, judged: tuple[Batches, Batches]) -> Trial:
    batches, expected = judged
    with open_judge(path) as runner:
        outputs = outputs_of(runner, batches)
    got, wanted = np.concatenate(outputs), np.concatenate(expected)
    divergence = kl_divergence(wanted.astype(np.float64), got.astype(np.float64))
    agreement = (got.argmax(axis=1) == wanted.argmax(axis=1)).mean()
    return Trial(method, float(divergence.mean()), float(agreement))


def _magnitudes(reference: Reference, rest: Precision, journal: Journal) -> Mapping[str, float]:
    if rest is Precision.FP32:
        return {}
    with journal.progress.step("activations") as task:
        return measure_magnitudes(
            onnx_graph.read_model(reference.artifact.path),
            reference.batches,
            open_runner=OrtRunner,
            task=task,
        )


def _load(data: CalibrationData, count: int, artifact: OnnxArtifact) -> Batches:
    """The first ``count`` images: batches of the graph's own size, or of 1, 2, 5 and the rest."""
    fixed = artifact.inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else count
    chosen = list(data.indices)[:count]
    loaded = images.batches(data.source, data.preprocessing, size, chosen, on_corrupt="skip")
    if isinstance(fixed, int):
        return [inputs for inputs, _ in loaded if len(inputs) == fixed]
    return [
        part for inputs, _ in loaded for part in np.split(inputs, np.cumsum(BATCHES)) if len(part)
    ]

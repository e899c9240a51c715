"""FP32 graph to FP16 graph, after a look at the activations on real images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.comparison.validation import outputs_of, validate
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.graph import Extremes, convert_to_half, expose_magnitudes, plan_half, write_model
from deploykit.graph.node_precisions import planned_fp16
from deploykit.images.side_inputs import all_inputs
from deploykit.precision import Conversion, Converted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Journal, ProgressTask
    from deploykit.core.specs import Runner, SplitGraph
    from deploykit.graph import LoadedGraph
    from deploykit.graph.node_precisions import Planned
    from deploykit.precision import PlanSource
    from deploykit.precision.quantization.request import QuantizationRequest

HEADROOM: Final = 4.0
"""Images that were not seen may go higher: values beyond 65504 / 4 on the samples stay FP32."""


@dataclass(frozen=True)
class Fp16Result:
    """The FP16 artifact, how many nodes changed, and why each of the others did not."""

    artifact: OnnxArtifact
    halved: int
    kept_fp32: Mapping[str, str] = field(default_factory=dict)
    kept_heavy: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "halved": self.halved,
            "kept_fp32": dict(self.kept_fp32),
            "kept_heavy": self.kept_heavy,
        }


def convert_to_fp16(
    graph: LoadedGraph,
    images: Sequence[NDArray[np.float32]],
    path: Path,
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> Fp16Result:
    """Write the FP16 form of ``graph`` to ``path``; inputs and outputs stay FP32.

    Each of ``images`` (N, C, H, W) is run through the FP32 graph by ``open_runner``, with every
    intermediate value shown. A node stays FP32 where a value it reads or makes comes near 65504.

    Raises:
        ValidationError: the FP32 graph itself gives NaN or infinite activations.
        ModelFileError: the result is not a valid model.
    """
    model = graph.model
    amax = measure_magnitudes(model, images, open_runner=open_runner, task=task)
    plan = plan_half(model, amax, HEADROOM)
    halved = convert_to_half(model, plan)
    parents = (graph.artifact.sha256, *graph.artifact.parents)
    result = write_model(halved, path, Precision.FP16, parents)
    return Fp16Result(result, len(plan.halved), plan.kept, plan.kept_heavy(model))


def measure_magnitudes(
    model: ir.Model,
    images: Sequence[NDArray[np.float32]],
    *,
    open_runner: Callable[[SplitGraph], Runner],
    task: ProgressTask,
) -> dict[str, float]:
    """Largest absolute value of each input and of every FP32 value of ``model`` on ``images``.

    Raises:
        ValidationError: a value is NaN or infinite.
    """
    graph, extremes = expose_magnitudes(model)
    with open_runner(graph) as runner:
        return largest_magnitudes(runner, images, extremes, task)


def largest_magnitudes(
    runner: Runner,
    images: Sequence[NDArray[np.float32]],
    extremes: Mapping[str, Extremes],
    task: ProgressTask,
) -> dict[str, float]:
    """Largest absolute value of each input, and of each value by its ``extremes``, over all images.

    Raises:
        ValidationError: a value is NaN or infinite; the first such name in graph order is given.
    """
    feed = runner.inputs[0].name
    amax: dict[str, float] = {}
    single = _one_by_one(images, runner)
    for done, batch in enumerate(single, start=1):
        found = {name: _extremes(values) for name, values in all_inputs(runner, batch).items()}
        outputs = runner.run({feed: batch})
        for name, named in extremes.items():
            found[name] = [float(outputs[output]) for output in named]
        for name, numbers in found.items():
            amax[name] = max(amax.get(name, 0.0), _magnitude(name, numbers))
        task.update(done, len(single), "activations")
    return amax


def _one_by_one(
    images: Sequence[NDArray[np.float32]], runner: Runner
) -> Sequence[NDArray[np.float32]]:
    # The activations of a single image take the least memory.
    if runner.inputs[0].fixed_batch is not None:
        return images
    return [batch[at : at + 1] for batch in images for at in range(len(batch))]


def _extremes(values: NDArray[np.generic]) -> list[float]:
    # max and min of numpy propagate NaN.
    return [float(values.max()), float(values.min())] if values.size else [0.0]


def _magnitude(name: str, extremes: Sequence[float]) -> float:
    if not np.isfinite(extremes).all():
        raise ValidationError(
            f"{name} is NaN or infinite already in FP32\n"
            "check the weights and that the images are preprocessed as in training"
        )
    return max(map(abs, extremes))


class _Fp16(Conversion):
    """Measures magnitudes, then converts what stays within FP16."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,  # noqa: ARG002
        journal: Journal,
    ) -> Converted:
        with journal.stage("convert to fp16") as task:
            result = convert_to_fp16(
                reference.graph,
                reference.batches,
                path,
                open_runner=reference.runners.measuring,
                task=task,
            )
        with journal.stage("validate fp16"), reference.runners.open(path) as runner:
            outputs = outputs_of(runner, reference.batches)
            names = ("the fp16 graph", reference.made_by)
            report = validate(
                outputs,
                reference.outputs,
                precision=Precision.FP16,
                names=names,
                head=reference.head,
            )
            report.require_pass()
        conversion = {**reference.conversion, **result.to_dict()}
        compared = reference.batches, reference.outputs
        return Converted(result.artifact, (reference.report, report), conversion, compared)

    def plan(self, source: PlanSource) -> Planned:
        return planned_fp16(source.model, source.magnitudes, HEADROOM)


CONVERSION: Final[Conversion] = _Fp16()

"""From a verified FP32 graph to the INT8 graph that loses least on images it was not made from."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._registry import graph_judge
from deploykit.bundle.manifest import CALIBRATION
from deploykit.comparison.converted import FP32_GRAPH, open_rounding, require_valid
from deploykit.comparison.validation import outputs_of
from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.graph import OLDEST_FOR_INT8, LoadedGraph, describe_layers
from deploykit.graph.node_precisions import planned_int8
from deploykit.graph.qdq import QdqPolicy, linear_groups
from deploykit.graph.shapes import fix_image_size
from deploykit.precision import Conversion, Converted
from deploykit.precision.calibration.graphs import calibrate_graph
from deploykit.precision.finetuning.finetune import finetune
from deploykit.precision.fp16 import HEADROOM, halve, measure_magnitudes, measure_unfit
from deploykit.precision.quantization.choice import (
    AUTO,
    LAYERS_SHARE,
    Choice,
    TrialSetup,
    choose,
)
from deploykit.precision.quantization.conversion import (
    QuantizationErrors,
    measure_errors,
    quantize_by_plan,
    to_bf16,
)
from deploykit.precision.quantization.equalising import EqualisationImages, equalise_channels
from deploykit.precision.quantization.kinds import INT8
from deploykit.precision.quantization.noise import affordable_probes, fp32_answers
from deploykit.precision.quantization.request import require_request
from deploykit.precision.quantization.sampling import first_images, load_images
from deploykit.precision.quantization.weight_rounding import round_weights, with_rounded_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Journal, ProgressTask
    from deploykit.graph import HalfPlan
    from deploykit.graph.node_precisions import GraphPrecision, Planned
    from deploykit.precision import PlanSource
    from deploykit.precision.calibration.graphs import Calibrated
    from deploykit.precision.calibration.table import CalibrationTable
    from deploykit.precision.quantization.choice import Contender
    from deploykit.precision.quantization.conversion import QuantizedResult
    from deploykit.precision.quantization.kinds import QuantizedKind
    from deploykit.precision.quantization.request import QuantizationRequest

    Halve = Callable[[ir.Model], tuple[ir.Model, HalfPlan]]
    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]


COMPARED_PIXELS: Final = 16 * 224 * 224
"""Pixels of the held-out images that the result is compared on: 16 images of ImageNet's size.

Smaller images cost less, so there are more of them; the same holds for the other numbers.
"""

TRIAL_PIXELS: Final = 8 * 224 * 224
"""Of the images of each trial. A thousand logits of eight images tell noise apart by 0.1 dB."""

BIAS_PIXELS: Final = 16 * 224 * 224
"""Of the images that biases are corrected on: each channel's mean is over all places of these."""

ROUNDING_PIXELS: Final = 32 * 224 * 224
"""Of the images whose tokens say how weights are rounded together: thousands for each layer."""


def multiply_adds_of(graph: LoadedGraph, image: tuple[int, int]) -> dict[str, int]:
    """Of each convolution and matrix product for one image; empty where shapes cannot be told.

    ``image`` is the height and width, for a graph that leaves them open.
    """
    try:
        model = graph.model.clone()
        fix_image_size(model, image)
        summary = describe_layers(model, graph.artifact.path.name, 1, graph_judge().run_once)
    except (ModelFileError, UsageError):
        return {}
    images_at_once = graph.artifact.inputs[0].fixed_batch or 1
    rows = {layer.name: layer.multiply_adds // images_at_once for layer in summary.layers}
    return {name: count for name, count in rows.items() if count}


@dataclass(frozen=True)
class QuantizedOutcome:
    """The graph of eight bits, how it compares with FP32, and how its ranges were chosen.

    ``compared`` are the batches of held-out images that it was compared on, and the FP32 outputs.
    """

    result: QuantizedResult
    compared: tuple[Batches, Batches]
    report: ValidationReport
    calibrated: Calibrated
    choice: Choice
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Of equalised values, by name; see `equalising.Equalised`."""
    finetuned: Mapping[str, Any] | None = None
    """What fine-tuning came to, where it was asked; see `finetune.Finetuned`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            **self.calibrated.to_dict(),
            "method": self.choice.method,
            "policy": asdict(self.choice.policy),
            "trials": [asdict(trial) for trial in self.choice.trials],
            "equalised": dict(self.strengths),
            **({} if self.finetuned is None else {"finetuned": dict(self.finetuned)}),
        }


def convert_by_trials(
    kind: QuantizedKind,
    reference: Reference,
    path: Path,
    request: QuantizationRequest,
    journal: Journal,
) -> QuantizedOutcome:
    """Calibrate, make the choices on held-out images, write the graph to ``path``, validate it.

    Raises:
        DataError: the calibration images cannot be used.
        ModelFileError: the graph is quantized already, or nothing in it can be of eight bits.
        ValidationError: the result is not the model any more.
    """
    name = str(reference.model["name"])
    # Refuses what has nothing to quantize, before calibrating.
    kind.plan(reference.graph, request.policy, name)
    calibrated = calibrate_graph(
        reference.graph,
        name,
        reference.preprocessing,
        request.calibration,
        journal,
        reference.runners,
        tensors=kind.calibrated(reference.graph.model),
    )
    reference = replace(reference, graph=kind.raised(reference.graph, request.rest))
    held_out = load_images(
        calibrated.data, calibrated.data.held_out, reference.artifact, COMPARED_PIXELS
    )
    answers, expected = fp32_answers(reference, held_out)
    plain = QuantizedSide(kind, reference, calibrated)
    with tempfile.TemporaryDirectory() as folder:
        spare = Path(folder) / "equalised.onnx"
        choice, used = choose_for_side(plain, (held_out, answers), request, spare, journal)
        ranges, tuned = used.calibrated.table.select(choice.method), None
        rounded = len(choice.errors.weights)  # what fine-tuning moves has a record of its own
        if request.finetune:
            tuned = finetune(used, choice, request.calibration.seed, journal)
            choice, ranges = replace(choice, errors=tuned.errors), dict(tuned.amax)
        result = _converted(used, choice, ranges, path, request, journal)
        result = replace(result, rounded=rounded)
    # Ranges hold for images like those of the calibration: others would judge the data.
    report = require_valid(
        reference, result.graph, (held_out, expected), journal, made_by=FP32_GRAPH
    )
    journal.notes += _beyond(report, used.calibrated)
    journal.notes += _other_sizes(result.graph, reference)
    return QuantizedOutcome(
        result,
        (held_out, expected),
        report,
        used.calibrated,
        choice,
        used.strengths,
        None if tuned is None else tuned.record,
    )


def choose_for_side(
    plain: QuantizedSide,
    compared: tuple[Batches, Sequence[Answers]],
    request: QuantizationRequest,
    spare: Path,
    journal: Journal,
) -> tuple[Choice, QuantizedSide]:
    """What the trials come to, and which of the graphs they chose; it may be written to ``spare``.

    ``compared`` are held-out batches and their FP32 answers.

    Raises:
        DataError: an image gives NaN.
    """
    held_out, answers = compared
    expected = [next(iter(one.values())) for one in answers]
    equal = equalise_side(plain, (held_out, expected), request, spare, journal)
    with journal.stage("choose") as task:
        setup = _contest(plain, compared, request, task)
        sides = [plain, *_equalised(equal)]
        contenders = [_contender(setup, side, task) for side in sides[1:]]
        measure = partial(measure_side, plain, task)
        choice = choose(setup, request.int8_choices, request.policy, measure, task, contenders)
    return choice, sides[choice.side]


def _equalised(side: QuantizedSide | None) -> list[QuantizedSide]:
    """The equalised side, where there is one, and the same with room in its ranges."""
    if side is None or side.roomy is None:
        return [] if side is None else [side]
    return [side, replace(side, calibrated=replace(side.calibrated, table=side.roomy))]


def _contender(setup: TrialSetup, side: QuantizedSide, task: ProgressTask) -> Contender:
    """What trials of another graph than that of ``setup`` are made from."""
    rounding = None if setup.round_weights is None else partial(_round, side, task)
    model, table = side.reference.graph.model, side.calibrated.table
    made = replace(setup, model=model, table=table, round_weights=rounding)
    return made, partial(measure_side, side, task)


def _converted(
    used: QuantizedSide,
    choice: Choice,
    ranges: Mapping[str, float],
    path: Path,
    request: QuantizationRequest,
    journal: Journal,
) -> QuantizedResult:
    """The graph of eight bits at ``path``."""
    graph, kind = used.reference.graph, used.kind
    with journal.stage(f"convert to {kind.precision}") as task:
        plan = kind.plan(graph, choice.policy)
        return quantize_by_plan(
            graph,
            plan,
            ranges,
            path,
            kind.precision,
            halve=halving(used.reference, plan.layers, request.rest, task),
            errors=choice.errors,
        )


def _beyond(report: ValidationReport, calibrated: Calibrated) -> list[str]:
    """A sentence that names held-out images beyond the limits, of which a few may be."""
    beyond, data = report.images_beyond, calibrated.data
    if not beyond:
        return []
    count = sum(figures.batch for figures in report.batches)
    # With images left out as unreadable, places are not those of the list any more.
    known = not calibrated.table.skipped and len(data.held_out) >= count
    named = "; ".join(
        f"{data.name_of(data.held_out[place]) if known else f'image {place}'}: {what}"
        for place, what in beyond.items()
    )
    share = 1 - report.precision.facts.limits.share_within
    return [f"{len(beyond)} of {count} images beyond the limits, {share:.0%} may be: {named}"]


@dataclass(frozen=True)
class QuantizedSide:
    """A graph that one of eight bits may be made of, its ranges, and what was equalised in it.

    ``roomy`` are other ranges for it, see `equalising.with_room`.
    """

    kind: QuantizedKind
    reference: Reference
    calibrated: Calibrated
    strengths: Mapping[str, float] = field(default_factory=dict)
    roomy: CalibrationTable | None = None


def equalise_side(
    plain: QuantizedSide,
    held_out: tuple[Batches, Batches],
    request: QuantizationRequest,
    path: Path,
    journal: Journal,
) -> QuantizedSide | None:
    """The graph with equalised channels, where it has layers that read them and it is wanted.

    Raises:
        DataError: an image gives NaN.
    """
    reference, data = plain.reference, plain.calibrated.data
    plan = plain.kind.plan(reference.graph, request.policy)
    if request.int8_choices.equalisation == "off" or not linear_groups(reference.graph.model, plan):
        return None
    with journal.stage("equalise") as task:
        seen = load_images(data, data.indices, reference.artifact, plain.kind.equalisation_pixels)
        given = EqualisationImages(seen, held_out, data, plain.calibrated.table)
        found = equalise_channels(reference, plan, given, path, task)
    journal.notes += filter(None, [found.left_out])
    if found.graph is None or found.table is None:
        return None
    return replace(
        plain,
        reference=replace(reference, graph=found.graph),
        calibrated=replace(plain.calibrated, table=found.table),
        strengths=found.strengths,
        roomy=found.roomy,
    )


def _contest(
    side: QuantizedSide,
    compared: tuple[Batches, Sequence[Answers]],
    request: QuantizationRequest,
    task: ProgressTask,
) -> TrialSetup:
    reference, calibrated = side.reference, side.calibrated
    graph, artifact = reference.graph, reference.artifact
    height, width = calibrated.data.preprocessing.crop
    fewer = first_images(*compared, TRIAL_PIXELS // (height * width), artifact)
    wish = request.int8_choices.sensitive_layers
    costs = {} if wish == "int8" else multiply_adds_of(graph, (height, width))
    count = affordable_probes(costs, insist=wish == "keep")
    probed = first_images(*compared, count, artifact) if count else None
    setup = TrialSetup(
        graph.model, calibrated.table, *fewer, reference.runners, probed, costs, reference.head
    )
    is_free = request.int8_choices.weight_rounding == AUTO
    wants_rounding = is_free and side.kind.rounds_together
    return replace(
        setup,
        plan=side.kind.place,
        methods=side.kind.methods,
        round_weights=partial(_round, side, task) if wants_rounding else None,
    )


def _other_sizes(graph: LoadedGraph, reference: Reference) -> list[str]:
    """How open images do at the sizes that no range was measured at: for the user to judge."""
    crop = reference.preprocessing.crop
    pairs = zip(reference.batches, reference.outputs, strict=True)
    others = [(batch, expected) for batch, expected in pairs if batch.shape[2:] != crop]
    if not others:
        return []
    with open_rounding(reference.runners, graph) as runner:
        found = [
            reference.head.compare(outputs_of(runner, [batch])[0], expected)
            for batch, expected in others
        ]
    figures = ", ".join(
        f"{batch.shape[2]} x {batch.shape[3]}: {one.min_cosine:.4f}"
        for one, (batch, _) in zip(found, others, strict=True)
    )
    seen = f"INT8 ranges are of images of {crop[0]} x {crop[1]}"
    return [f"{seen}; least cosine with {reference.made_by} at other sizes: {figures}"]


def measure_side(
    side: QuantizedSide, task: ProgressTask, method: str, policy: QdqPolicy
) -> QuantizationErrors:
    """What rounding takes from each channel, with the ranges of a method."""
    reference, calibrated = side.reference, side.calibrated
    graph, open_runner = reference.graph, reference.runners.measuring
    seen = load_images(calibrated.data, calibrated.data.indices, graph.artifact, BIAS_PIXELS)
    amax = calibrated.table.select(method)
    plan = side.kind.plan(graph, policy)
    return measure_errors(graph, plan, amax, seen, open_runner=open_runner, task=task)


def _round(
    side: QuantizedSide,
    task: ProgressTask,
    method: str,
    policy: QdqPolicy,
    errors: QuantizationErrors,
) -> QuantizationErrors:
    reference, data = side.reference, side.calibrated.data
    graph = reference.graph
    found = round_weights(
        graph,
        side.kind.plan(graph, policy),
        side.calibrated.table.select(method),
        load_images(data, data.indices, graph.artifact, ROUNDING_PIXELS),
        open_runner=reference.runners.open,
        task=task,
    )
    return with_rounded_weights(errors, found)


def require_opset(artifact: OnnxArtifact) -> None:
    """Refuse a graph that Q/DQ pairs of this kind cannot stand in.

    Raises:
        ModelFileError: its opset is too old, and could not be raised.
    """
    if artifact.opset < OLDEST_FOR_INT8:
        raise ModelFileError(
            f"this graph is of opset {artifact.opset} and cannot be raised automatically\n"
            f"INT8 needs {OLDEST_FOR_INT8} or later: export the model again"
        )


def halving(
    reference: Reference, quantized: Set[str], rest: Precision, task: ProgressTask
) -> Halve | None:
    """What narrows the nodes beside those of eight bits; ``None`` where they stay FP32."""
    if rest.facts.is_source:
        return None
    if rest is Precision.BF16:
        return to_bf16
    model, images, runners = reference.graph.model, reference.batches, reference.runners
    measured = measure_magnitudes(model, images, open_runner=runners.measuring, task=task)
    unfit = measure_unfit(model, measured.amax, images, open_runner=runners.measuring, task=task)
    # INT8 products are added up in whole numbers, FP8 ones in FP32.
    unfit, open_runner = unfit.without(quantized), runners.measuring_unoptimised

    def made(graph: ir.Model) -> tuple[ir.Model, HalfPlan]:
        found = halve(graph, measured, unfit, images, open_runner=open_runner, task=task)
        return found.model, found.plan

    return made


def converted(
    kind: QuantizedKind,
    reference: Reference,
    path: Path,
    request: QuantizationRequest | None,
    journal: Journal,
) -> Converted:
    """The conversion of `Conversion.convert`, for either precision of eight bits."""
    given = require_request(kind.precision, request)
    outcome = convert_by_trials(kind, reference, path, given, journal)
    outcome.calibrated.table.save(path.with_name(CALIBRATION))
    conversion = {
        **reference.conversion,
        **outcome.result.to_dict(),
        "kept_heavy": outcome.result.kept_heavy,
    }
    return Converted(
        outcome.result.artifact,
        (reference.report, outcome.report),
        conversion,
        outcome.compared,
        outcome.to_dict(),
        graph=outcome.result.graph,
    )


class _Int8(Conversion):
    """Calibrates, makes choices on held-out images, and quantizes."""

    def convert(
        self,
        reference: Reference,
        path: Path,
        request: QuantizationRequest | None,
        journal: Journal,
    ) -> Converted:
        require_opset(reference.artifact)
        return converted(INT8, reference, path, request, journal)

    def plan(self, source: PlanSource) -> Planned:
        require_opset(source.artifact)
        policy = QdqPolicy(exclude=source.exclude)
        return planned_int8(source.model, source.magnitudes, HEADROOM, policy, source.unfit)

    def notes(self, planned: Planned, graph: GraphPrecision, batch: int) -> tuple[str, ...]:
        return (*_open_choices(planned, graph, batch), *_refusals(graph))


def _open_choices(planned: Planned, graph: GraphPrecision, batch: int) -> list[str]:
    """What an export decides by trials on images."""
    counts = Counter(planned.known.trials.values())
    found = [f"{counts[what]} {what}{'s' * (counts[what] > 1)}" for what in counts]
    costs = {node.name: node.multiply_adds // batch for node in graph.nodes if node.multiply_adds}
    if graph.multiply_adds_in[Precision.INT8] and affordable_probes(costs, insist=False):
        found.append(f"sensitive layers of {LAYERS_SHARE:.1%} of the multiply-adds at most")
    if not found:
        return []
    return [f"which of these stay INT8, an export decides by trials on images: {', '.join(found)}"]


def _refusals(graph: GraphPrecision) -> list[str]:
    if graph.int8_weights:
        return []
    return ["nothing of it can be INT8: an export with --int8 refuses it"]


CONVERSION: Final[Conversion] = _Int8()

"""Fine-tuning of a quantized graph after its choices are made: fit, judge, keep or leave it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.environment import require
from deploykit.graph import qdq
from deploykit.heads.multiclass import MULTICLASS
from deploykit.precision.finetuning.judging import judged
from deploykit.precision.finetuning.tuning_images import load_tuning_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from deploykit.core.progress import Journal, ProgressTask
    from deploykit.core.specs import Runner
    from deploykit.graph.qdq import QdqPlan
    from deploykit.precision.finetuning.judging import TuningVerdict
    from deploykit.precision.finetuning.network import TorchNetwork
    from deploykit.precision.finetuning.tuning_images import TuningImages
    from deploykit.precision.int8 import QuantizedSide
    from deploykit.precision.quantization.choice import Choice
    from deploykit.precision.quantization.conversion import QuantizationErrors

    Floats = NDArray[np.float32]


BLOCK_STEPS: Final = 100
DISTIL_STEPS: Final = 300
"""Batches that each block, and then the whole network, is fitted to."""

BATCH_PIXELS: Final = 8 * 224 * 224
"""Of the images of a batch; its activations are kept for the gradients."""

LARGEST_BATCH: Final = 32

STORED_BYTES: Final = 512 * 2**20
"""Of the inputs and outputs of a block, for all images that it is fitted to."""

STORED_VALUES: Final = 4
"""Of each image: input and output of a block, in FP32 and in eight bits."""

SAME: Final = 1e-3
"""Largest error of the network in torch, of its largest output: rounding gives 1e-5."""


@dataclass(frozen=True)
class Finetuned:
    """What the conversion takes in place of the choice's own; as it was where it did not pay.

    ``record`` is plain data for the manifest.
    """

    errors: QuantizationErrors
    amax: Mapping[str, float]
    record: dict[str, Any] = field(default_factory=dict)


def finetune(side: QuantizedSide, choice: Choice, seed: int, journal: Journal) -> Finetuned:
    """Fit what ``choice`` comes to, and keep it only if other images come nearer to FP32.

    Raises:
        DataError: too few different images.
        MissingDependencyError: torch is not installed.
    """
    require("torch")
    amax = side.calibrated.table.select(choice.method)
    plan = side.kind.plan(side.reference.graph, choice.policy)
    images = load_tuning_images(side.calibrated.data, side.reference.artifact)
    unchanged = Finetuned(choice.errors, amax)
    with journal.stage("fine-tune") as task:
        found = _fitted(side, plan, unchanged, images, seed, task)
        if isinstance(found, str):
            journal.notes.append(f"not fine-tuned: {found}")
            return replace(unchanged, record={"kept": False, "reason": found})
        verdict = _judged(side, plan, unchanged, found, images)
    record = {"kept": verdict.is_kept, **found.record, "judged": verdict.to_dict()}
    if images.repeated:
        journal.notes.append(f"fine-tuning left out {images.repeated} images that are there twice")
    journal.notes.append(_sentence(record))
    return replace(found if verdict.is_kept else unchanged, record=record)


def _fitted(
    side: QuantizedSide,
    plan: QdqPlan,
    given: Finetuned,
    images: TuningImages,
    seed: int,
    task: ProgressTask,
) -> Finetuned | str:
    """The fitted state, or why there is none."""
    import torch

    from deploykit.precision.finetuning.distillation import distil, logits_loss, value_loss
    from deploykit.precision.finetuning.network import TorchNetwork
    from deploykit.precision.finetuning.operators import UnknownOperatorError
    from deploykit.precision.finetuning.reconstruction import TuningFit, reconstruct
    from deploykit.precision.finetuning.state import TuningState

    reference, model = side.reference, side.reference.graph.model
    network = TorchNetwork(model, plan)
    batch = _batch(images, reference.artifact.inputs[0].fixed_batch)
    try:
        difference = _difference(side, network, images.fitted[:batch])
    except UnknownOperatorError as error:
        return str(error)
    if not difference <= SAME:
        return f"torch computes another output than onnxruntime, by {difference:.1e} of the largest"
    state = TuningState.of(model, plan, given.amax, given.errors.shifts, given.errors.weights)
    both = torch.from_numpy(images.fitted), torch.from_numpy(images.stopping)
    fewer = _fewer(network, both, batch)
    blocks_fit = TuningFit(BLOCK_STEPS, batch, seed)
    rebuilt, blocks = reconstruct(network, state, fewer, blocks_fit, task)
    is_logits = reference.head.name == MULTICLASS.name and reference.head.activation == "none"
    loss = logits_loss if is_logits else value_loss
    fit = TuningFit(DISTIL_STEPS, batch, seed)
    tuned, distilled = distil(network, [state, rebuilt], both, fit, loss, task)
    errors = replace(
        given.errors,
        shifts=tuned.layer_shifts(given.errors.shifts),
        weights=tuned.layer_weights(model, given.errors.weights),
    )
    record = {
        "images": {
            "fitted": len(images.fitted),
            "stopping": len(images.stopping),
            "judging": len(images.judging),
        },
        "blocks": len(blocks),
        "blocks_kept": sum(each.is_kept for each in blocks),
        "block_steps": BLOCK_STEPS,
        "block_errors": [asdict(each) for each in blocks],
        "distillation": asdict(distilled),
    }
    return Finetuned(errors, tuned.amax(given.amax), record)


def _batch(images: TuningImages, fixed: int | None) -> int:
    if fixed is not None:
        return fixed
    height, width = images.fitted.shape[2:]
    most: int = BATCH_PIXELS // (height * width)
    return max(1, min(LARGEST_BATCH, most, len(images.fitted)))


def _difference(side: QuantizedSide, network: TorchNetwork, some: Floats) -> float:
    """Largest difference of the FP32 answers of torch and onnxruntime, of the largest of them."""
    import torch

    from deploykit.precision.finetuning.distillation import answers

    with side.reference.runners.open(side.reference.graph.split()) as runner:
        exact = runner.run({runner.inputs[0].name: some})[network.output]
    found = answers(network, torch.from_numpy(some), None, len(some)).numpy()
    if found.shape != exact.shape:
        return float("inf")
    return float(np.abs(found - exact).max() / max(1e-12, float(np.abs(exact).max())))


def _fewer(
    network: TorchNetwork, images: tuple[Tensor, Tensor], batch: int
) -> tuple[Tensor, Tensor]:
    """As many of both as have room with the values between two blocks; whole batches."""
    largest = network.largest_between(images[0][:batch])
    most = max(batch, STORED_BYTES // (STORED_VALUES * 4 * largest))
    share = min(1.0, most / (len(images[0]) + len(images[1])))
    if share == 1:
        return images
    first, second = (each[: max(batch, int(len(each) * share) // batch * batch)] for each in images)
    return first, second


def _judged(
    side: QuantizedSide, plan: QdqPlan, before: Finetuned, after: Finetuned, images: TuningImages
) -> TuningVerdict:
    """Both graphs and FP32 in onnxruntime, on images that nothing was fitted to."""
    reference = side.reference
    size = _batch(images, reference.artifact.inputs[0].fixed_batch)
    batches = np.split(images.judging, range(size, len(images.judging), size))
    with reference.runners.open(reference.graph.split()) as runner:
        exact = _answers(runner, batches)
    found = []
    for each in (before, after):
        errors = each.errors
        content = qdq.trial_graph(
            reference.graph.model, plan, each.amax, errors.shifts, errors.weights
        )
        with reference.runners.open_unoptimised(content) as runner:
            found.append(_answers(runner, batches))
    return judged(reference.head, exact, *found)


def _answers(runner: Runner, batches: Sequence[Floats]) -> Floats:
    feed, first = runner.inputs[0].name, runner.outputs[0].name
    found = [runner.run({feed: batch})[first] for batch in batches]
    answers: Floats = np.concatenate(found).astype(np.float32)
    return answers


def _sentence(record: Mapping[str, Any]) -> str:
    """What the user is told."""
    verdict = record["judged"]
    own, distance = verdict["own"], verdict["distance"]
    figures = (
        f"{own['measure']} that change {own['before']:.1%} -> {own['after']:.1%}, "
        f"{distance['measure']} {distance['before']:.2e} -> {distance['after']:.2e} "
        f"on {verdict['images']} other images"
    )
    blocks = f"{record['blocks_kept']} of {record['blocks']} blocks"
    steps = f"{record['distillation']['best_step']} steps of distillation"
    if record["kept"]:
        return f"fine-tuned, {blocks} and {steps}: {figures}"
    return f"fine-tuning did not pay, the graph stays as it was: {figures}"

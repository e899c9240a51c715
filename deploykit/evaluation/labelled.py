"""Evaluation on labelled images, alone and image by image against another model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError, ValidationError
from deploykit.heads.multiclass import MULTICLASS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from deploykit.core.progress import Progress
    from deploykit.core.specs import Preprocessing, Runner
    from deploykit.heads import Evaluation, Head
    from deploykit.heads._head import Tally
    from deploykit.images import ImageSet


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model and what happens to an image before it looks at it.

    ``head`` says what its outputs mean, where that is its own.
    """

    runner: Runner
    preprocessing: Preprocessing
    head: Head | None = None


def evaluate(
    subject: EvaluatedModel,
    source: ImageSet,
    *,
    batch: int,
    other: EvaluatedModel | None,
    progress: Progress,
    head: Head = MULTICLASS,
) -> Evaluation:
    """Run every image through the model, and through ``other`` where there is one.

    ``head`` says what the outputs of both mean, unless a model has its own. Each has its own
    preprocessing; where it is the same, an image is prepared once. Where a model's batch is fixed,
    its last batch is filled up and the filling not counted. An image that cannot be read ends the
    evaluation, once it is known how many there are: a share of fewer images than were given would
    be another number.

    Raises:
        DataError: no labels, a label that a model has no output for, models that tell different
            numbers of classes apart, or an unreadable image.
        UsageError: labels say nothing about outputs of this head.
        ValidationError: outputs that are not numbers.
    """
    subjects = [subject] if other is None else [subject, other]
    tallies = tallies_of(subjects, source, head)
    with progress.step("evaluate") as task:
        for indices, prepared in _prepared(subjects, source, batch_size(subjects, batch)):
            found = [
                first_outputs(one.runner, inputs)
                for one, inputs in zip(subjects, prepared, strict=True)
            ]
            count(tallies, indices, found, head.noun)
            task.update(indices[-1] + 1, len(source), "images")
    return head.evaluation(tallies[0], None if other is None else tallies[1])


def tallies_of(subjects: Sequence[EvaluatedModel], source: ImageSet, head: Head) -> list[Tally]:
    """A tally for each model over all images of ``source``.

    Raises:
        DataError: there are no labels.
        UsageError: labels say nothing about outputs of this head.
    """
    labels = require_labels(source)
    heads = [one.head for one in subjects]
    own = [head if each is None or each.name != head.name else each for each in heads]
    return [each.tally(labels) for each in own]


def count(
    tallies: Sequence[Tally],
    indices: Sequence[int],
    found: Sequence[NDArray[np.float32]],
    noun: str,
) -> None:
    """Count the first outputs (N, K) of each model for the images at ``indices``.

    Raises:
        DataError: a label that a model has no output for, or models that tell different numbers of
            classes apart.
        ValidationError: outputs that are not numbers.
    """
    for tally, outputs in zip(tallies, found, strict=True):
        _require_numbers(outputs, indices, noun)
        tally.add(indices, outputs)
    for first, second in pairwise(tallies):
        first.require_same(second)


def _prepared(
    subjects: Sequence[EvaluatedModel], source: ImageSet, size: int
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    """The indices of each batch with the inputs (N, C, H, W) of each model."""
    kinds = list(dict.fromkeys(one.preprocessing for one in subjects))
    streams = [images.batches(source, kind, size) for kind in kinds]
    try:
        for together in zip(*streams, strict=True):
            by_kind = {kind: inputs for kind, (inputs, _) in zip(kinds, together, strict=True)}
            yield together[0][1], [by_kind[one.preprocessing] for one in subjects]
    except DataError as error:
        raise _of_all_images(error, source, kinds) from error


def _of_all_images(error: DataError, source: ImageSet, kinds: Sequence[Preprocessing]) -> DataError:
    """``error`` of the first image, or one that says of all images how many cannot be used."""
    for kind in kinds:
        found = images.Unusable.of(source, kind, range(len(source)))
        if len(found.errors) > 1:
            return found.error(source, "every image counts: repair or remove them")
    return error


def require_labels(source: ImageSet) -> NDArray[np.int64]:
    """The class of each image (N,).

    Raises:
        DataError: there are no labels.
    """
    if source.labels is None:
        raise DataError(
            "these images have no labels\n"
            "expected a folder per class, a folder and a --labels-file, a CSV list with labels,\n"
            "or an .npz with `labels`"
        )
    return source.labels


def batch_size(subjects: Sequence[EvaluatedModel], wanted: int) -> int:
    """At least the largest fixed batch, so that no model computes more filling than images."""
    return max(wanted, *(one.runner.inputs[0].fixed_batch or 1 for one in subjects))


def first_outputs(runner: Runner, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """First outputs (N, K) of inputs (N, C, H, W), in pieces where the runner's batch is fixed."""
    size = runner.inputs[0].fixed_batch or len(inputs)
    pieces = [_run(runner, inputs[at : at + size], size) for at in range(0, len(inputs), size)]
    return np.concatenate(pieces)


def _require_numbers(outputs: NDArray[np.float32], indices: Sequence[int], noun: str) -> None:
    wrong = np.flatnonzero(np.isnan(outputs).any(axis=1))
    if wrong.size:
        raise ValidationError(
            f"the {noun} of image {indices[wrong[0]]} and {wrong.size - 1} more are not numbers\n"
            "values beyond the range of FP16 are the usual reason: does the FP32 model do it too?"
        )


def _run(runner: Runner, inputs: NDArray[Any], size: int) -> NDArray[np.float32]:
    fed = np.resize(inputs, (size, *inputs.shape[1:]))
    outputs = runner.run({runner.inputs[0].name: fed})[runner.outputs[0].name]
    return outputs.reshape(len(outputs), -1)[: len(inputs)].astype(np.float32)

"""Evaluation on labelled images, alone and image by image against another model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError, ValidationError
from deploykit.evaluation.accuracy import (
    Answers,
    PairedComparison,
    compare_answers,
    label_ranks,
    wilson_interval,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from deploykit.core.progress import Progress
    from deploykit.core.specs import Preprocessing, Runner
    from deploykit.evaluation.accuracy import Interval
    from deploykit.images import ImageSet

TOP: Final = 5


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model and what happens to an image before it looks at it."""

    runner: Runner
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers, from 0 to 1, with the 95 % intervals of Wilson (1927).

    The intervals are for images drawn at random. ``top5`` is ``None`` for models of five classes
    or fewer, where it says nothing.
    """

    top1: float
    top5: float | None
    top1_interval: Interval
    top5_interval: Interval | None

    @classmethod
    def of(cls, answers: Answers, classes: int) -> Accuracy:
        """The shares of a model that tells so many ``classes`` apart."""
        count, hits1, hits5 = len(answers.labels), answers.hits(1), answers.hits(TOP)
        has_top5 = classes > TOP
        return cls(
            top1=hits1 / count,
            top5=hits5 / count if has_top5 else None,
            top1_interval=wilson_interval(hits1, count),
            top5_interval=wilson_interval(hits5, count) if has_top5 else None,
        )


@dataclass(frozen=True)
class Evaluation:
    """What came of one pass over the images; ``other`` and ``comparison`` are of the other model.

    ``answers`` are the model's own, for tables by class.
    """

    count: int
    accuracy: Accuracy
    other: Accuracy | None
    comparison: PairedComparison | None
    answers: Answers = field(compare=False, repr=False)

    @property
    def agreement(self) -> float | None:
        """Share of the images whose top-1 is the other model's, right or wrong."""
        return None if self.comparison is None else self.comparison.agreeing / self.count

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        compared = self.comparison
        return {
            "count": self.count,
            **asdict(self.accuracy),
            "agreement": self.agreement,
            "agreement_interval": compared and wilson_interval(compared.agreeing, self.count),
            "comparison": compared and self._comparison(compared),
        }

    def _comparison(self, compared: PairedComparison) -> dict[str, Any]:
        better = {"first": "this", "second": "other", None: None}
        return {
            "both_right": compared.both_right,
            "only_this_right": compared.only_first,
            "only_other_right": compared.only_second,
            "both_wrong": compared.both_wrong,
            "p_value": compared.p_value,
            "better": better[compared.better],
            "other": self.other and asdict(self.other),
        }


def evaluate(
    subject: EvaluatedModel,
    source: ImageSet,
    *,
    batch: int,
    other: EvaluatedModel | None,
    progress: Progress,
) -> Evaluation:
    """Run every image through the model, and through ``other`` where there is one.

    Each has its own preprocessing; where it is the same, an image is prepared once. Where a model's
    batch is fixed, its last batch is filled up and the filling not counted. An image that cannot be
    read ends the evaluation: a share of fewer images than were given would be another number.

    Raises:
        DataError: no labels, a label that a model has no logit for, models that tell different
            numbers of classes apart, or an unreadable image.
        ValidationError: logits that are not numbers.
    """
    labels = _require_labels(source)
    subjects = [subject] if other is None else [subject, other]
    tallies = [_Tally(labels) for _ in subjects]
    with progress.step("evaluate") as task:
        for indices, prepared in _prepared(subjects, source, _batch_size(subjects, batch)):
            for one, tally, inputs in zip(subjects, tallies, prepared, strict=True):
                tally.add(indices, _logits(one.runner, inputs, indices))
            _require_same_classes(tallies)
            task.update(indices[-1] + 1, len(source), "images")
    answers = [tally.answers() for tally in tallies]
    accuracies = [Accuracy.of(one, tallies[0].classes) for one in answers]
    return Evaluation(
        count=len(source),
        accuracy=accuracies[0],
        other=None if other is None else accuracies[1],
        comparison=None if other is None else compare_answers(*answers),
        answers=answers[0],
    )


class _Tally:
    """One model's answers, as they come in."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.classes = 0
        self._labels = labels
        self._top1 = np.zeros_like(labels)
        self._ranks = np.zeros_like(labels)

    def add(self, indices: Sequence[int], logits: NDArray[np.float32]) -> None:
        self.classes = logits.shape[1]
        _require_known(self._labels, self.classes)
        self._top1[indices] = logits.argmax(axis=1)
        self._ranks[indices] = label_ranks(logits, self._labels[indices])

    def answers(self) -> Answers:
        return Answers(self._labels, self._top1, self._ranks)


def _prepared(
    subjects: Sequence[EvaluatedModel], source: ImageSet, size: int
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    """The indices of each batch with the inputs (N, C, H, W) of each model."""
    kinds = list(dict.fromkeys(one.preprocessing for one in subjects))
    streams = [images.batches(source, kind, size) for kind in kinds]
    for together in zip(*streams, strict=True):
        by_kind = {kind: inputs for kind, (inputs, _) in zip(kinds, together, strict=True)}
        yield together[0][1], [by_kind[one.preprocessing] for one in subjects]


def _require_labels(source: ImageSet) -> NDArray[np.int64]:
    if source.labels is None:
        raise DataError(
            "these images have no labels\n"
            "expected a folder per class, a folder and a --labels-file, a CSV list with labels,\n"
            "or an .npz with `labels`"
        )
    return source.labels


def _require_known(labels: NDArray[np.int64], classes: int) -> None:
    # Of all images, though one batch is at hand: folders are sorted by class, the last come last.
    if int(labels.max()) >= classes:
        raise DataError(
            f"image {int(labels.argmax())} has label {int(labels.max())}, "
            f"the model tells {classes} classes apart\n"
            f"expected labels from 0 to {classes - 1}: are these images for another model?"
        )


def _require_same_classes(tallies: Sequence[_Tally]) -> None:
    if len({tally.classes for tally in tallies}) > 1:
        raise DataError(
            f"the models tell {tallies[0].classes} and {tallies[1].classes} classes apart\n"
            "one label cannot mean the same to both: compare models of the same classes"
        )


def _batch_size(subjects: Sequence[EvaluatedModel], wanted: int) -> int:
    """At least the largest fixed batch, so that no model computes more filling than images."""
    return max(wanted, *(_fixed_batch(one.runner) or 1 for one in subjects))


def _fixed_batch(runner: Runner) -> int | None:
    first = runner.inputs[0].shape[0]
    return first if isinstance(first, int) else None


def _logits(
    runner: Runner, inputs: NDArray[np.float32], indices: Sequence[int]
) -> NDArray[np.float32]:
    """Logits (N, K) of inputs (N, C, H, W), in pieces where the runner's batch is fixed."""
    size = _fixed_batch(runner) or len(inputs)
    pieces = [_run(runner, inputs[at : at + size], size) for at in range(0, len(inputs), size)]
    logits = np.concatenate(pieces)
    wrong = np.flatnonzero(np.isnan(logits).any(axis=1))
    if wrong.size:
        raise ValidationError(
            f"the logits of image {indices[wrong[0]]} and {wrong.size - 1} more are not numbers\n"
            "values beyond the range of FP16 are the usual reason: does the FP32 model do it too?"
        )
    return logits


def _run(runner: Runner, inputs: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    fed = np.resize(inputs, (size, *inputs.shape[1:]))
    outputs = runner.run({runner.inputs[0].name: fed})[runner.outputs[0].name]
    return outputs.reshape(len(outputs), -1)[: len(inputs)].astype(np.float32)

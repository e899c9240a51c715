"""How often a model is right on labelled images, and how often it agrees with its reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit import images
from deploykit.errors import DataError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.images import ImageSet
    from deploykit.specs import Preprocessing, Progress, Runner

TOP: Final = 5

Z_95: Final = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Evaluation:
    """Shares are from 0 to 1.

    ``top5`` is ``None`` for models of five classes or fewer, where it says nothing.
    ``agreement`` is the share of images whose top-1 is the reference's. ``top1_interval`` is the
    95 % interval of Wilson (1927), for images drawn at random.
    """

    count: int
    top1: float
    top5: float | None
    top1_interval: tuple[float, float]
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def evaluate(
    runner: Runner,
    source: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch: int,
    reference: Runner | None,
    progress: Progress,
) -> Evaluation:
    """Run every image through ``runner``, and through ``reference`` where there is one.

    Where a model's batch is fixed, its last batch is filled up and the filling not counted. An
    image that cannot be read ends the evaluation: a share of fewer images than were given would
    be another number.

    Raises:
        DataError: no labels, a label that the model has no logit for, or an unreadable image.
        ValidationError: logits that are not numbers.
    """
    labels = _require_labels(source)
    size = _batch_size(runner, reference, batch)
    hits1 = hits5 = same = 0
    classes = 0
    with progress.step("evaluate") as task:
        for inputs, indices in images.batches(source, preprocessing, size):
            logits = _logits(runner, inputs, indices)
            classes = logits.shape[1]
            _require_known(labels, classes)
            hits1 += count_top(logits, labels[indices], 1)
            hits5 += count_top(logits, labels[indices], TOP)
            if reference is not None:
                other = _logits(reference, inputs, indices)
                same += int((logits.argmax(axis=1) == other.argmax(axis=1)).sum())
            task.update(indices[-1] + 1, len(source), "images")
    count = len(source)
    return Evaluation(
        count=count,
        top1=hits1 / count,
        top5=hits5 / count if classes > TOP else None,
        top1_interval=wilson_interval(hits1, count),
        agreement=same / count if reference is not None else None,
    )


def count_top(logits: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> int:
    """How many rows of ``logits`` (N, K) have their label among the ``k`` largest.

    Equal logits rank by class, the lower first, as ``argmax`` does.

    >>> count_top(np.array([[0.1, 0.9, 0.5]], np.float32), np.array([2]), 2)
    1
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return int((order == labels[:, None]).any(axis=1).sum())


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score (Wilson 1927, JASA 22, 209-212).

    >>> low, high = wilson_interval(915, 1000)
    >>> round(low, 4), round(high, 4)
    (0.8961, 0.9307)
    """
    share, z2 = hits / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _require_labels(source: ImageSet) -> NDArray[np.int64]:
    if source.labels is None:
        raise DataError(
            "these images have no labels\n"
            "expected a folder per class, a CSV list with labels, or an .npz with `labels`"
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


def _batch_size(runner: Runner, reference: Runner | None, wanted: int) -> int:
    """At least the largest fixed batch, so that no model computes more filling than images."""
    runners = [runner] if reference is None else [runner, reference]
    return max(wanted, *(_fixed_batch(one) or 1 for one in runners))


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

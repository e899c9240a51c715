"""From images to a model's input, and from its logits to the classes that they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError, UsageError, ValidationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing
    from deploykit.images.given import ImageLike


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image; ``label`` is ``None`` where the bundle has no labels.

    ``probability`` is the softmax of the logits. How far it can be trusted as a probability is a
    property of the model.
    """

    index: int
    label: str | None
    probability: float
    logit: float


class PreparedImages:
    """Images as a caller gave them, decoded and preprocessed when they are asked for."""

    def __init__(self, given: Iterable[ImageLike], preprocessing: Preprocessing) -> None:
        _require_several(given)
        self._images = images.GivenImages(given)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._images)

    def prepared(self, ahead: int) -> Iterator[NDArray[np.float32] | DataError]:
        """The input (C, H, W) of each image, or why there is none; ``ahead`` of them in threads."""
        if len(self) == 1:
            return map(self._prepare, range(1))
        return images.load_ahead(self._prepare, range(len(self)), ahead)

    def _prepare(self, index: int) -> NDArray[np.float32] | DataError:
        try:
            return images.preprocess(self._images.load(index), self._preprocessing)
        except DataError as error:
            named = DataError(f"image {index}: {error}")
            named.__cause__ = error.__cause__
            return named


def _require_several(given: Any) -> None:
    if images.is_one_image(given):
        raise UsageError("predict() takes a list of images\na single one: predict([image])")
    if not isinstance(given, Iterable):
        raise UsageError(
            f"predict() was given {type(given).__name__}\n{images.EXPECTED}, in a list"
        )


def best_classes(
    logits: NDArray[np.float32], labels: Sequence[str] | None, top_k: int
) -> list[list[Prediction]]:
    """The ``top_k`` classes of each row of logits (N, classes), the likeliest first.

    Raises:
        ValidationError: a logit is NaN or infinite.
    """
    rows = logits.reshape(len(logits), -1).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValidationError(
            "the model gave logits that are NaN or infinite\n"
            "self_test() says whether it still computes what it did when it was exported"
        )
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
    return [
        [_prediction(int(index), labels, chances, row) for index in best]
        for best, chances, row in zip(order, probabilities, rows, strict=True)
    ]


def _prediction(
    index: int,
    labels: Sequence[str] | None,
    chances: NDArray[np.float64],
    row: NDArray[np.float64],
) -> Prediction:
    label = labels[index] if labels is not None and index < len(labels) else None
    return Prediction(index, label, float(chances[index]), float(row[index]))


def require_top_k(top_k: int) -> None:
    """Refuse to give fewer than one class.

    Raises:
        UsageError: ``top_k`` is below 1.
    """
    if top_k < 1:
        raise UsageError(f"top_k={top_k} leaves no prediction\nexpected 1 or more")

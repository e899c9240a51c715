"""From images as a caller gives them to a model's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from deploykit import images
from deploykit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing
    from deploykit.images.given import ImageLike


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


def require_top_k(top_k: int) -> None:
    """Refuse to give fewer than one class.

    Raises:
        UsageError: ``top_k`` is below 1.
    """
    if top_k < 1:
        raise UsageError(f"top_k={top_k} leaves no prediction\nexpected 1 or more")

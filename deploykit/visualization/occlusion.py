"""Occlusion: how much the score of an answer falls where a part of the image is covered.

Zeiler, Fergus 2013, "Visualizing and Understanding Convolutional Networks", section 4.2,
https://arxiv.org/abs/1311.2901: a grey square slides over the image. It needs no gradients, and so
shows any graph, of whatever precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.core.progress import ProgressTask

    Scores = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Outputs (N, K) of images (N, C, H, W)."""

_BATCH: Final = 32

_SQUARES: Final = 8
"""Of the shorter side of an image, how many squares go beside one another."""


@dataclass(frozen=True)
class Square:
    """Side and step of what slides over the image, in pixels."""

    side: int
    step: int

    @classmethod
    def for_image(cls, height: int, width: int) -> Square:
        """An eighth of the shorter side, and half of that as a step.

        >>> Square.for_image(32, 48), Square.for_image(224, 224)
        (Square(side=4, step=2), Square(side=28, step=14))
        """
        side = max(1, min(height, width) // _SQUARES)
        return cls(side, max(1, side // 2))

    def places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Upper left corners; the last of each row and column lies at the edge."""
        return [(top, left) for top in self._along(height) for left in self._along(width)]

    def _along(self, size: int) -> list[int]:
        last = max(0, size - self.side)
        return [*range(0, last, self.step), last]


def occlusion_map(
    scores: Scores,
    image: NDArray[np.float32],
    answer: int,
    square: Square,
    task: ProgressTask | None = None,
) -> NDArray[np.float32]:
    """By how much the score of class ``answer`` falls (H, W), for one image (C, H, W).

    The square is 0, which is the mean colour of a normalised input. Each pixel has the mean over
    all squares that cover it; where the score rises it is negative.
    """
    height, width = image.shape[1:]
    places = square.places(height, width)
    whole = scores(image[None])[0, answer]
    total, covered = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(places), _BATCH):
        some = places[start : start + _BATCH]
        found = scores(_covered(image, some, square.side))[:, answer]
        for (top, left), score in zip(some, found, strict=True):
            area = slice(top, top + square.side), slice(left, left + square.side)
            total[area] += whole - score
            covered[area] += 1
        if task is not None:
            task.update(start + len(some), len(places))
    return np.asarray(total / covered, np.float32)


def _covered(
    image: NDArray[np.float32], places: list[tuple[int, int]], side: int
) -> NDArray[np.float32]:
    batch = np.repeat(image[None], len(places), axis=0)
    for one, (top, left) in zip(batch, places, strict=True):
        one[:, top : top + side, left : left + side] = 0
    return batch

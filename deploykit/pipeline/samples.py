"""The images that a model is validated on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.specs import Preprocessing

BATCHES: Final = (1, 2, 5)
"""One image, the batch that the exporter saw, and a prime: shows a batch frozen into the graph."""


def sample_batches(
    preprocessing: Preprocessing, data: Path | None, sizes: tuple[int, ...] = BATCHES
) -> list[NDArray[np.float32]]:
    """Batches (N, C, H, W) of the given sizes, of images spread evenly over ``data``.

    Without ``data`` they are the photographs that come with deploykit. Where there are fewer
    images than places, they are taken again from the start.

    Raises:
        DataError: the images cannot be read.
    """
    source = images.open_images(data) if data is not None else images.sample_images()
    needed = sum(sizes)
    count = min(needed, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    loaded = [batch for batch, _ in images.batches(source, preprocessing, count, indices=chosen)]
    stack = np.resize(np.concatenate(loaded), (needed, *loaded[0].shape[1:]))
    ends = np.cumsum(sizes)[:-1].tolist()
    return [np.ascontiguousarray(part) for part in np.split(stack, ends)]

"""Batches of calibration images for trials and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError
from deploykit.images.batching import BATCHES
from deploykit.precision.calibration.data import HOLDOUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.precision.calibration.data import CalibrationData

    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]


LARGEST_BATCH: Final = 64
"""Of small images there are hundreds: all at once, their activations would take gigabytes."""


def load_images(
    data: CalibrationData, indices: Sequence[int], artifact: OnnxArtifact, pixels: int
) -> Batches:
    """The first images of ``indices``: in the graph's own batch, or in 1, 2, 5 and larger.

    Raises:
        DataError: fewer readable images than the graph's own batch.
    """
    height, width = data.preprocessing.crop
    affordable = max(1, pixels // (height * width))
    fixed = artifact.inputs[0].fixed_batch
    # A graph of fixed batch takes whole batches only, and one of them at least.
    chosen = list(indices)[: max(affordable, fixed or 1)]
    size = fixed or LARGEST_BATCH
    loaded = images.batches(data.source, data.preprocessing, size, chosen, on_corrupt="skip")
    batches = [inputs for inputs, _ in loaded if len(inputs) == fixed or not fixed]
    if batches and not fixed:
        first = np.split(batches[0], np.cumsum(BATCHES))
        batches = [batch for batch in (*first, *batches[1:]) if len(batch)]
    if not batches:
        raise DataError(
            f"{len(indices)} held-out images are too few for the model's batch of {size}\n"
            f"a fifth of them is held out: give at least {round(size / HOLDOUT)} that can be read"
        )
    return batches


def first_images(
    batches: Batches, expected: Sequence[Answers], count: int, artifact: OnnxArtifact
) -> tuple[Batches, list[Answers]]:
    """The first ``count`` images and their answers; whole batches where the graph's is fixed."""
    some: tuple[Batches, list[Answers]] = ([], [])
    room = count
    for inputs, answers in zip(batches, expected, strict=True):
        whole = artifact.inputs[0].fixed_batch is not None
        size = len(inputs) if whole else min(len(inputs), room)
        if size > room and some[0]:
            break
        if size > 0:
            some[0].append(inputs[:size])
            some[1].append({name: values[:size] for name, values in answers.items()})
        room -= size
    return some

"""Image counts of the steps of an INT8 export, and these images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images
from deploykit.core.errors import DataError, ModelFileError, UsageError
from deploykit.graph import LoadedGraph, describe_layers
from deploykit.graph.shapes import fix_image_size
from deploykit.images.batching import BATCHES
from deploykit.precision.calibration.data import HOLDOUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.precision.calibration.data import CalibrationData

    Batches = list[NDArray[np.float32]]

COMPARED_PIXELS: Final = 16 * 224 * 224
"""Pixels of the held-out images that the result is compared on: 16 images of ImageNet's size.

Smaller images cost less, so there are more of them; the same holds for the other numbers.
"""

TRIAL_PIXELS: Final = 8 * 224 * 224
"""Of the images of each trial. A thousand logits of eight images tell noise apart by 0.1 dB."""

BIAS_PIXELS: Final = 16 * 224 * 224
"""Of the images that biases are corrected on: each channel's mean is over all places of these."""

PROBE_MULTIPLY_ADDS: Final = 120_000_000_000
"""For taking each layer out of INT8 once: some five seconds of two cores, Q/DQ pairs simulated."""

LARGEST_BATCH: Final = 64
"""Of small images there are hundreds: all at once, their activations would take gigabytes."""

FEWEST_PROBES: Final = 2
"""With a single image the noise of one layer is too much a matter of chance."""


def load_images(
    data: CalibrationData, indices: Sequence[int], artifact: OnnxArtifact, pixels: int
) -> Batches:
    """The first images of ``indices``: in the graph's own batch, or in 1, 2, 5 and larger.

    Raises:
        DataError: fewer readable images than the graph's own batch.
    """
    height, width = data.preprocessing.crop
    affordable = max(1, pixels // (height * width))
    fixed = _fixed_batch(artifact)
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
    batches: Batches, expected: Batches, count: int, artifact: OnnxArtifact
) -> tuple[Batches, Batches]:
    """The first ``count`` images and their logits; whole batches where the graph's is fixed."""
    some: tuple[Batches, Batches] = ([], [])
    room = count
    for inputs, logits in zip(batches, expected, strict=True):
        whole = _fixed_batch(artifact) is not None
        size = len(inputs) if whole else min(len(inputs), room)
        if size > room and some[0]:
            break
        if size > 0:
            some[0].append(inputs[:size])
            some[1].append(logits[:size])
        room -= size
    return some


def affordable_probes(multiply_adds: Mapping[str, int], *, insist: bool) -> int:
    """On how many images each layer can be taken out of INT8; 0 where that is too slow.

    With ``insist`` it is done on `FEWEST_PROBES` however long it takes.
    """
    passes = len(multiply_adds) * sum(multiply_adds.values())
    count = PROBE_MULTIPLY_ADDS // passes if passes else 0
    if count >= FEWEST_PROBES:
        return count
    return FEWEST_PROBES if insist and passes else 0


def multiply_adds_of(graph: LoadedGraph, image: tuple[int, int]) -> dict[str, int]:
    """Of each convolution and matrix product for one image; empty where shapes cannot be told.

    ``image`` is the height and width, for a graph that leaves them open.
    """
    try:
        model = graph.model.clone()
        fix_image_size(model, image)
        summary = describe_layers(model, graph.artifact.path.name, 1)
    except (ModelFileError, UsageError):
        return {}
    images_at_once = _fixed_batch(graph.artifact) or 1
    rows = {layer.name: layer.multiply_adds // images_at_once for layer in summary.layers}
    return {name: count for name, count in rows.items() if count}


def _fixed_batch(artifact: OnnxArtifact) -> int | None:
    first = artifact.inputs[0].shape[0]
    return first if isinstance(first, int) else None

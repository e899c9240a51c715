"""Images of fine-tuning in three sets without a common picture: to fit to, to stop by, to judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import DataError
from deploykit.precision.calibration.data import split_holdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.precision.calibration.data import CalibrationData

    Images = NDArray[np.float32]


FEWEST_IMAGES: Final = 100
"""Of a calibration that fine-tunes: 64 to fit to, 16 to stop by, 20 to judge."""

FEWEST_JUDGES: Final = 16
"""Different images: a rise on fewer says little."""

STOP_SHARE: Final = 0.2
"""Of the images that are not held out."""

MOST_BYTES: Final = 256 * 2**20
"""Of prepared images in each set, in FP32."""


@dataclass(frozen=True)
class TuningImages:
    """Prepared images (N, C, H, W): ``fitted`` to, ``stopping`` the fit, and ``judging`` it.

    ``repeated`` counts those that were left out because an earlier set has the same pixels.
    """

    fitted: Images
    stopping: Images
    judging: Images
    repeated: int = 0


def load_tuning_images(data: CalibrationData, artifact: OnnxArtifact) -> TuningImages:
    """The images of a calibration; those that it held out judge, as they chose no range.

    An image that is there twice is in one set only, whatever its file is called.

    Raises:
        DataError: too few different images can be read.
    """
    fit, stop = split_holdout(data.indices, STOP_SHARE)
    fixed = artifact.inputs[0].fixed_batch or 1
    known: set[str] = set()
    sets, repeated = [], 0
    for indices in (fit, stop, data.held_out):
        found = _read(data, indices)
        marks = [sha256_of_bytes(each.tobytes()) for each in found]
        fresh = [each for each, mark in zip(found, marks, strict=True) if mark not in known]
        repeated += len(found) - len(fresh)
        known |= set(marks)
        sets.append(fresh[: len(fresh) // fixed * fixed])
    if len(sets[-1]) < FEWEST_JUDGES or not sets[0] or not sets[1]:
        raise DataError(
            f"--finetune has {len(sets[-1])} different images to judge by, of "
            f"{len(data.every_index)} for calibration"
            f"{f' ({repeated} were there twice)' if repeated else ''}\n"
            f"expected {FEWEST_JUDGES} or more: give at least {FEWEST_IMAGES} different images"
        )
    fitted, stopping, judging = (np.stack(each) for each in sets)
    return TuningImages(fitted, stopping, judging, repeated)


def _read(data: CalibrationData, indices: Sequence[int]) -> list[Images]:
    found: list[Images] = []
    for batch, _ in images.batches(
        data.source, data.preprocessing, 16, list(indices), on_corrupt="skip"
    ):
        found.extend(batch)
        if sum(each.nbytes for each in found) >= MOST_BYTES:
            break
    return found

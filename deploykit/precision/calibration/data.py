"""Images of a calibration: which ones it sees, and which it holds out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit import images
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import RANDOM
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Preprocessing
from deploykit.images import FileImages
from deploykit.images.side_inputs import SideInputs
from deploykit.precision.calibration.calibrators import BINS, METHODS, PERCENTILE
from deploykit.precision.calibration.collection import COUNTED
from deploykit.precision.calibration.table import CalibrationKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.core.specs import Preprocessing
    from deploykit.images import ImageSet


FEW_IMAGES: Final = 32
"""Fewer leave the ranges to chance."""

HOLDOUT: Final = 0.2
"""Share of the images that methods are compared on, and that the ranges then do not come from."""


@dataclass(frozen=True)
class CalibrationData:
    """The images to calibrate with: which ones of ``source``, in order, and what is done to them.

    ``held_out`` are those that candidates are compared on, and that trial ranges do not come from.
    ``seed`` chose both; it is kept to say so. ``side`` is what the model takes beside images.
    """

    source: ImageSet
    preprocessing: Preprocessing
    indices: Sequence[int]
    seed: int
    held_out: Sequence[int] = ()
    side: SideInputs = field(default_factory=SideInputs)

    @property
    def every_index(self) -> tuple[int, ...]:
        """All images that the final ranges come from."""
        return (*self.indices, *self.held_out)

    def key(self, model_sha256: str) -> CalibrationKey:
        """What a table of these images depends on.

        Raises:
            DataError: a file cannot be read.
        """
        settings = {
            "images": len(self.every_index),
            "held_out": len(self.held_out),
            "seed": self.seed,
            "choice": sha256_of_bytes(json.dumps(self.every_index).encode()),
            "methods": list(METHODS),
            "bins": BINS,
            "percentile": PERCENTILE,
            "counted": COUNTED,
        }
        # A limit may decide at which size a file is decoded. The default follows from the model.
        if (limit := getattr(self.source, "max_pixels", None)) is not None:
            settings["max_pixels"] = limit
        preprocessing = to_plain(self.preprocessing)
        # Ranges are those of prepared images; tables of before do not have the field.
        del preprocessing["pixels"]
        return CalibrationKey(model_sha256, self._digest(), preprocessing, settings)

    def _digest(self) -> str:
        digest = self._digest_of_images()
        return sha256_of_bytes((digest + self.side.digest).encode()) if self.side.rows else digest

    def _digest_of_images(self) -> str:
        # Of a large folder only the files that were chosen are read.
        if isinstance(self.source, FileImages):
            return FileImages(tuple(self.source.paths[index] for index in self.every_index)).digest
        return self.source.digest

    def name_of(self, index: int) -> str:
        """How messages call an image: its file where it has one of its own."""
        return images.name_of(self.source, index)


def choose_images(available: int, wanted: int, seed: int) -> list[int]:
    """Indices of ``wanted`` images, or of all where there are fewer, in a random fixed order.

    A smaller choice with the same seed is the beginning of a larger one.

    >>> choose_images(10, 3, seed=0) == choose_images(10, 10, seed=0)[:3]
    True

    Raises:
        UsageError: fewer than one image is wanted.
    """
    if wanted < 1:
        raise UsageError(f"{wanted} calibration images were asked\nexpected at least 1")
    # Python promises the same numbers of random() in every version, of sample() it does not.
    random = Random(seed)  # noqa: S311 - a choice of images is no secret
    order = [random.random() for _ in range(available)]
    return sorted(range(available), key=order.__getitem__)[:wanted]


def split_holdout(indices: Sequence[int], share: float = HOLDOUT) -> tuple[list[int], list[int]]:
    """The images to calibrate with, and those to compare methods on; at least one in each.

    >>> split_holdout([4, 0, 3, 1, 2])
    ([4, 0, 3, 1], [2])

    Raises:
        DataError: fewer than two images.
    """
    if len(indices) < 2:  # noqa: PLR2004
        raise DataError(
            f"{len(indices)} image is too few to compare calibration methods on others\n"
            "give more images, or choose a method"
        )
    held = min(max(1, round(len(indices) * share)), len(indices) - 1)
    return list(indices[:-held]), list(indices[-held:])


def few_images_warning(count: int) -> str | None:
    """What to say where there are too few images for steady ranges."""
    if count >= FEW_IMAGES:
        return None
    return (
        f"only {count} calibration images: the ranges depend on chance; "
        f"give at least {FEW_IMAGES}, better 512"
    )


@dataclass(frozen=True)
class CalibrationOptions:
    """Which images, and how many; ``table`` is where the result is kept and looked for.

    ``data`` is a path, `RANDOM`, or any `ImageSet`: `images.GivenImages` makes one of an iterable.
    Without ``table`` the place is that of `pipeline.tables`, for the ``bundle`` that is made or
    calibrated. With ``must_fit`` the table there is used or refused, never made anew. An image
    file may have ``max_pixels``.
    """

    data: str | ImageSet
    count: int = 512
    seed: int = 0
    table: Path | None = None
    must_fit: bool = False
    bundle: Path | None = None
    max_pixels: int | None = None


def open_calibration_images(options: CalibrationOptions, preprocessing: Preprocessing) -> ImageSet:
    """The images that ``options.data`` names; noise only where it was asked for by name."""
    if not isinstance(options.data, str):
        return options.data
    if options.data != RANDOM:
        return images.open_images(Path(options.data), options.max_pixels)
    noise = np.random.default_rng(options.seed)
    shape = (options.count, *preprocessing.crop, preprocessing.channels)
    return images.ArrayImages(noise.integers(0, 256, shape, np.uint8))


def _source_of(options: CalibrationOptions) -> str:
    if not isinstance(options.data, str):
        return "images given by a program"
    return "random noise" if options.data == RANDOM else Path(options.data).name

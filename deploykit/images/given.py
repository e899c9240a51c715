"""Images as a program has them, in any mixture: files, encoded bytes, Pillow images, arrays."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import UsageError
from deploykit.images.decoding import decode, to_rgb
from deploykit.images.pixel_limit import require_max_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from PIL.Image import Image

    from deploykit.core.specs import Preprocessing

    ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]


EXPECTED: Final = "expected paths, encoded bytes, Pillow images or uint8 arrays (H, W, 3) or (H, W)"


class GivenImages:
    """An `ImageSet` of the images in any iterable, decoded on use, without labels.

    The images are kept as they were given: paths and encoded bytes take little memory, decoded
    images much. ``max_pixels`` limits those that have to be decoded, and ``reduce_for`` is as in
    `decode`.

    Raises:
        UsageError: not an iterable, or something in it is no image.
    """

    labels = None
    classes = None

    def __init__(
        self,
        given: Iterable[ImageLike],
        max_pixels: int | None = None,
        reduce_for: Preprocessing | None = None,
    ) -> None:
        require_max_pixels(max_pixels)
        self.max_pixels = max_pixels
        self.reduce_for = reduce_for
        self._images: tuple[Any, ...] = tuple(given)
        for index, image in enumerate(self._images):
            _require_image(index, image)
        # Pillow reads a file's pixels on first use, and not twice at once for one image object.
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the decoded pixels in order; every image is decoded once.

        Raises:
            DataError: an image cannot be read.
        """
        pixels = (np.asarray(self.load(index)) for index in range(len(self)))
        # The shape too: the same bytes in another shape are another image.
        each = (sha256_of_bytes(repr(one.shape).encode() + one.tobytes()) for one in pixels)
        return sha256_of_bytes("".join(each).encode())

    def load(self, index: int) -> Image:
        """The image as upright RGB.

        Raises:
            DataError: it cannot be read.
        """
        from PIL import Image as Pillow

        image = self._images[index]
        if isinstance(image, str | os.PathLike):
            return decode(Path(image), self.max_pixels, reduce_for=self.reduce_for)
        if isinstance(image, bytes):
            return decode(image, self.max_pixels, reduce_for=self.reduce_for)
        if isinstance(image, np.ndarray):
            return Pillow.fromarray(image).convert("RGB")
        with self._loading:
            return to_rgb(image)


def is_one_image(given: Any) -> bool:
    """True for a single image: a path, bytes, a Pillow image, an array without a batch axis."""
    if isinstance(given, np.ndarray):
        return given.ndim != 4  # noqa: PLR2004 - (N, H, W, 3)
    return isinstance(given, str | os.PathLike | bytes) or _is_pillow(given)


def _require_image(index: int, image: Any) -> None:
    if isinstance(image, np.ndarray):
        is_colour, is_grey = image.shape[2:] == (3,), image.ndim == 2  # noqa: PLR2004
        if image.dtype != np.uint8 or not image.size or not (is_colour or is_grey):
            raise UsageError(f"image {index} is {image.dtype} {image.shape}\n{EXPECTED}")
    elif not isinstance(image, str | os.PathLike | bytes) and not _is_pillow(image):
        raise UsageError(f"image {index} is of type {type(image).__name__}\n{EXPECTED}")


def _is_pillow(image: Any) -> bool:
    from PIL.Image import Image as PillowImage

    return isinstance(image, PillowImage)

"""One RGB image to the numbers that a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from deploykit.core.specs import Preprocessing

INTERPOLATIONS: Final = ("bilinear", "bicubic", "nearest", "lanczos")

MAX_RESIZED_PIXELS: Final = 89_478_485
"""Pillow's own default limit for one image (`PIL.Image.MAX_IMAGE_PIXELS`)."""


def preprocess(
    image: Image, preprocessing: Preprocessing, *, pad: bool = True
) -> NDArray[np.float32]:
    """Scale, crop, divide by 255 and normalise one RGB image to (3, H, W).

    Bit for bit what torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` give
    for a Pillow image: the longer side is rounded down, downscaling is antialiased, and a crop
    larger than the image is filled up with black before normalising; not with ``pad=False``.

    Raises:
        UsageError: the image is not RGB, or ``preprocessing`` makes no sense.
        DataError: the image is so narrow that scaling its shorter side makes it enormous, or
            smaller than the crop where it may not be filled up.
    """
    check_preprocessing(preprocessing)
    if image.mode != "RGB":
        raise UsageError(
            f"an image of mode {image.mode!r} was given\nexpected 'RGB', as decode() returns it"
        )
    resized = _resize(image, preprocessing)
    if not pad:
        _require_covered(resized, preprocessing.crop)
    cropped = _center_crop(resized, preprocessing.crop)
    pixels = np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1)).astype(np.float32)
    # In torchvision's order and in FP32: one combined multiply-add would round differently.
    pixels /= np.float32(255)
    pixels -= np.array(preprocessing.mean, np.float32)[:, None, None]
    pixels /= np.array(preprocessing.std, np.float32)[:, None, None]
    return pixels


def preprocess_array(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Same as ``preprocess``, for RGB pixels (H, W, 3).

    Raises:
        UsageError: not uint8 or not of that shape, or ``preprocessing`` makes no sense.
        DataError: as ``preprocess``.
    """
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or pixels.size == 0:
        raise UsageError(
            f"an image of {pixels.dtype} {pixels.shape} was given\nexpected uint8 (H, W, 3), RGB"
        )
    return preprocess(Image.fromarray(pixels), preprocessing)


def check_preprocessing(preprocessing: Preprocessing) -> None:
    """Check that the steps can be applied to an image at all.

    Raises:
        UsageError: unknown interpolation, a size below 1, or a standard deviation of 0.
    """
    known = INTERPOLATIONS
    if preprocessing.interpolation not in known:
        raise UnknownNameError(
            "interpolation", preprocessing.interpolation, known, ", ".join(known)
        )
    if min(*preprocessing.crop, *_resize_sizes(preprocessing)) < 1:
        raise UsageError(
            f"crop {preprocessing.crop} with resize {preprocessing.resize} leaves no image\n"
            "expected sizes of at least 1 pixel"
        )
    if 0 in preprocessing.std:
        raise UsageError(f"std {preprocessing.std} divides by zero\nexpected values above 0")


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height once the shorter side is ``shorter``; the longer is rounded down.

    >>> resized_size(451, 300, 256)
    (384, 256)
    """
    # int() and not round(): torchvision rounds down.
    longer = int(shorter * max(width, height) / min(width, height))
    return (shorter, longer) if width <= height else (longer, shorter)


def _resize_sizes(preprocessing: Preprocessing) -> tuple[int, ...]:
    match preprocessing.resize:
        case None:
            return ()
        case int(shorter):
            return (shorter,)
        case exact:
            return exact


def _resize(image: Image, preprocessing: Preprocessing) -> Image:
    from PIL.Image import Resampling

    if preprocessing.resize is None:
        return image
    if isinstance(preprocessing.resize, int):
        width, height = resized_size(*image.size, preprocessing.resize)
    else:
        height, width = preprocessing.resize
    # Pillow checks the size that a file has, not the size that an image is scaled to.
    if width * height > MAX_RESIZED_PIXELS:
        raise DataError(
            f"an image of {image.width} x {image.height} would be scaled to {width} x {height}\n"
            f"expected at most {MAX_RESIZED_PIXELS} pixels: crop it to a less narrow shape"
        )
    return image.resize((width, height), Resampling[preprocessing.interpolation.upper()])


def _require_covered(image: Image, crop: tuple[int, int]) -> None:
    height, width = crop
    if image.width < width or image.height < height:
        raise DataError(
            f"an image of {image.width} x {image.height} pixels is smaller than the crop of "
            f"{width} x {height}\nexpected images at least as large: the rest would be black"
        )


def _center_crop(image: Image, crop: tuple[int, int]) -> Image:
    """Cut from the centre; Pillow fills what lies outside with black.

    torchvision pads a side that is too short by floor(missing / 2) first, and otherwise starts
    at round(surplus / 2), halves to even: the two differ, and so do the branches here.
    """
    height, width = crop
    left, top = _start(image.width, width), _start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _start(have: int, want: int) -> int:
    return -((want - have) // 2) if want > have else round((have - want) / 2)

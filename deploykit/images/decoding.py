"""One encoded image to upright 8-bit RGB."""

from __future__ import annotations

from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image


FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Formats that Pillow may read, whatever the file's suffix: EPS would run Ghostscript."""


def decode(source: Path | bytes) -> Image:
    """Upright RGB image from a file or from encoded bytes.

    The EXIF orientation is applied. Transparent pixels show white, as on a page: the colour
    stored under them is arbitrary. 16-bit greyscale is scaled, so that 65535 becomes 255. Of an
    animation the first frame is taken. Colour profiles are ignored, as torchvision does.

    Raises:
        DataError: the file is missing, damaged, truncated, larger than Pillow's limit against
            decompression bombs, or of a kind of pixel that has no fixed range.
    """
    from PIL import Image, ImageOps

    with _readable(str(source) if isinstance(source, Path) else "the image"):
        content = source if isinstance(source, Path) else BytesIO(source)
        with Image.open(content, formats=FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)


def to_rgb(image: Image) -> Image:
    """Upright RGB copy, as `decode` makes it, of an image that Pillow has opened.

    Raises:
        DataError: as `decode`; Pillow reads the pixels of a file only on first use.
    """
    from PIL import ImageOps

    with _readable("the image"):
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    # Pillow's readers let whatever they trip over escape: OSError, SyntaxError, struct.error ...
    except Exception as error:
        raise DataError(
            f"cannot read {name}\n{type(error).__name__}: {_first_line(error)}\n"
            "expected a complete JPEG, PNG, BMP, WebP, TIFF, GIF or PPM image"
        ) from error


def _to_rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode.startswith("I"):
        return _from_wide_grey(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        # convert("RGB") alone drops alpha and shows the colour stored under it.
        rgba = image.convert("RGBA")
        white = Pillow.new("RGBA", rgba.size, "white")
        return Pillow.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(image: Image) -> Image:
    """16-bit greyscale, which Pillow also holds in 32 bits; its own conversion clips at 255."""
    from PIL import Image as Pillow

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ValueError("greyscale pixels of more than 16 bits have no fixed range")
    # 65535 = 255 x 257: division with rounding to the nearest.
    return Pillow.fromarray(((values + 128) // 257).astype(np.uint8))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")

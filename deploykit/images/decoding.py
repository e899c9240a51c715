"""Images as a program has them, in any mixture: files, encoded bytes, Pillow images, arrays.

Encoded ones become upright 8-bit RGB.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from PIL.Image import Image

    ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]


_NOT_READ: Final = frozenset({"EPS", "FPX", "MIC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats of Pillow's registry that are left out, whatever a file's suffix.

EPS would run Ghostscript. Of the others Pillow knows the header and needs another program for the
pixels.
"""

_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
"""Of ISO/IEC 23008-12; AVIF has its own."""

NEEDS_HEIF: Final = "for HEIC: pip install pillow-heif"


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that the installed Pillow reads; HEIF where `pillow-heif` is there."""
    from PIL import Image

    if find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_READ)


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of image files, as ".jpg", by Pillow's own registry."""
    from PIL import Image

    # JPEG's reader opens MPO, which has no entry of its own.
    known = {*readable_formats(), "MPO"}
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in suffixes if name in known)


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

    with _readable(str(source) if isinstance(source, Path) else "the image", source):
        content = source if isinstance(source, Path) else BytesIO(source)
        with Image.open(content, formats=readable_formats()) as image:
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
def _readable(name: str, source: Path | bytes = b"") -> Iterator[None]:
    try:
        yield
    # Pillow's readers let whatever they trip over escape: OSError, SyntaxError, struct.error ...
    except Exception as error:
        is_new = "HEIF" not in readable_formats() and _is_heic(source)
        raise DataError(
            f"cannot read {name}\n{type(error).__name__}: {_first_line(error)}\n"
            "expected a complete JPEG, PNG, WebP, TIFF or other image that Pillow reads"
            f"{f'; {NEEDS_HEIF}' if is_new else ''}"
        ) from error


def _is_heic(source: Path | bytes) -> bool:
    """By the brand in its first box, whatever it is called."""
    try:
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


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


EXPECTED: Final = "expected paths, encoded bytes, Pillow images or uint8 arrays (H, W, 3) or (H, W)"


class GivenImages:
    """An `ImageSet` of the images in any iterable, decoded on use, without labels.

    The images are kept as they were given: paths and encoded bytes take little memory, decoded
    images much.

    Raises:
        UsageError: not an iterable, or something in it is no image.
    """

    labels = None
    classes = None

    def __init__(self, given: Iterable[ImageLike]) -> None:
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
            return decode(Path(image))
        if isinstance(image, bytes):
            return decode(image)
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

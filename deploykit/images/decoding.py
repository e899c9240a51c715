"""Decoding of image files and encoded bytes into upright 8-bit RGB, within a pixel limit."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias

import numpy as np

from deploykit.core.errors import (
    DataError,
    ImageError,
    TooManyPixelsError,
    one_line,
)
from deploykit.core.regular_files import NotRegularError, open_regular
from deploykit.images.pixel_limit import MAX_PIXELS, least_side, require_max_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from deploykit.core.specs import Preprocessing

    Size: TypeAlias = tuple[int, int]


_NOT_READ: Final = frozenset(
    {"EPS", "FPX", "MIC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"} | {"BLP", "ICNS", "IPTC"}
)
"""Formats of Pillow's registry that are left out, whatever a file's suffix.

EPS would run Ghostscript. Of the next ones Pillow knows the header and needs another program for
the pixels. The last three wrap an image of another format, whose size their own header does not
say: they would be a way around the pixel limit.
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


def decode(
    source: Path | bytes,
    max_pixels: int | None = None,
    *,
    reduce_for: Preprocessing | None = None,
) -> Image:
    """Upright RGB image from a file or from encoded bytes.

    The EXIF orientation is applied. Transparent pixels show white, as on a page: the colour
    stored under them is arbitrary. 16-bit greyscale is scaled, so that 65535 becomes 255. Of an
    animation the first frame is taken. Colour profiles are ignored, as torchvision does.

    Args:
        source: the file, which may not be a pipe or a device, or its content.
        max_pixels: pixels that the decoded image may have; Pillow's default, 89 million, if not
            given. They are counted before anything is decoded.
        reduce_for: what is done to the image next. A sequential JPEG above the limit is then
            decoded at a half or a quarter of its width and height, if it is within the limit so and
            still twice as wide and high as what it is resized to. Without it, all is refused.

    Raises:
        ImageError: the file is missing, damaged, truncated, or of a kind of pixel that has no fixed
            range.
        TooManyPixelsError: it has more pixels than the limit.
        UsageError: ``max_pixels`` is below 1.
    """
    from PIL import ImageOps

    require_max_pixels(max_pixels)
    name = _name_of(source)
    with _readable(name, source), _opened(source) as file:
        # Icons first: Pillow decodes them as soon as it opens the file.
        _require_few_pixels(name, _sizes_of_icons(file), max_pixels)
        image = _identify(file)
        _require_known_range(image)
        factor = _reduction(file, image, max_pixels, reduce_for)
        if factor == 1:
            _require_few_pixels(name, _sizes(image), max_pixels)
        else:
            # The scaling in the DCT (ITU-T T.81) is a box filter before the antialiased resize.
            image.draft(None, (image.width // factor, image.height // factor))
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def pixels_of(
    source: Path | bytes,
    max_pixels: int | None = None,
    *,
    reduce_for: Preprocessing | None = None,
) -> int:
    """Pixels that `decode` would decode, told the same, by the image's header; it decodes nothing.

    Raises:
        ImageError: as `decode`, as far as the header shows it.
        UsageError: ``max_pixels`` is below 1.
    """
    require_max_pixels(max_pixels)
    with _readable(_name_of(source), source), _opened(source) as file:
        icons = _sizes_of_icons(file)
        if icons:
            return max(map(prod, icons))
        image = _identify(file)
        factor = _reduction(file, image, max_pixels, reduce_for)
        if factor > 1:
            return prod(_reduced(image.size, factor))
        return max(map(prod, _sizes(image)))


def is_reduced(source: Path | bytes, max_pixels: int | None, preprocessing: Preprocessing) -> bool:
    """Whether `decode` reduces an image for ``preprocessing``; false where it cannot be read.

    A file is opened only where it is large enough: of a whole set few are.
    """
    try:
        if _bytes_of(source) * _PIXELS_OF_A_BYTE < _limit_of(max_pixels):
            return False
        with _readable(_name_of(source), source), _opened(source) as file:
            if _sizes_of_icons(file):
                return False
            return _reduction(file, _identify(file), max_pixels, preprocessing) > 1
    except (DataError, OSError):
        return False


_PIXELS_OF_A_BYTE: Final = 256
"""Most pixels that a byte of a sequential JPEG holds: a block of 8 x 8 has two codes, of one bit or
more each (ITU-T T.81, F.1.2)."""


def _bytes_of(source: Path | bytes) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)


def to_rgb(image: Image) -> Image:
    """Upright RGB copy, as `decode` makes it, of an image that Pillow has opened.

    It has no limit but Pillow's own, which it was opened under.

    Raises:
        DataError: as `decode`; Pillow reads the pixels of a file only on first use.
    """
    from PIL import ImageOps

    with _readable("the image"):
        _require_known_range(image)
        return _to_rgb(ImageOps.exif_transpose(image))


def _name_of(source: Path | bytes) -> str:
    return one_line(source) if isinstance(source, Path) else "the image"


def _opened(source: Path | bytes) -> BinaryIO:
    return open_regular(source) if isinstance(source, Path) else BytesIO(source)


def _identify(file: BinaryIO) -> ImageFile:
    """The image in ``file``, of which only the header is read.

    `PIL.Image.open` warns of large images and has one limit for the whole process. Here the limit
    is the caller's, so its loop over the formats is walked without that check.
    """
    from PIL import Image, UnidentifiedImageError

    file.seek(0)
    start = file.read(16)
    for name in readable_formats():
        factory, accept = Image.OPEN[name]
        try:
            found = True if accept is None else accept(start)
            # A text says that this build of Pillow cannot read the format.
            if not found or isinstance(found, str):
                continue
            file.seek(0)
            return factory(file, "")
        # By these a reader says that the file is of another format.
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise UnidentifiedImageError("cannot identify image file")


def _limit_of(max_pixels: int | None) -> int:
    from PIL import Image as Pillow

    limit = MAX_PIXELS if max_pixels is None else max_pixels
    # Who has lowered Pillow's limit for the whole process means all images.
    if Pillow.MAX_IMAGE_PIXELS is not None and Pillow.MAX_IMAGE_PIXELS < MAX_PIXELS:
        limit = min(limit, Pillow.MAX_IMAGE_PIXELS)
    return limit


def _require_few_pixels(name: str, sizes: Sequence[Size], max_pixels: int | None) -> None:
    limit = _limit_of(max_pixels)
    width, height = max(sizes, key=prod, default=(0, 0))
    if width * height > limit:
        found = f"has {width} x {height} = {width * height:,} pixels, the limit is {limit:,}"
        raise TooManyPixelsError(
            f"{name} {found}\n"
            f"scale it down; or, if you trust it, raise the limit: max_pixels={width * height}, or "
            "--max-pixels of predict, eval, calibrate and export",
            f"the image {found}\nscale it down",
            width * height,
        )


_REDUCTIONS: Final = (2, 4)
"""Factors by which a JPEG is made narrower and lower while it is decoded.

libjpeg knows 8 too. All coefficients are read at any factor, so that 64 times the pixels of the
limit would take a processor for seconds, from a file of a few megabytes.
"""


def _reduction(
    file: BinaryIO,
    image: ImageFile,
    max_pixels: int | None,
    preprocessing: Preprocessing | None,
) -> int:
    """Factor by which ``image`` is decoded narrower and lower; 1 where all of it is, or nothing.

    Below the limit no image is reduced, so that its pixels are those that torchvision gets.
    """
    limit = _limit_of(max_pixels)
    least = None if preprocessing is None else least_side(preprocessing)
    if least is None or prod(image.size) <= limit or image.format not in {"JPEG", "MPO"}:
        return 1
    reduced = ((factor, _reduced(image.size, factor)) for factor in _REDUCTIONS)
    fitting = (each for each, size in reduced if prod(size) <= limit and min(size) >= least)
    factor = next(fitting, 1)
    return factor if factor == 1 or _is_one_scan(file) else 1


def _reduced(size: Size, factor: int) -> Size:
    width, height = size
    return ceil(width / factor), ceil(height / factor)


_SEQUENTIAL: Final = frozenset({0xC0, 0xC1})
"""JPEG's markers of a frame whose rows come one after the other (ITU-T T.81, table B.1)."""

_START_OF_SCAN: Final = 0xDA

_MOST_SEGMENTS: Final = 10_000
"""Segments before the first scan that are looked through; a photograph has some ten."""


def _is_one_scan(file: BinaryIO) -> bool:
    """True for a JPEG whose first scan holds all rows of all colours.

    Of any other, as a progressive one, libjpeg keeps the coefficients of the whole image, whatever
    size it is decoded at.
    """
    at, components = 2, 0
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        segment = file.read(10)
        if len(segment) < 10 or segment[0] != 0xFF:  # noqa: PLR2004
            return False
        if segment[1] in _SEQUENTIAL:
            components = segment[9]
        if segment[1] == _START_OF_SCAN:
            return segment[4] == components
        # Any number of 0xFF may come before a marker.
        is_fill = segment[1] == 0xFF  # noqa: PLR2004
        at += 1 if is_fill else 2 + int.from_bytes(segment[2:4], "big")
    return False


_TILE_SIDES: Final = (322, 323)
"""TIFF's tags TileWidth and TileLength."""


def _sizes(image: ImageFile) -> list[Size]:
    """Width and height of what is decoded: the image and a tile of a TIFF, which may be larger."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, height = (int(tags.get(side, 0)) for side in _TILE_SIDES)
    return [image.size, (width, height)]


def _sizes_of_icons(file: BinaryIO) -> list[Size]:
    """Width and height of each image in an ``.ico`` by its own header; the directory may lie.

    Empty for anything else.
    """
    start = file.read(6)
    if start[:4] != b"\0\0\1\0":
        return []
    (count,) = struct.unpack_from("<H", start, 4)
    directory = file.read(16 * count)
    sizes = []
    for entry in range(count):
        file.seek(struct.unpack_from("<I", directory, 16 * entry + 12)[0])
        header = file.read(24)
        if len(header) < 24:  # noqa: PLR2004 - nothing that could be decoded
            continue
        is_png = header.startswith(b"\x89PNG")
        width, height = struct.unpack_from(">II" if is_png else "<ii", header, 16 if is_png else 4)
        sizes.append((abs(width), abs(height)))
    return sizes


@contextmanager
def _readable(name: str, source: Path | bytes = b"") -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except NotRegularError as error:
        message = f"cannot read {name}: {error.strerror}\nexpected an image file"
        raise ImageError(message, message) from error
    # Pillow's readers let whatever they trip over escape: OSError, SyntaxError, struct.error ...
    except Exception as error:
        is_new = "HEIF" not in readable_formats() and _is_heic(source)
        expected = "expected a complete JPEG, PNG, WebP, TIFF or other image"
        reason = f"{type(error).__name__}: {_first_line(error)}"
        hint = f"; {NEEDS_HEIF}" if is_new else ""
        raise ImageError(
            f"cannot read {name}\n{reason}\n{expected} that Pillow reads{hint}",
            f"cannot read the image\n{reason}\n{expected}{', HEIC is not read' if is_new else ''}",
        ) from error


def _is_heic(source: Path | bytes) -> bool:
    """By the brand in its first box, whatever it is called."""
    try:
        with _opened(source) as file:
            start = file.read(12)
    except OSError:
        return False
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


_STRIP_PIXELS: Final = 2**20
"""Pixels that are converted at once: what a conversion needs beside its result stays small."""


_BITS_PER_SAMPLE: Final = 258
"""Tag of TIFF 6.0, section 8."""


def _require_known_range(image: Image) -> None:
    """Refuse a TIFF of 32-bit integers: of its values alone nobody knows which one is white."""
    bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (0,)))
    if image.mode == "I" and bits > 16:  # noqa: PLR2004
        raise ValueError(_NO_RANGE)


_NO_RANGE: Final = "greyscale pixels of more than 16 bits have no fixed range"


def _to_rgb(image: Image) -> Image:
    """RGB pixels of ``image``; beside the two there is only ever a strip of another kind."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        return _by_strips(image, _from_wide_grey)
    if image.has_transparency_data:
        return _by_strips(image, _on_white)
    # convert() would copy pixels that are RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_strips(image: Image, convert: Callable[[Image], Image]) -> Image:
    from PIL import Image as Pillow

    image.load()
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    result = Pillow.new("RGB", image.size)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        result.paste(convert(strip), (0, top))
    return result


def _on_white(image: Image) -> Image:
    """Transparent pixels before white; convert("RGB") alone shows the colour under them."""
    from PIL import Image as Pillow

    rgba = image.convert("RGBA")
    white = Pillow.new("RGBA", rgba.size, "white")
    return Pillow.alpha_composite(white, rgba).convert("RGB")


def _from_wide_grey(image: Image) -> Image:
    """16-bit greyscale, which Pillow also holds in 32 bits; its own conversion clips at 255."""
    from PIL import Image as Pillow

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ValueError(_NO_RANGE)
    # 65535 = 255 x 257: division with rounding to the nearest.
    return Pillow.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")

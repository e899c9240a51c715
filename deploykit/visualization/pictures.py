"""Arrays as pictures: crops, sheets, signed values, maps of heat; and as PNG files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.visualization.receptive_field import Box

    Pixels = NDArray[np.uint8]

GREY: Final = 128
"""Of what lies outside an image, and of a value of 0 where values have signs."""

_GAP_PX: Final = 2
_GAP: Final = 24
"""Darkness of gaps between tiles: grey is a value of its own."""

_COLOURS: Final = 3

_WARM: Final = ((0, 0, 0), (120, 28, 109), (237, 105, 37), (252, 255, 164))
"""Corners of matplotlib's "inferno": lightness grows with the value, also without colours."""

_COOL: Final = ((0, 0, 0), (20, 60, 140), (60, 150, 220), (200, 240, 255))
"""The same for values below 0."""


def png(pixels: Pixels) -> bytes:
    """A PNG file of (H, W, 3) or (H, W) pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def cut(pixels: Pixels, box: Box, size: tuple[int, int]) -> Pixels:
    """The part ``box`` of an image (H, W, 3) on a tile of ``size``.

    A box that is smaller, at an edge of the image, lies on the tile as it lies in the full field of
    which it is the part inside the image; the rest is grey.
    """
    height, width = size
    tile = np.full((height, width, _COLOURS), GREY, np.uint8)
    part = pixels[box.top : box.bottom + 1, box.left : box.right + 1]
    top = _offset(box.top, box.bottom, pixels.shape[0], height)
    left = _offset(box.left, box.right, pixels.shape[1], width)
    tile[top : top + part.shape[0], left : left + part.shape[1]] = part
    return tile


def _offset(first: int, last: int, image: int, tile: int) -> int:
    room = tile - (last - first + 1)
    if first > 0 and last == image - 1:
        return 0  # what is missing lies behind the image's end
    return room if first == 0 and last < image - 1 else room // 2


def scaled_to(pixels: Pixels, least: int, most: int) -> Pixels:
    """The picture with its longer side within these bounds; enlarged by a whole number only.

    >>> scaled_to(np.zeros((5, 3, 3), np.uint8), 32, 64).shape
    (35, 21, 3)
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer < least:
        factor = -(least // -longer)
        return pixels.repeat(factor, 0).repeat(factor, 1)
    if longer <= most:
        return pixels
    size = (max(1, width * most // longer), max(1, height * most // longer))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def sheet(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Tiles (h, w, 3) of one size in rows of ``columns``, with a dark gap between them."""
    height, width = tiles[0].shape[:2]
    rows = -(len(tiles) // -columns)
    across = min(columns, len(tiles))
    whole = np.full(
        (rows * (height + _GAP_PX) - _GAP_PX, across * (width + _GAP_PX) - _GAP_PX, _COLOURS),
        _GAP,
        np.uint8,
    )
    for at, tile in enumerate(tiles):
        top, left = (at // columns) * (height + _GAP_PX), (at % columns) * (width + _GAP_PX)
        whole[top : top + height, left : left + width] = tile
    return whole


def signed(values: NDArray[Any], largest: float | None = None) -> Pixels:
    """Values (C, H, W) or (H, W) around grey: 0 is grey, ``largest`` white, its negative black.

    >>> signed(np.array([[-2.0, 0.0, 1.0]]))[0].tolist()
    [[0, 0, 0], [128, 128, 128], [192, 192, 192]]
    """
    most = float(np.abs(values).max()) if largest is None else largest
    unit = values / most if most > 0 else np.zeros_like(values)
    whole = np.clip(np.rint(GREY + unit * GREY), 0, 255).astype(np.uint8)
    if whole.shape[:-2] == (_COLOURS,):
        return np.ascontiguousarray(whole.transpose(1, 2, 0))
    return np.stack([whole.reshape(whole.shape[-2:])] * _COLOURS, axis=-1)


def heat(pixels: Pixels, values: NDArray[np.float32], largest: float) -> Pixels:
    """A map (h, w) laid over a picture (H, W, 3): warm where it is positive, blue where negative.

    ``largest`` is the value of the full colour, so that several maps can share one scale. The
    picture is grey below, and the map is enlarged to it.
    """
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    unit = _enlarged(values, pixels.shape[:2]) / (largest if largest > 0 else 1)
    strength = np.clip(np.abs(unit), 0, 1)
    colour = np.where((unit >= 0)[..., None], _ramp(strength, _WARM), _ramp(strength, _COOL))
    share = (0.75 * strength**0.7)[..., None]
    mixed = (1 - share) * grey[..., None] + share * colour
    whole: Pixels = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return whole


def _enlarged(values: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
    from PIL import Image

    height, width = size
    if values.shape == (height, width):
        return values
    shown = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(shown.resize((width, height), Image.Resampling.BILINEAR))


def _ramp(unit: NDArray[Any], corners: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
    places = np.linspace(0, 1, len(corners))
    channels = zip(*corners, strict=True)
    return np.stack([np.interp(unit, places, channel) for channel in channels], axis=-1)

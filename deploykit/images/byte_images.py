"""Prepared images as the bytes that they were made of, and back.

Images (N, C, H, W) in FP32 come from pixels of 0 to 255 by the arithmetic of `preprocess`, which
can be undone: two pixels are never nearer than a step of 1 / 255 of the deviation. So whatever was
compared on prepared images can be compared again on the bytes, without the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.core.sizes import CHANNELS_FIRST, CHANNELS_LAST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.core.specs import PixelInput, Preprocessing


def bytes_of(images: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The pixels nearest to prepared ``images`` (N, C, H, W), as ``preprocessing.pixels`` has them.

    >>> from deploykit.core.specs import PixelInput, Preprocessing
    >>> look = Preprocessing((1, 1), pixels=PixelInput())
    >>> bytes_of(floats_of(np.array([[[[1, 128, 255]]]], np.uint8), look), look).tolist()
    [[[[1, 128, 255]]]]
    """
    mean, std = _channels(preprocessing)
    pixels = np.rint((images * std + mean) * 255)
    whole = np.clip(pixels, 0, 255).astype(np.uint8)
    return arranged(whole, _pixels_of(preprocessing), preprocessing.channel_order)


def floats_of(images: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Prepared images (N, C, H, W) of bytes as ``preprocessing.pixels`` has them, by numpy."""
    pixels = _pixels_of(preprocessing)
    if pixels.layout == "nhwc":
        images = images.transpose(CHANNELS_FIRST)
    if pixels.order != preprocessing.channel_order:
        images = images[:, ::-1]
    mean, std = _channels(preprocessing)
    # In the order and the precision of `preprocess`, so that both agree to the last bit.
    found = np.ascontiguousarray(images).astype(np.float32)
    found /= np.float32(255)
    found -= mean
    found /= std
    return found


def arranged(
    images: NDArray[np.uint8], pixels: PixelInput, channel_order: str
) -> NDArray[np.uint8]:
    """Bytes (N, C, H, W) in ``channel_order`` as ``pixels`` has them."""
    if pixels.order != channel_order:
        images = images[:, ::-1]
    if pixels.layout == "nhwc":
        images = images.transpose(CHANNELS_LAST)
    return np.ascontiguousarray(images)


def _pixels_of(preprocessing: Preprocessing) -> PixelInput:
    if preprocessing.pixels is None:
        raise ValueError("the preprocessing is that of a graph that takes prepared images")
    return preprocessing.pixels


def _channels(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean, std = (
        np.array(each, np.float32)[:, None, None]
        for each in (preprocessing.mean, preprocessing.std)
    )
    return mean, std

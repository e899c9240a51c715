"""One RGB image to the numbers that a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from deploykit.core.choices import CHANNEL_ORDERS, GREY_ORDER, channels_text, of_bytes, to_unit
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.sizes import GREY, RGB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from deploykit.core.specs import PixelInput, Preprocessing

INTERPOLATIONS: Final = ("bilinear", "bicubic", "nearest", "lanczos")

MAX_RESIZED_PIXELS: Final = 89_478_485
"""Pillow's own default limit for one image (`PIL.Image.MAX_IMAGE_PIXELS`)."""


def preprocess(image: Image, preprocessing: Preprocessing, *, pad: bool = True) -> NDArray[Any]:
    """Scale, crop, divide by 255 and normalise one RGB image to float32 (C, H, W).

    Bit for bit what torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` give
    for a Pillow image: the longer side is rounded down, downscaling is antialiased, and a crop
    larger than the image is filled up with black before normalising; not with ``pad=False``. For
    a network that takes BGR the channels change places before they are normalised. For one that
    takes grey the image is made grey first of all, as ``Grayscale(1)`` in front of ``Resize`` does
    it; behind it, or behind ``CenterCrop``, the same comes out for a file that is grey already,
    and for others levels of 0 to 255 that differ by a rounding. Where ``preprocessing`` has
    ``pixels``, the graph does what comes after the crop: the image is uint8, (H, W, C) or
    (C, H, W), and no number of it is a float.

    Raises:
        UsageError: the image is not RGB, or ``preprocessing`` makes no sense.
        DataError: the image is so narrow that scaling its shorter side makes it enormous, the crop
            is, or the image is smaller than the crop where it may not be filled up.
    """
    check_preprocessing(preprocessing)
    if image.mode != "RGB":
        raise UsageError(
            f"an image of mode {image.mode!r} was given\nexpected 'RGB', as decode() returns it"
        )
    if preprocessing.channel_order == GREY_ORDER:
        image = image.convert("L")  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    resized = _resize(image, preprocessing)
    if not pad:
        _require_covered(resized, preprocessing.crop)
    cropped = _center_crop(resized, preprocessing.crop)
    if preprocessing.pixels is not None:
        return _as_bytes(cropped, preprocessing.pixels)
    channels = _array_of(cropped).transpose(2, 0, 1)
    if preprocessing.channel_order == "bgr":
        channels = channels[::-1]
    pixels = np.ascontiguousarray(channels).astype(np.float32)
    # In torchvision's order and in FP32: one combined multiply-add would round differently.
    pixels /= np.float32(255)
    pixels -= np.array(preprocessing.mean, np.float32)[:, None, None]
    pixels /= np.array(preprocessing.std, np.float32)[:, None, None]
    return pixels


def _array_of(image: Image) -> NDArray[np.uint8]:
    """The pixels (H, W, C); Pillow has those of a grey image as (H, W)."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _as_bytes(image: Image, wanted: PixelInput) -> NDArray[np.uint8]:
    pixels = _array_of(image)
    if wanted.order == "bgr":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels if wanted.layout == "nhwc" else pixels.transpose(2, 0, 1))


def preprocess_array(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[Any]:
    """Same as ``preprocess``, for RGB pixels (H, W, 3), or grey ones (H, W, 1) or (H, W).

    Raises:
        UsageError: not uint8 or not of that shape, or ``preprocessing`` makes no sense.
        DataError: as ``preprocess``.
    """
    if not are_pixels(pixels):
        raise UsageError(
            f"an image of {pixels.dtype} {pixels.shape} was given\n"
            "expected uint8 (H, W, 3), RGB, or grey (H, W, 1) or (H, W)"
        )
    return preprocess(rgb_of(pixels), preprocessing)


def are_pixels(pixels: NDArray[Any]) -> bool:
    """Whether it is one image uint8: (H, W, 3), or grey (H, W, 1) or (H, W).

    >>> [are_pixels(np.zeros(shape, np.uint8)) for shape in ((4, 4, 3), (4, 4), (3, 4, 4))]
    [True, True, False]
    """
    is_laid_out = pixels.ndim == 2 or pixels.shape[2:] in ((RGB,), (GREY,))  # noqa: PLR2004
    return pixels.dtype == np.uint8 and is_laid_out and pixels.size > 0


def rgb_of(pixels: NDArray[np.uint8]) -> Image:
    """An image in RGB of `are_pixels`; grey ones have three equal channels."""
    from PIL import Image

    is_grey = pixels.shape[2:] == (GREY,)
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    # convert() would copy pixels that are RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def pixels_before(prepared: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of an image that `preprocess` made (C, H, W), as they were before.

    >>> from deploykit.core.specs import Preprocessing
    >>> grey = np.zeros((3, 1, 1), np.float32)
    >>> pixels_before(grey, Preprocessing((1, 1), mean=(0.5, 0.25, 0), std=(1, 1, 1)))
    array([[[128,  64,   0]]], dtype=uint8)
    """
    mean, std = (np.asarray(each, np.float32) for each in (preprocessing.mean, preprocessing.std))
    pixels = np.transpose(prepared, (1, 2, 0)) * std + mean
    if preprocessing.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    whole: NDArray[np.uint8] = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return whole if whole.shape[-1] == RGB else whole.repeat(RGB, axis=-1)


def check_preprocessing(preprocessing: Preprocessing) -> None:
    """Check that the steps can be applied to an image at all.

    Raises:
        UnknownNameError: unknown interpolation or channel order.
        UsageError: a size below 1, a standard deviation of 0, or a mean or deviation of pixels of
            0 to 255.
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
    orders = CHANNEL_ORDERS
    if preprocessing.channel_order not in orders:
        raise UnknownNameError(
            "channel order", preprocessing.channel_order, orders, ", ".join(orders)
        )
    _require_unit_scale(preprocessing)


def _require_unit_scale(preprocessing: Preprocessing) -> None:
    """Every pixel would become nearly the same number, whatever the image."""
    mean, std = preprocessing.mean, preprocessing.std
    if of_bytes(mean, std):
        converted = [
            channels_text(to_unit(each) if of_bytes(each) else each) for each in (mean, std)
        ]
        raise UsageError(
            f"mean {channels_text(mean)}, std {channels_text(std)} are not of pixels of 0 to 1\n"
            f"if they are of 0 to 255: mean {converted[0]} and std {converted[1]}\n"
            "give them for this network: --mean and --std"
        )


@dataclass(frozen=True, slots=True)
class InputRange:
    """Smallest and largest value of prepared images, and how many images they are of."""

    min: float
    max: float
    images: int

    @classmethod
    def of(cls, batches: Iterable[NDArray[Any]]) -> Self:
        """The range of ``batches`` (N, C, H, W), of which one is held at a time.

        >>> InputRange.of([np.array([[[[-2.0, 0.5]]]]), np.array([[[[1.5]]], [[[0.0]]]])])
        InputRange(min=-2.0, max=1.5, images=3)
        """
        found = [(batch.min(), batch.max(), len(batch)) for batch in batches]
        lowest, highest, counts = zip(*found, strict=True)
        return cls(float(min(lowest)), float(max(highest)), sum(counts))


_USUAL_WIDTHS: Final = ((0.8, 25.0), (200.0, 300.0))
"""Differences between the values of white and of black that trainings use.

1 of pixels of 0 to 1, 2 of -1 to 1, 3 to 6 where a standard deviation divides, 20 where it does so
twice (EfficientNet of transformers), 255 of pixels as they are.
"""

_FROM_ZERO_WIDTHS: Final = ((0.8, 1.3), (200.0, 300.0))
"""The same where black becomes 0: no training divides without a mean that is subtracted."""

_EDGE: Final = 0.01
"""Of the difference: how near a mean must be to black or white to be that end itself."""

_RED_AND_BLUE: Final = (0.485, 0.406)
_SAME_MEAN: Final = 0.005
"""ImageNet's means of red and blue, and how far those of Caffe and CLIP are from them."""


def doubts(preprocessing: Preprocessing) -> list[str]:
    """What no training is known to do, in words; empty where there is nothing.

    >>> from deploykit.core.specs import Preprocessing
    >>> doubts(Preprocessing((224, 224)))
    []
    >>> doubts(Preprocessing((224, 224), mean=(0, 0, 0), std=(0.017, 0.017, 0.017)))
    ['black to white becomes 0 to 58.8, a range that no training is known to use: usual are 0 to \
1, -1 to 1, about -2.1 to 2.6, and 0 to 255; as in training? --mean --std']
    """
    mean, std, found = preprocessing.mean, preprocessing.std, []
    # 0.0 is added so that no end is -0.
    ends = [(end - m) / s + 0.0 for end in (0.0, 1.0) for m, s in zip(mean, std, strict=True)]
    if not _is_usual(mean, std):
        found.append(
            f"black to white becomes {min(ends):.3g} to {max(ends):.3g}, a range that no training "
            "is known to use: usual are 0 to 1, -1 to 1, about -2.1 to 2.6, and 0 to 255; as in "
            "training? --mean --std"
        )
    return [*found, *_swapped_colours(preprocessing), *_black_edges(preprocessing)]


def _swapped_colours(preprocessing: Preprocessing) -> list[str]:
    """A sentence where the means of red and blue are in the places of each other."""
    mean = preprocessing.mean
    if len(mean) != RGB:
        return []
    first, last = ("red", "blue") if preprocessing.channel_order == "rgb" else ("blue", "red")
    other = _RED_AND_BLUE if first == "blue" else _RED_AND_BLUE[::-1]
    if all(abs(a - b) < _SAME_MEAN for a, b in zip((mean[0], mean[2]), other, strict=True)):
        known = f"the mean of {first}, {mean[0]:.3g}, is ImageNet's of {last}"
        order = f"with --channel-order {preprocessing.channel_order}"
        return [f"{known}: {order} the first of --mean and --std is {first}"]
    return []


def _is_usual(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether 0 lies between the ends, or at the lower one, and these are as far as usual."""
    # The share of the range that is below 0; a negative std turns black and white round.
    shares = [m if s > 0 else 1 - m for m, s in zip(mean, std, strict=True)]
    widths = _FROM_ZERO_WIDTHS if max(shares) <= _EDGE else _USUAL_WIDTHS
    far = all(any(low <= abs(1 / s) <= high for low, high in widths) for s in std)
    return far and min(shares) >= -_EDGE and max(shares) < 1 - _EDGE


def _black_edges(preprocessing: Preprocessing) -> list[str]:
    """A sentence where every image is scaled to less than what is cut out of it."""
    height, width = preprocessing.crop
    match preprocessing.resize:
        case int(shorter):
            is_small, size = shorter < min(height, width), f"{shorter} pixels (the shorter side)"
        case (down, across):
            is_small, size = down < height or across < width, f"{down} x {across}"
        case _:
            return []
    if not is_small:
        return []
    known = f"images are scaled to {size} and cut to {height} x {width}"
    return [f"{known}: the rest is black, as in training? --resize {min(height, width)} or more"]


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
    # The pixel limit is for what a file has, not for what an image is scaled to; and Pillow scales
    # all rows to the new width first.
    for rows in (height, image.height):
        if width * rows > MAX_RESIZED_PIXELS:
            raise DataError(
                f"an image of {image.width} x {image.height} would be scaled to {width} x {rows}\n"
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
    if height * width > MAX_RESIZED_PIXELS:
        raise DataError(
            f"crop {crop} has {height * width:,} pixels\nexpected at most {MAX_RESIZED_PIXELS:,}"
        )
    left, top = _start(image.width, width), _start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _start(have: int, want: int) -> int:
    return -((want - have) // 2) if want > have else round((have - want) / 2)

"""Images as a program has them: files, bytes, Pillow images, arrays, batches of a data loader."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import numpy as np

from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.errors import UsageError
from deploykit.core.sizes import GREY, RGB
from deploykit.images.decoding import decode, to_rgb
from deploykit.images.pixel_limit import require_max_pixels
from deploykit.images.preprocessing import are_pixels, rgb_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from deploykit.core.specs import Preprocessing

    ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]


EXPECTED: Final = (
    "expected paths, encoded bytes, Pillow images or uint8 arrays (H, W, 3), (H, W, 1) or (H, W)"
)


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
        image = self._images[index]
        if isinstance(image, str | os.PathLike):
            return decode(Path(image), self.max_pixels, reduce_for=self.reduce_for)
        if isinstance(image, bytes):
            return decode(image, self.max_pixels, reduce_for=self.reduce_for)
        if isinstance(image, np.ndarray):
            return rgb_of(image)
        with self._loading:
            return to_rgb(image)


def is_one_image(given: Any) -> bool:
    """True for a single image: a path, bytes, a Pillow image, an array without a batch axis."""
    if isinstance(given, np.ndarray):
        return given.ndim != 4  # noqa: PLR2004 - (N, H, W, C)
    return isinstance(given, str | os.PathLike | bytes) or _is_pillow(given)


def _require_image(index: int, image: Any) -> None:
    if isinstance(image, np.ndarray):
        if not are_pixels(image):
            raise UsageError(f"image {index} is {image.dtype} {image.shape}\n{EXPECTED}")
    elif not isinstance(image, str | os.PathLike | bytes) and not _is_pillow(image):
        raise UsageError(f"image {index} is of type {type(image).__name__}\n{EXPECTED}")


def _is_pillow(image: Any) -> bool:
    from PIL.Image import Image as PillowImage

    return isinstance(image, PillowImage)


class PreparedTensors:
    """An `ImageSet` of images that are prepared for the model already: float32 (N, C, H, W).

    They are what the transforms of a training script give. Nothing is done to them any more.
    """

    labels = None
    classes = None

    def __init__(self, tensors: Sequence[NDArray[np.float32]]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes and values in order."""
        each = (sha256_of_bytes(repr(one.shape).encode() + one.tobytes()) for one in self._tensors)
        return sha256_of_bytes("".join(each).encode())

    def load(self, index: int) -> Image:
        """Refuses: there are no pixels any more.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"image {index} is a tensor that is prepared for a model\n"
            "expected pixels here: give the images as they are before the transforms"
        )

    def prepared(self, index: int, preprocessing: Preprocessing) -> NDArray[np.float32]:
        """The tensor (C, H, W), if ``preprocessing`` could have made it.

        Raises:
            UsageError: it has another size, or values that no pixel of 0 to 1 has after the mean
                and the deviation of ``preprocessing``.
        """
        tensor = self._tensors[index]
        wanted = preprocessing.image_shape
        if tensor.shape != wanted:
            raise UsageError(
                f"image {index} is a tensor {tensor.shape}, the model takes {wanted}\n"
                "give tensors of that size, or images as they are before the transforms"
            )
        _require_range(index, tensor, preprocessing)
        return tensor


_SLACK: Final = 1e-3
"""Share of the range by which rounding, as in FP16, may leave it."""


def _require_range(index: int, tensor: NDArray[np.float32], preprocessing: Preprocessing) -> None:
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    low, high = np.sort([(0 - mean) / std, (1 - mean) / std], axis=0)
    slack = _SLACK * (high - low)
    least, largest = tensor.min(axis=(1, 2)), tensor.max(axis=(1, 2))
    # Written so that NaN is refused too.
    fits = (least >= low - slack) & (largest <= high + slack)
    if not fits.all():
        channel = int(np.argmin(fits))
        raise UsageError(
            f"image {index} is a tensor of values from {least[channel]:.4g} to "
            f"{largest[channel]:.4g} in channel {channel}\n"
            f"with the mean {_text(mean)} and deviation {_text(std)} of the model's preprocessing "
            f"pixels give {low[channel]:.4g} to {high[channel]:.4g} there\n"
            "say mean and std as your transforms have them, or give images before the transforms"
        )


def _text(values: NDArray[np.float64]) -> str:
    return ",".join(f"{value:g}" for value in values)


_KEYS: Final = ("pixel_values", "images", "image", "input", "x")
"""Where the dicts of data loaders have the images; the first is Hugging Face's."""


def images_of(given: Iterable[Any], count: int) -> GivenImages | PreparedTensors:
    """``count`` images of any iterable: of a sequence spread evenly over it, otherwise the first.

    No more of it is consumed. Its entries are images, as `GivenImages` takes them, or batches of
    them: uint8 (N, H, W, C), or float32 tensors (N, C, H, W) that are prepared for the model, of
    three channels or one. A batch may stand in a tuple with its labels, or in a dict. Tensors of
    torch may be on any device.

    Raises:
        UsageError: not an iterable, nothing in it, a mixture of images and prepared tensors, or
            something else.
    """
    array = _to_array(given)
    is_one = is_one_image(given) if array is None else array.ndim < 4  # noqa: PLR2004 - (N, ...)
    if is_one or isinstance(given, dict):
        raise UsageError(f"the images are one {type(given).__name__}\n{_EXPECTED_BATCHES}")
    found = list(islice(_each_image(_entries(given, count)), count))
    if not found:
        raise UsageError(f"there is no image in the {type(given).__name__}\n{_EXPECTED_BATCHES}")
    prepared = [isinstance(one, np.ndarray) and one.dtype != np.uint8 for one in found]
    if all(prepared):
        return PreparedTensors(found)
    if any(prepared):
        raise UsageError(f"some images are prepared tensors, others not\n{_EXPECTED_BATCHES}")
    return GivenImages(found)


_EXPECTED_BATCHES: Final = (
    "expected a folder, or an iterable of images or of batches: uint8 (N, H, W, C), or float "
    "tensors (N, C, H, W) as the model takes them, of 3 channels or 1"
)


def _entries(given: Any, count: int) -> Iterable[Any]:
    """Of a sequence, as torch's data sets are, not the first ones: those may be of one class."""
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        spread = np.linspace(0, len(given) - 1, min(count, len(given))).round().astype(int)
        return (given[int(index)] for index in spread)
    if not hasattr(given, "__iter__"):
        raise UsageError(f"the images are {type(given).__name__}\n{_EXPECTED_BATCHES}")
    return cast("Iterable[Any]", given)


def _each_image(given: Iterable[Any]) -> Iterator[Any]:
    for index, entry in enumerate(given):
        if is_one_image(entry) and not isinstance(entry, np.ndarray):
            yield entry
        else:
            yield from _of_batch(index, entry)


def _of_batch(index: int, entry: Any) -> Iterator[Any]:
    """The images of one entry: an image (H, W, C) or (C, H, W), or a batch of them."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in _KEYS if key in entry), None)
    elif isinstance(entry, list) and entry and all(map(_is_image, entry)):
        for one in entry:
            yield from _of_batch(index, one)
        return
    # A batch and its labels, as torchvision's data sets give them.
    elif isinstance(entry, tuple | list) and entry:
        entry = entry[0]
    if is_one_image(entry) and not isinstance(entry, np.ndarray):
        yield entry
        return
    array = _to_array(entry)
    if array is None or array.ndim not in (2, 3, 4):
        raise UsageError(f"entry {index} is {_described(entry, array)}\n{_EXPECTED_BATCHES}")
    if array.dtype == np.uint8:
        yield from _bytes_of(array)
    elif array.dtype.kind == "f" and array.shape[-3:-2] in _CHANNELS:
        yield from np.ascontiguousarray(array, np.float32).reshape(-1, *array.shape[-3:])
    else:
        raise UsageError(f"entry {index} is {_described(entry, array)}\n{_EXPECTED_BATCHES}")


def _is_image(entry: Any) -> bool:
    """Whether it is a single image, and no batch and no labels."""
    array = _to_array(entry)
    if array is None:
        return is_one_image(entry)
    is_laid_out = array.shape[:1] in _CHANNELS or array.shape[-1:] in _CHANNELS
    return array.ndim == 3 and is_laid_out  # noqa: PLR2004 - (H, W, C) or (C, H, W)


def _bytes_of(array: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Images (H, W, C) or (H, W); torch keeps the channels first."""
    if array.shape[-1:] not in _CHANNELS and array.shape[-3:-2] in _CHANNELS:
        array = np.moveaxis(array, -3, -1)
    is_batch = array.ndim == 4  # noqa: PLR2004 - (N, H, W, C)
    yield from np.ascontiguousarray(array) if is_batch else (np.ascontiguousarray(array),)


_CHANNELS: Final = ((RGB,), (GREY,))
"""What the axis of the channels can be, as a part of a shape."""


def _to_array(entry: Any) -> NDArray[Any] | None:
    """An array of numpy's; of a tensor of torch its values, which is not imported for it."""
    if isinstance(entry, np.ndarray):
        return entry
    if hasattr(entry, "detach") and hasattr(entry, "cpu"):
        host = entry.detach().cpu()
        # numpy has no bfloat16.
        return np.asarray(host.float() if host.is_floating_point() else host)
    return None


def _described(entry: Any, array: NDArray[Any] | None) -> str:
    return type(entry).__name__ if array is None else f"{array.dtype} {array.shape}"

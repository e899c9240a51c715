"""Pixel limit: how many pixels an image may have, known from its header before it is decoded.

A file says nothing of the memory that it takes: 343 KB of PNG hold 177 million grey pixels. So the
pixels are limited, not the bytes, and a service limits those of all images that it decodes at once.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.core.specs import Preprocessing

MAX_PIXELS: Final = 89_478_485
"""Limit where no model is known: Pillow's own default (`PIL.Image.MAX_IMAGE_PIXELS`)."""

_LEAST: Final = 50_000_000
"""Limit of small models: no camera of a phone or a newspaper is refused (48 and 50 megapixels)."""

_TIMES: Final = 256
"""Pixels of an image for each one that the model sees: 16 times as wide and as high."""


def default_max_pixels(preprocessing: Preprocessing) -> int:
    """Pixels that an image may have for a model, if the user does not say.

    Beyond 256 times the pixels that the resize keeps an image adds nothing that the model could
    see. It is never below 50 million, which cameras give, nor above Pillow's own limit.

    >>> from deploykit.core.specs import Preprocessing
    >>> [default_max_pixels(Preprocessing((size, size), size)) for size in (224, 512, 1024)]
    [50000000, 67108864, 89478485]
    """
    return min(max(_TIMES * _kept(preprocessing), _LEAST), MAX_PIXELS)


def _kept(preprocessing: Preprocessing) -> int:
    """Pixels of the image that the crop is cut from, if it is square."""
    height, width = preprocessing.crop
    match preprocessing.resize:
        case int(shorter):
            height, width = shorter, shorter
        case (tall, wide):
            height, width = tall, wide
    return height * width


def least_side(preprocessing: Preprocessing) -> int | None:
    """Shorter side in pixels that an image must keep where it is decoded at a part of its size.

    Twice that of the resize, so that its antialiasing has pixels to take the mean of. ``None``
    where nothing is resized: the crop of a smaller image would show another part of it.

    >>> from deploykit.core.specs import Preprocessing
    >>> sizes = (256, (300, 200), None)
    >>> [least_side(Preprocessing((224, 224), size)) for size in sizes]
    [512, 600, None]
    """
    match preprocessing.resize:
        case None:
            return None
        case int(shorter):
            return 2 * shorter
        case exact:
            return 2 * max(exact)  # EXIF may exchange the image's sides


def require_max_pixels(max_pixels: int | None) -> None:
    """Refuse a limit that no image is within.

    Raises:
        UsageError: ``max_pixels`` is below 1.
    """
    if max_pixels is not None and max_pixels < 1:
        raise UsageError(f"max_pixels={max_pixels} lets no image through\nexpected 1 or more")


class PixelBudget:
    """Pixels that all threads together may decode at once; the others wait.

    Small images go side by side and large ones one after the other, so that memory does not grow
    with the number of threads.
    """

    def __init__(self, total: int) -> None:
        require_max_pixels(total)
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait for room for ``pixels``; more than the total take all of it."""
        taken = min(pixels, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()

"""Encoded images to what a model takes, in threads, within a limit of pixels."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit import images
from deploykit.core.errors import ImageError
from deploykit.serving.refusals import Reason, RefusedError, invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing
    from deploykit.serving.metrics import ModelMetrics

    IsGone = Callable[[], Awaitable[bool]]

LARGE: Final = 4
"""An image is large from this part of the pixel limit on: those of most telephones are not."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How one model takes images: its preprocessing, its limit of pixels, where times go."""

    steps: Preprocessing
    max_pixels: int
    metrics: ModelMetrics


class Decoder:
    """The threads that decode for all models of a service.

    Images above a quarter of their model's limit are decoded one after the other, the smaller ones
    beside them, together within ``max_pixels``: memory is that of two images of the limit.
    """

    def __init__(self, max_pixels: int) -> None:
        self._budget = images.PixelBudget(max_pixels)
        # Large images wait for one another, so that whoever sends many holds up nobody else.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        self._large_turn = asyncio.Lock()
        self._small = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._is_closing = False

    async def prepare(self, encoded: bytes, how: Preparation, is_gone: IsGone) -> NDArray[Any]:
        """What the model takes for one image; ``is_gone`` is asked after a wait.

        Raises:
            ImageError: it is no image, or one beyond the limit.
            RefusedError: it is one in base64, its sender has gone, or the service is stopping.
        """
        if not encoded:
            raise invalid("an image of 0 bytes came\nexpected a JPEG, PNG or other image file")
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._small, self._pixels_of, encoded, how)
        if pixels > how.max_pixels:  # its header refuses it: it waits for nobody
            return await loop.run_in_executor(self._small, self._prepare, encoded, how)
        if pixels <= how.max_pixels // LARGE:
            return await loop.run_in_executor(self._small, self._beside, encoded, how, pixels)
        async with self._large_turn:
            if await is_gone():  # nobody waits for what a client left behind
                raise invalid("the client went away")
            return await loop.run_in_executor(self._large, self._prepare, encoded, how)

    def close(self) -> None:
        """Decode nothing more; what is being decoded is waited for."""
        self._is_closing = True
        for pool in (self._small, self._large):
            pool.shutdown(cancel_futures=True)

    def _pixels_of(self, encoded: bytes, how: Preparation) -> int:
        try:
            return images.pixels_of(encoded, how.max_pixels, reduce_for=how.steps)
        except ImageError as error:
            if not _is_image_in_base64(encoded):
                raise
            raise invalid(
                "an image came as text in base64: send its bytes, or in JSON say it in the "
                'input\'s parameters: {"content_type": "base64"}'
            ) from error

    def _prepare(self, encoded: bytes, how: Preparation) -> NDArray[Any]:
        if self._is_closing:
            raise RefusedError(Reason.STOPPING, "the service is stopping")
        with how.metrics.timed("decode"):
            image = images.decode(encoded, how.max_pixels, reduce_for=how.steps)
        with how.metrics.timed("preprocess"):
            return images.preprocess(image, how.steps)

    def _beside(self, encoded: bytes, how: Preparation, pixels: int) -> NDArray[Any]:
        # Held until the pixels are gone: only what the model takes, which is small, goes on.
        with self._budget.hold(pixels):
            return self._prepare(encoded, how)


def _is_image_in_base64(encoded: bytes) -> bool:
    """Whether it is the text of an image file, of which the header alone is read."""
    try:
        images.pixels_of(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ImageError):
        return False
    return True

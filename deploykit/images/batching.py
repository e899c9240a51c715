"""Batches of preprocessed images, decoded ahead in threads, and validation's samples."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar

import numpy as np

from deploykit.core.errors import DataError, TooManyPixelsError, UsageError
from deploykit.images.decoding import is_reduced
from deploykit.images.given import PreparedTensors
from deploykit.images.pixel_limit import default_max_pixels
from deploykit.images.preprocessing import check_preprocessing, preprocess
from deploykit.images.sets import FileImages, name_of, open_images, sample_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing
    from deploykit.images.sets import ImageSet

    Indexed = tuple[int, NDArray[np.float32] | None]


T = TypeVar("T")

ON_CORRUPT: Final = ("raise", "skip")

MAX_THREADS: Final = 8
"""Most decoding threads: each may hold one decoded image at full size."""


def batches(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    batch: int,
    indices: Iterable[int] | None = None,
    on_corrupt: Literal["raise", "skip"] = "raise",
    *,
    pad: bool = True,
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """Preprocessed images (N, C, H, W) with their indices in the set, in order.

    Every batch is a new array of ``batch`` images; only the last may be smaller. About one batch
    is prepared ahead. With ``on_corrupt="skip"`` an unreadable image is left out, its index is
    missing and the next image takes its place.

    Args:
        image_set: where the images come from.
        preprocessing: steps that are applied to each.
        batch: how many images go together.
        indices: which images, in which order; all when not given.
        on_corrupt: whether an unreadable image raises or is skipped.
        pad: whether an image smaller than the crop is filled up with black; without, it counts as
            unreadable.

    Raises:
        UsageError: a batch below 1, an index that the set does not have, or preprocessing that
            makes no sense; raised by the call itself, before the first image.
        DataError: an image cannot be read, unless such images are skipped.
    """
    check_preprocessing(preprocessing)
    if batch < 1:
        raise UsageError(f"a batch of {batch} images was asked\nexpected at least 1")
    if on_corrupt not in ON_CORRUPT:
        raise UsageError(f"on_corrupt={on_corrupt!r} is unknown\nexpected 'raise' or 'skip'")
    chosen = _known_indices(image_set, indices)
    source = within_limit(image_set, preprocessing)

    def load(index: int) -> Indexed:
        try:
            return index, prepare(source, index, preprocessing, pad=pad)
        except DataError:
            if on_corrupt == "raise":
                raise
            return index, None

    # This function is no generator, so that the checks above run in the call, not at the first
    # image.
    loaded = load_ahead(load, chosen, ahead=batch)
    return _grouped(((index, image) for index, image in loaded if image is not None), batch)


def within_limit(image_set: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    """``image_set`` decoding its files for the model, with a fitting limit if it has none yet."""
    if not isinstance(image_set, FileImages):
        return image_set
    limit = image_set.max_pixels or default_max_pixels(preprocessing)
    return replace(image_set, max_pixels=limit, reduce_for=preprocessing)


def notes_on_reduced(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    indices: Iterable[int] | None = None,
    what: str = "images",
) -> list[str]:
    """How many images are decoded at a part of their size; reads the headers of the files.

    Nothing where there are none. ``what`` is how the note calls the images of ``indices``.
    """
    limited = within_limit(image_set, preprocessing)
    if not isinstance(limited, FileImages):
        return []
    chosen = list(range(len(limited)) if indices is None else indices)
    count = sum(is_reduced(limited.paths[at], limited.max_pixels, preprocessing) for at in chosen)
    if not count:
        return []
    were, their = ("was", "its") if count == 1 else ("were", "their")
    part = f"at a half or a quarter of {their} width and height"
    limit = f"a JPEG above the limit of {limited.max_pixels:,} pixels; --max-pixels raises it"
    return [f"{count} of {len(chosen)} {what} {were} decoded {part}: {limit}"]


@dataclass(frozen=True)
class Unusable:
    """The images of a set that `prepare` refuses, by index, and of how many they are."""

    errors: Mapping[int, DataError]
    count: int

    @classmethod
    def of(
        cls,
        image_set: ImageSet,
        preprocessing: Preprocessing,
        indices: Sequence[int],
        *,
        pad: bool = True,
    ) -> Self:
        """Prepare every image of ``indices`` and keep what goes wrong."""
        source = within_limit(image_set, preprocessing)

        def error_of(index: int) -> tuple[int, DataError | None]:
            try:
                prepare(source, index, preprocessing, pad=pad)
            except DataError as error:
                return index, error
            return index, None

        found = load_ahead(error_of, indices, ahead=1)
        errors = {index: error for index, error in found if error is not None}
        return cls(errors, len(indices))

    def error(self, image_set: ImageSet, remedy: str) -> DataError:
        """One error for all, by their names in ``image_set``; ``remedy`` says what to do."""
        named = ", ".join(name_of(image_set, index) for index in list(self.errors)[:_NAMED])
        more = " ..." if len(self.errors) > _NAMED else ""
        first = str(next(iter(self.errors.values()))).splitlines()[0]
        errors = self.errors.values()
        large = [each.pixels for each in errors if isinstance(each, TooManyPixelsError)]
        hint = ""
        if large:
            are = "1 has" if len(large) == 1 else f"{len(large)} have"
            hint = f"; {are} too many pixels: scale down, or --max-pixels {max(large)}"
        return DataError(
            f"{len(self.errors)} of {self.count} images cannot be used: {named}{more}\n"
            f"the first one: {first}\n{remedy}{hint}"
        )


_NAMED: Final = 3
"""Images that a message names."""


def prepare(
    image_set: ImageSet, index: int, preprocessing: Preprocessing, *, pad: bool = True
) -> NDArray[np.float32]:
    """One image of a set as the model takes it, (C, H, W).

    Raises:
        DataError: it cannot be read, has too many pixels, or `preprocess` refuses it.
    """
    if isinstance(image_set, PreparedTensors):
        return image_set.prepared(index, preprocessing)
    image = within_limit(image_set, preprocessing).load(index)
    return preprocess(image, preprocessing, pad=pad)


def _known_indices(image_set: ImageSet, indices: Iterable[int] | None) -> list[int]:
    count = len(image_set)
    chosen = list(range(count)) if indices is None else [int(index) for index in indices]
    unknown = [index for index in chosen if not 0 <= index < count]
    if unknown:
        raise UsageError(
            f"image {unknown[0]} was asked of a set of {count}\nexpected 0 to {count - 1}"
        )
    return chosen


def load_ahead(load: Callable[[int], T], indices: Iterable[int], ahead: int) -> Iterator[T]:
    """Results of ``load`` for each index, in order, computed by threads about ``ahead`` early."""
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    waiting = iter(indices)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="deploykit-images")
    try:
        # Two per thread at least: a thread that has finished one finds the next.
        first = islice(waiting, max(ahead, 2 * threads))
        pending = deque(pool.submit(load, index) for index in first)
        while pending:
            loaded = pending.popleft().result()
            # Before the yield, so that the threads go on while the caller works on this result.
            pending.extend(pool.submit(load, following) for following in islice(waiting, 1))
            yield loaded
    finally:
        # Also when the caller stops early: no image is decoded that nobody will take.
        pool.shutdown(cancel_futures=True)


def _grouped(
    images: Iterator[tuple[int, NDArray[np.float32]]], batch: int
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    while group := list(islice(images, batch)):
        yield np.stack([image for _, image in group]), [index for index, _ in group]


BATCHES: Final = (1, 2, 5)
"""Batch sizes that reveal a batch frozen into the graph: 1, the exporter's own, and a prime."""


def batch_sizes(fixed: int | None) -> tuple[int, ...]:
    """Sizes of the batches in which outputs are compared, for a graph that may insist on one.

    Of a small one there are several, so that there are as many images as of any other graph.

    >>> batch_sizes(None), batch_sizes(3), batch_sizes(32)
    ((1, 2, 5), (3, 3, 3), (32,))
    """
    return BATCHES if fixed is None else (fixed,) * -(-sum(BATCHES) // fixed)


def sample_indices(available: int, wanted: int) -> list[int]:
    """Indices spread evenly over a set, all where there are fewer than ``wanted``.

    >>> sample_indices(9, 3), sample_indices(2, 8)
    ([0, 4, 8], [0, 1])
    """
    spread = np.linspace(0, available - 1, min(wanted, available)).round().astype(int)
    return [int(index) for index in spread]


def sample_batches(
    preprocessing: Preprocessing,
    data: Path | None,
    sizes: tuple[int, ...] = BATCHES,
    max_pixels: int | None = None,
) -> list[NDArray[np.float32]]:
    """Batches (N, C, H, W) of the given sizes, of images spread evenly over ``data``.

    Without ``data`` they are the photographs that come with deploykit. Where there are fewer
    images than places, they are taken again from the start.

    Raises:
        DataError: the images cannot be read.
    """
    source = open_images(data, max_pixels) if data is not None else sample_images()
    needed = sum(sizes)
    chosen = sample_indices(len(source), needed)
    loaded = [batch for batch, _ in batches(source, preprocessing, len(chosen), indices=chosen)]
    # np.resize repeats the images from the start; ndarray.resize would fill up with zeros.
    stack = np.resize(np.concatenate(loaded), (needed, *loaded[0].shape[1:]))
    ends = np.cumsum(sizes)[:-1].tolist()
    return [np.ascontiguousarray(part) for part in np.split(stack, ends)]

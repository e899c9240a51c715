"""Receptive fields: the pixels of an image that each position of a map depends on.

Dumoulin, Visin 2016, "A guide to convolution arithmetic for deep learning",
https://arxiv.org/abs/1603.07285, has the arithmetic of windows. Here it is not solved for sizes
and strides, but applied to every position of an axis, so that padding, rounded-up pooling,
dilation, slices and branches of different reach are exact at the edges too. Rows and columns are
followed apart: only where one of several branches lies wholly in the padding, in one axis, do its
pixels in the other axis count all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

NOTHING: Final = np.iinfo(np.int64).max
"""First pixel of a position that depends on none, as one in the padding; its last is -1."""


class Window(NamedTuple):
    """How a convolution or pooling moves along one axis; ``padding`` is that before the axis."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


class Box(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of an image, ends included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top + 1

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left + 1


@dataclass(frozen=True, eq=False)
class AxisField:
    """First and last pixel (``low``, ``high``) of the image for each position of one axis.

    >>> field = AxisField.of_image(5).windowed(Window(3, stride=2, padding=1), 3)
    >>> field.low.tolist(), field.high.tolist()
    ([0, 1, 3], [1, 3, 4])
    """

    low: Indices
    high: Indices

    @classmethod
    def of_image(cls, size: int) -> Self:
        """Each pixel depends on itself."""
        return cls(np.arange(size), np.arange(size))

    @classmethod
    def whole(cls, positions: int, size: int) -> Self:
        """Each of ``positions`` depends on all ``size`` pixels."""
        return cls(np.zeros(positions, np.int64), np.full(positions, size - 1, np.int64))

    def __len__(self) -> int:
        return len(self.low)

    def taken(self, indices: Indices) -> AxisField:
        """The positions ``indices``; one outside the axis depends on nothing, as padding does."""
        inside = (indices >= 0) & (indices < len(self))
        at = np.where(inside, indices, 0)
        return AxisField(
            np.where(inside, self.low[at], NOTHING), np.where(inside, self.high[at], -1)
        )

    def united(self, *others: AxisField) -> AxisField:
        """What each position depends on, of several maps; one of a single position is for all."""
        fields = (self, *others)
        low, high = self.low, self.high
        for other in fields[1:]:
            low, high = np.minimum(low, other.low), np.maximum(high, other.high)
        return AxisField(low, high)

    def windowed(self, window: Window, count: int) -> AxisField:
        """Behind a convolution or pooling with ``count`` outputs along the axis."""
        start = np.arange(count) * window.stride - window.padding
        taps = [self.taken(start + tap * window.dilation) for tap in range(window.kernel)]
        return taps[0].united(*taps[1:])

    def transposed(self, window: Window, count: int) -> AxisField:
        """Behind a transposed convolution with ``count`` outputs along the axis."""
        low, high = np.full(count, NOTHING), np.full(count, -1)
        for tap in range(window.kernel):
            at = np.arange(len(self)) * window.stride - window.padding + tap * window.dilation
            inside = (at >= 0) & (at < count)
            np.minimum.at(low, at[inside], self.low[inside])
            np.maximum.at(high, at[inside], self.high[inside])
        return AxisField(low, high)

    def pooled_to(self, count: int) -> AxisField:
        """Behind adaptive pooling to ``count`` positions, as torch cuts its windows."""
        spans = [
            (at * len(self) // count, -((at + 1) * len(self) // -count)) for at in range(count)
        ]
        low = np.array([self.low[start:end].min() for start, end in spans])
        return AxisField(low, np.array([self.high[start:end].max() for start, end in spans]))

    def joined(self, others: Sequence[AxisField]) -> AxisField:
        """Several maps one behind the other along the axis."""
        low, high = zip(*((each.low, each.high) for each in (self, *others)), strict=True)
        return AxisField(np.concatenate(low), np.concatenate(high))

    def resampled(self, positions: NDArray[np.float64], reach: int) -> AxisField:
        """Behind an interpolation that reads 2 x ``reach`` neighbours of each position.

        0 is the nearest one before. Neighbours beyond the edge are the one at the edge.
        """
        first = np.floor(positions).astype(np.int64)
        if reach == 0:
            return self.taken(np.clip(first, 0, len(self) - 1))
        # A neighbour of weight 0, where the position is a pixel's own, is not read.
        exact = positions == first
        steps = range(1 - reach, reach + 1)
        clipped = [np.clip(first + step * ~exact, 0, len(self) - 1) for step in steps]
        taps = [self.taken(each) for each in clipped]
        return taps[0].united(*taps[1:])


@dataclass(frozen=True, eq=False)
class MapField:
    """What the positions of a map (H, W) depend on, in an image of ``image`` = (height, width).

    ``reason`` says why every position depends on the whole image, where one operation made it so;
    ``rows`` and ``columns`` are ``None`` where the positions are not known any more.
    """

    image: tuple[int, int]
    rows: AxisField | None
    columns: AxisField | None
    reason: str | None = None

    def box(self, row: int, column: int) -> Box:
        """The pixels that one position depends on; the whole image where that is not known."""
        if self.rows is None or self.columns is None:
            return Box(0, 0, self.image[0] - 1, self.image[1] - 1)
        edges = (
            (int(axis.low[at]), int(axis.high[at]))
            for axis, at in ((self.rows, row), (self.columns, column))
        )
        (top, bottom), (left, right) = edges
        return Box(top, left, bottom, right)

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest box: positions at an edge have smaller ones."""
        if self.rows is None or self.columns is None:
            return self.image
        height, width = (
            int(max(0, (axis.high - axis.low).max() + 1)) if len(axis) else 0
            for axis in (self.rows, self.columns)
        )
        return height, width

    @property
    def is_whole(self) -> bool:
        """Whether every position depends on the whole image."""
        if self.rows is None or self.columns is None:
            return True
        axes = zip((self.rows, self.columns), self.image, strict=True)
        return all(
            bool((axis.low <= 0).all() and (axis.high == size - 1).all()) for axis, size in axes
        )

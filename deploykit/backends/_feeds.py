"""Checks of a runner's feeds against what its model takes, before native code sees them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.specs import TensorSpec


class Feed(Protocol):
    """An array, wherever it lies."""

    @property
    def dtype(self) -> Any:
        """Of its numbers, as numpy has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


def check_feeds(model: str, feeds: Mapping[str, Feed], inputs: Sequence[TensorSpec]) -> None:
    """Compare names, types and shapes; ``model`` is for the message.

    It stands before every call in production: about two microseconds for one input.

    Raises:
        UsageError: an input is missing, unknown, or of another type or shape.
    """
    for spec in inputs:
        array = feeds.get(spec.name)
        if array is None or len(feeds) != len(inputs):
            names = sorted(spec.name for spec in inputs)
            raise UsageError(f"{model} was fed {sorted(feeds)}, it takes {names}")
        if array.dtype != _dtype(spec.dtype) or not _fits(array.shape, spec.shape):
            raise UsageError(
                f"input {spec.name!r} of {model} was fed {array.dtype} {array.shape}, "
                f"it takes {spec.dtype} {spec.shape_text}"
            )


@cache
def _dtype(name: str) -> np.dtype[Any]:
    """The type of that name; "void", which no model takes, for what numpy does not have."""
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(np.void)  # None would be equal to float64


def _fits(got: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether the sizes agree where ``expected`` is a number; a name stands for any size."""
    if got[1:] == expected[1:]:  # the usual case: nothing but the batch is open
        return got[:1] == expected[:1] or (bool(got) and isinstance(expected[0], str))
    pairs = zip(got, expected, strict=False)
    return len(got) == len(expected) and all(isinstance(e, str) or g == e for g, e in pairs)

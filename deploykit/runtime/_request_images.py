"""What a caller hands to the batcher, checked before it can touch anybody else's batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from deploykit.runtime.inputs import Input

_IMAGE_DIMS: Final = 3
_NUMBERS: Final = "fiub"
"""numpy's kinds of type that hold plain numbers: float, signed, unsigned, boolean."""


def as_images(
    images: ArrayLike, expected: Input | None, max_batch: int
) -> tuple[NDArray[Any], bool]:
    """Images (n, C, H, W), without a copy where possible, and whether one (C, H, W) was given.

    Raises:
        UsageError: no array of numbers in host memory, not such a shape, more than ``max_batch``
            images, or not what the model takes (see `Input.host_array`).
    """
    array = _as_array(images)
    is_single = array.ndim == _IMAGE_DIMS
    batch = array[None] if is_single else array
    got = f"a request of {array.dtype} {array.shape}"
    if batch.ndim != _IMAGE_DIMS + 1 or not batch.size:
        raise UsageError(f"{got}\nexpected one image (C, H, W) or some (n, C, H, W)")
    if len(batch) > max_batch:
        raise UsageError(
            f"{got} is larger than max_batch={max_batch}\nsplit it, or give it to the model itself"
        )
    return (batch if expected is None else expected.host_array(batch)), is_single


def _as_array(images: ArrayLike) -> NDArray[Any]:
    import numpy as np

    try:
        array = np.asarray(images)
    # What an array of another package raises is its own: a CUDA tensor of torch a TypeError ...
    except Exception as error:
        raise UsageError(
            f"a request of {type(images).__name__} is not an array in host memory\n{error}"
        ) from error
    if array.dtype.kind not in _NUMBERS:
        raise UsageError(
            f"a request of {type(images).__name__} with elements of type {array.dtype}\n"
            "expected numbers, as the model takes them"
        )
    return array

"""What ``cuda.core`` raises, told apart from errors of our own."""

from __future__ import annotations

from typing import Final

_OUT_OF_MEMORY: Final = "CUDA_ERROR_OUT_OF_MEMORY"


def cuda_failure(error: BaseException) -> str | None:
    """The driver's name for a failed call with its explanation; ``None`` for another exception.

    The class has no public place in ``cuda.core`` 1.2, so it is known by its name; the message
    begins with the driver's own constant.

    >>> cuda_failure(ValueError("x")) is None
    True
    """
    if any(kind.__name__ == "CUDAError" for kind in type(error).__mro__):
        return " ".join(str(error).split())
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the driver had no memory to give, on the GPU or page-locked."""
    return (cuda_failure(error) or "").startswith(_OUT_OF_MEMORY)

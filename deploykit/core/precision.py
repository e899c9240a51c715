"""The precisions that a graph can have."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


class Precision(StrEnum):
    """What the arithmetic of a graph runs in; a property of the ONNX file, not of the build."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

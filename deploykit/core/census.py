"""The words of an engine's precision census, in which a manifest says what its layers compute in.

A census counts layers by kind and type, as ``{"CONVOLUTION HALF": 53, "POOLING HALF": 2}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAVY_KINDS: Final = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layer kinds that hold nearly all multiplications: they decide what an engine's precision is."""

PRECISIONS: Final[Mapping[str, Precision]] = {
    "FLOAT": Precision.FP32,
    "HALF": Precision.FP16,
    "INT8": Precision.INT8,
}
"""Our precisions by the compilers' names of them."""

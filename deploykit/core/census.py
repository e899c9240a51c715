"""The words of an engine's precision census, in which a manifest says what its layers compute in.

A census counts layers by kind and type, as ``{"CONVOLUTION HALF": 53, "POOLING HALF": 2}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.core.precision import OWN, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAVY_KINDS: Final = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layer kinds that hold nearly all multiplications: they decide what an engine's precision is."""

PRECISIONS: Final[Mapping[str, Precision]] = {
    type_name: precision for precision in OWN for type_name in precision.facts.census.needed
}
"""Our precisions by the compilers' names of them."""


def label_of(type_name: str) -> str:
    """The precision that is proven by a type of the compiler, or the type where it is none of ours.

    >>> label_of("HALF"), label_of("INT64")
    ('fp16', 'INT64')
    """
    return str(PRECISIONS.get(type_name, type_name))

"""Precision of a graph or a node by the ONNX types of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.core.precision import OWN, Precision

if TYPE_CHECKING:
    from collections.abc import Set

    import onnx_ir as ir

_FLOATS: Final = tuple(each for each in OWN if not each.facts.quantized)
_QUANTIZED: Final = tuple(each for each in OWN if each.facts.quantized)
_ZERO_POINT: Final = 2


def stored_precision(types: Set[ir.DataType | None]) -> Precision:
    """The precision of a graph without Q/DQ pairs whose weights are of ``types``, the narrowest."""
    names = {dtype.name for dtype in types if dtype is not None}
    found = (each for each in reversed(_FLOATS) if each.facts.element_type in names)
    return next(found, Precision.FP32)


def precision_of_type(dtype: ir.DataType | None) -> Precision:
    """The precision of arithmetic whose result is of ``dtype``.

    A floating-point type that is no precision's own counts as the one of its width, and what is
    left as FP32.
    """
    if dtype is None or not dtype.is_floating_point():
        return Precision.FP32
    exact = (each for each in _FLOATS if each.facts.element_type == dtype.name)
    wide = (each for each in _FLOATS if each.facts.operand_bits == dtype.bitwidth)
    return next(exact, None) or next(wide, Precision.FP32)


def quantized_precision(node: ir.Node) -> Precision:
    """The precision of arithmetic behind a QuantizeLinear or DequantizeLinear, by its zero point.

    Without one it is INT8, as for a type that is no precision's own.
    """
    zero = node.inputs[_ZERO_POINT] if len(node.inputs) > _ZERO_POINT else None
    name = None if zero is None or zero.dtype is None else zero.dtype.name
    exact = (each for each in _QUANTIZED if each.facts.element_type == name)
    return next(exact, Precision.INT8)

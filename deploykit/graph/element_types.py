"""The precision of a graph, and of one node, by the types of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from deploykit.core.precision import OWN, Precision

if TYPE_CHECKING:
    from collections.abc import Set

_FLOATS: Final = tuple(each for each in OWN if not each.facts.quantized)
_QUANTIZED: Final = tuple(each for each in OWN if each.facts.quantized)
_ZERO_POINT: Final = 2
_BF16: Final = ir.DataType.BFLOAT16


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
    """The precision of arithmetic behind a QuantizeLinear or DequantizeLinear.

    It is that of its zero point; without one, of what it restores or makes. A type that is no
    precision's own counts as INT8.
    """
    zero = node.inputs[_ZERO_POINT] if len(node.inputs) > _ZERO_POINT else None
    if zero is None:
        zero = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    name = None if zero is None or zero.dtype is None else zero.dtype.name
    exact = (each for each in _QUANTIZED if each.facts.element_type == name)
    return next(exact, Precision.INT8)


def declared_precision(model: ir.Model) -> Precision:
    """The precision of a file that does not say it: of its first Q/DQ pair, or of its weights."""
    steps = [node for node in model.graph.all_nodes() if node.op_type == "QuantizeLinear"]
    if steps:
        return quantized_precision(steps[0])
    weights = model.graph.initializers.values()
    return stored_precision({value.dtype for value in weights})


def has_bf16(model: ir.Model) -> bool:
    """Whether any value, or a cast, is of BF16."""
    return any(
        _casts_to_bf16(node) or any(value.dtype is _BF16 for value in node.outputs)
        for node in model.graph.all_nodes()
    ) or any(value.dtype is _BF16 for value in model.graph.initializers.values())


def _casts_to_bf16(node: ir.Node) -> bool:
    """Whether it says so itself: files need not have the types of values between nodes."""
    to = node.attributes.get("to") if node.op_type == "Cast" else None
    return to is not None and to.as_int() == _BF16

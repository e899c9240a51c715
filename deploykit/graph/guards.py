"""Guards: constants that keep the operand of a division, a root or a logarithm away from 0.

FP16 loses a guard of 1e-12 at once. One of 1e-4 it has, but not its square, and what a division by
it gives may pass 65504: so a guard is followed to what it guards, as the value that is left where
everything else is 0. The one image that needs it would give NaN.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from deploykit.graph.half_range import (
    FP16_MAX,
    FP16_NORMAL,
    Unfit,
    array_of,
    guarded_operands,
    is_constant,
    number_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir


_PASSING: Final = frozenset(
    {
        "Abs", "Add", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "Cast", "Celu",
        "CenterCropPad", "Clip", "Compress", "Concat", "DepthToSpace", "Dropout", "Elu", "Erf",
        "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu",
        "GlobalAveragePool", "GlobalMaxPool", "GridSample", "HardSwish", "Identity", "LeakyRelu",
        "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "Pow", "ReduceL2",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize",
        "ReverseSequence", "RoiAlign", "Selu", "Sin", "Sinh", "Slice", "Softsign",
        "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sum", "Tan", "Tanh", "ThresholdedRelu",
        "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators through which a guard reaches what it guards."""

_GUARDING: Final = frozenset({"Add", "Clip", "Max", "Sub", "Where"})
_LONGEST_WAY: Final = 8
"""Nodes between a guard and what it guards; in the norms that people write there are up to six."""


def vanishing_guards(model: ir.Model) -> Unfit:
    """Nodes between a guard that FP16 cannot hold and what it guards, each with the reason.

    A guard is a constant that keeps the operand of a division, a root or a logarithm away from 0:
    1e-12 is 0 in FP16, and the one image that needs it gives NaN. Where the guarded operator is an
    inverse, the image that needs the guard makes its result too large for FP16 as well.
    """
    found: dict[str, str] = {}
    values: dict[str, str] = {}
    for node in model.graph:
        tiny = _tiny_constant(node)
        if tiny is None:
            continue
        for way in _ways(node, (node,)):
            operand = f"the operand of {way[-1].op_type} {way[-1].name}"
            reason = f"{tiny:.3g} keeps {operand} from 0, and FP16 loses it"
            for each in way:
                found.setdefault(str(each.name), reason)
            if _is_inverse(way[-1]):
                name = str(way[-1].outputs[0].name)
                values[name] = f"{name} may pass 65504 where {tiny:.3g} is all that is left"
    return Unfit(values, found)


def lost_below_one(model: ir.Model, dtype: np.dtype) -> Unfit:
    """Nodes between a bound that ``dtype`` rounds to 1 and what 1 minus it guards.

    A probability of at most 1 - 1e-5 leaves 1e-5 for the divisor of a logit; in FP16 it leaves 0.
    """
    found: dict[str, str] = {}
    values: dict[str, str] = {}
    for node in model.graph:
        bound = _bound_below_one(node, dtype)
        readers = [use for value in node.outputs for use in value.uses()]
        complements = [use.node for use in readers if use.node.op_type == "Sub" and use.idx == 1]
        for complement in complements if bound is not None else ():
            for way in _ways(complement, (node, complement)):
                operand = f"the operand of {way[-1].op_type} {way[-1].name}"
                reason = (
                    f"1 - {bound:.6g} keeps {operand} from 0, and rounding makes 1 of {bound:.6g}"
                )
                found.update({str(each.name): reason for each in way})
                if _is_inverse(way[-1]):
                    values[str(way[-1].outputs[0].name)] = reason
    return Unfit(values, found)


def _bound_below_one(node: ir.Node, dtype: np.dtype) -> float | None:
    places = {"Clip": (2,), "Min": range(len(node.inputs))}.get(node.op_type, ())
    numbers = [number_of(node.inputs[at]) for at in places if at < len(node.inputs)]
    lost = [n for n in numbers if n is not None and 0 < n < 1 and np.array(n).astype(dtype) == 1]
    return min(lost, default=None)


def _is_inverse(node: ir.Node) -> bool:
    if node.op_type == "Div":
        # A logarithm of a ratio is read as that of an inverse: its divisor is 0 where it is large.
        is_logit = any(use.node.op_type == "Log" for use in node.outputs[0].uses())
        return is_logit or (node.inputs[0] is not None and is_constant(node.inputs[0]))
    exponent = number_of(node.inputs[1]) if node.op_type == "Pow" else None
    return node.op_type == "Reciprocal" or (exponent is not None and exponent < 0)


def reaches_guarded(value: ir.Value) -> bool:
    """Whether a division, a root or a logarithm depends on ``value`` being no 0."""
    node = value.producer()
    return node is not None and any(True for _ in _ways(node, (node,)))


def _tiny_constant(node: ir.Node) -> float | None:
    if node.op_type not in _GUARDING:
        return None
    for value in node.inputs:
        data = array_of(value)
        if data is not None and data.size and data.dtype.kind == "f":
            largest = float(np.abs(data).max())
            if 0 < largest < FP16_NORMAL:
                return largest
    return None


def _ways(node: ir.Node, way: tuple[ir.Node, ...]) -> Iterator[tuple[ir.Node, ...]]:
    """Ways from the last node of ``way`` to the first guarded operator on each."""
    if len(way) > _LONGEST_WAY:
        return
    for value in node.outputs:
        for reader, index in value.uses():
            if index in guarded_operands(reader) or _is_ratio(reader, index):
                yield (*way, reader)
            # The root of a guarded sum is guarded too, and a division by the root needs it.
            if reader.op_type in _PASSING:
                yield from _ways(reader, (*way, reader))


def _is_ratio(node: ir.Node, index: int) -> bool:
    """Whether an operand is divided by another value: (a + 1e-8) / (b + 1e-8) is 1 of two zeros."""
    divisor = node.inputs[1] if node.op_type == "Div" and index == 0 else None
    return divisor is not None and not is_constant(divisor)


# --- what makes a number that is guarded


def makers_of_guarded(model: ir.Model, unfit: Unfit) -> Unfit:
    """Nodes between an operand that stays FP32, because nothing of it may vanish, and its makers.

    The squares of values of 1e-4 are 0 in FP16, and so is a sum of them in FP32, which comes too
    late: it is the square that must not be rounded. ``unfit`` tells which operands stay FP32.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        for index in guarded_operands(node):
            value = node.inputs[index]
            if value is None or not (
                str(node.name) in unfit.nodes or str(value.name) in unfit.values
            ):
                continue
            reason = f"the operand of {node.op_type} {node.name} is made of it, and must not vanish"
            for each in _back_to_makers(value):
                found.setdefault(str(each.name), reason)
    return Unfit({}, found)


_MAKING: Final = frozenset(
    {
        "Div", "Einsum", "Exp", "Mul", "Pow", "Reciprocal", "ReduceL2", "ReduceSumSquare",
        "Sigmoid", "Softmax",
    }
)  # fmt: skip
"""Operators whose results may be far smaller than what they are made of."""

_ALIKE: Final = frozenset(
    {
        "Abs", "AveragePool", "Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather",
        "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "ReduceL2",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Slice",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that leave a guard alone as it is, or nearly so."""

_HANDING_ON: Final = _ALIKE | {
    "Add", "Clip", "Max", "Mean", "Min", "Neg", "ReduceL1", "Sqrt", "Sub", "Sum", "Where",
}  # fmt: skip
"""Operators whose results are about as small as what they are made of."""


def _back_to_makers(value: ir.Value, steps: int = _LONGEST_WAY) -> list[ir.Node]:
    """The nodes from ``value`` back to what makes small numbers; none where nothing does."""
    node = value.producer()
    if node is None or node.domain or not steps:
        return []
    operands = [each for each in node.inputs if each is not None and not is_constant(each)]
    is_scaling = node.op_type in {"Div", "Mul"} and len(operands) == 1
    is_product = node.op_type == "MatMul" and len(operands) > 1
    if is_product or (node.op_type in _MAKING and not is_scaling):
        return [node]
    if node.op_type not in _HANDING_ON and not is_scaling:
        return []
    before = [each for operand in operands for each in _back_to_makers(operand, steps - 1)]
    return [node, *before] if before else []


# --- guards that FP16 has, and loses on the way


_LARGEST_GUARD: Final = 1.0
"""From here on a constant that is added is no guard."""


class _Step(NamedTuple):
    """A node that reads ``level``, all that is left of its operand, and makes ``result`` of it."""

    way: tuple[ir.Node, ...]
    operand: int
    level: float
    result: float


def weak_guards(model: ir.Model) -> Unfit:
    """What loses a guard on the way to what it guards, or may pass 65504 where it alone is left.

    (x + 1e-4) ** 2 is 1e-8 where x is 0, and 0 in FP16; 10 / (x + 1e-4) is 1e5.
    """
    nodes: dict[str, str] = {}
    values: dict[str, str] = {}
    for node in model.graph:
        guard = _guard_of(node)
        if guard is None:
            continue
        for step in _steps((node,), guard):
            last = step.way[-1]
            if step.level < FP16_NORMAL <= guard and step.operand in guarded_operands(last):
                reason = (
                    f"{guard:.3g} is {step.level:.3g} where it keeps the operand of "
                    f"{last.op_type} {last.name} from 0, and FP16 loses it"
                )
                for each in step.way:
                    nodes.setdefault(str(each.name), reason)
            if step.result > FP16_MAX:
                name = str(last.outputs[0].name)
                values[name] = f"{name} may pass 65504 where {guard:.3g} is all that is left"
    return Unfit(values, nodes)


def _guard_of(node: ir.Node) -> float | None:
    """The least value that a node lets pass, where that is a small one; ``None`` of others."""
    places = {"Clip": (1,), "Sub": (1,), "Where": (1, 2)}.get(node.op_type, (0, 1))
    if node.op_type not in _GUARDING:
        return None
    numbers = [number_of(node.inputs[at]) for at in places if at < len(node.inputs)]
    sign = -1 if node.op_type == "Sub" else 1
    guards = [sign * number for number in numbers if number is not None]
    small = [guard for guard in guards if 0 < guard < _LARGEST_GUARD]
    return min(small, default=None)


def _steps(way: tuple[ir.Node, ...], level: float) -> Iterator[_Step]:
    """Each node that the guard reaches alone, with what is left before and behind it."""
    if len(way) > _LONGEST_WAY:
        return
    for value in way[-1].outputs:
        for reader, index in value.uses():
            result = _left(reader, index, level)
            step = _Step((*way, reader), index, level, 0.0 if result is None else result)
            yield step
            if result is not None and 0 < result < inf:
                yield from _steps(step.way, result)


def _left(node: ir.Node, index: int, level: float) -> float | None:
    """What is left of ``level`` behind a node; ``None`` where it depends on other values."""
    is_alike = node.op_type in _ALIKE and (index == 0 or node.op_type == "Concat")
    if is_alike or (node.op_type == "Clip" and index == 0):
        return level
    if node.op_type in {"Pow", "Reciprocal", "Sqrt"}:
        return _power(node, index, level)
    if node.op_type not in {"Add", "Div", "Max", "Mul"}:
        return None
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return level * level
    other = array_of(node.inputs[1 - index])
    if other is None or other.dtype.kind != "f":
        return None
    sizes = np.abs(other.astype(np.float64))
    sizes = sizes[sizes < inf]  # the infinities of a mask leave nothing of a guard
    return _with_constant(node.op_type, index, level, sizes) if sizes.size else None


def _power(node: ir.Node, index: int, level: float) -> float | None:
    exponent = {"Reciprocal": -1.0, "Sqrt": 0.5}.get(node.op_type)
    if exponent is None:
        exponent = number_of(node.inputs[1])
    if exponent is None or index:
        return None
    size = exponent * log(level)
    return inf if size > _LOG_END else exp(max(size, -_LOG_END))


_LOG_END: Final = 700.0
"""Beyond it FP64 ends, too."""


def _with_constant(op_type: str, index: int, level: float, sizes: np.ndarray) -> float | None:
    """The largest that is left where numbers of ``sizes`` are the other operand."""
    largest, least = float(sizes.max()), float(sizes.min())
    if op_type == "Mul":
        return level * largest
    if op_type == "Div":
        divisor, dividend = (least, level) if index == 0 else (level, largest)
        return dividend / divisor if divisor else None
    return level + largest if op_type == "Add" else max(level, largest)

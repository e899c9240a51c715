"""Growth of values with the activations before them: the headroom that FP16 needs for each.

Images that were not seen may go higher than the samples. Where an activation grows by a factor, a
cube of it grows by the third power of that factor, and its exponential by a power of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.graph.half_range import is_constant, number_of, terms_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    import onnx_ir as ir

_BOUNDED: Final = frozenset(
    {
        "Cos", "Erf", "GroupNormalization", "HardSigmoid", "InstanceNormalization",
        "LayerNormalization", "LogSoftmax", "RMSNormalization", "Sigmoid", "Sin", "Softmax",
        "Softsign", "Tanh",
    }
)  # fmt: skip
"""Operators whose results do not grow with their inputs."""

_CARRYING: Final = frozenset(
    {
        "Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Div", "Dropout", "Elu", "Expand",
        "Flatten", "Gather", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSwish",
        "Identity", "LeakyRelu", "Max", "MaxPool", "Mean", "Min", "Neg", "PRelu", "Pad",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Slice",
        "Softplus", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators whose results grow as their inputs do."""

_LARGEST_POWER: Final = 16.0
"""Beyond it any headroom leaves nothing of FP16's range."""


def growth(model: ir.Model) -> dict[str, float]:
    """By which power each computed value grows with the activations before it, by name.

    Two for a square, three for a cube or a product of three. A convolution, a matrix product or a
    norm begins again with one. What grows by less than its inputs counts as one.
    """
    power: dict[ir.Value, float] = {}
    for node in model.graph:
        found = _power_of(node, power)
        power.update(dict.fromkeys(node.outputs, found))
    return {str(value.name): min(max(1.0, found), _LARGEST_POWER) for value, found in power.items()}


def _power_of(node: ir.Node, power: Mapping[ir.Value, float]) -> float:
    given = [power.get(v, 1.0) for v in node.inputs if v is not None and not is_constant(v)]
    if node.op_type in _BOUNDED:
        return 0.0
    if node.op_type == "Mul":
        return sum(given)
    if node.op_type == "Pow" and given:
        exponent = number_of(node.inputs[1])
        return given[0] * (1.0 if exponent is None else max(exponent, 0.0))
    if node.op_type == "Sqrt":
        return max(given, default=1.0) / 2
    if node.op_type == "ReduceProd":
        return max(given, default=1.0) * (terms_of(node) or _LARGEST_POWER)
    return max(given, default=1.0) if node.op_type in _CARRYING else 1.0


def exponentials(model: ir.Model, amax: Mapping[str, float]) -> frozenset[str]:
    """Names of values whose headroom is a power of themselves: an Exp, and what grows with one.

    An Exp that stays within 1 on the samples, as in a softmax by hand, makes nothing grow.
    """
    found: set[ir.Value] = set()
    growing: set[ir.Value] = set()
    for node in model.graph:
        if _is_exponential(node):
            found.update(node.outputs)
            growing.update(v for v in node.outputs if amax.get(str(v.name), 0.0) > 1)
        elif _grows_with(node, growing) or _is_inverse_of(node, growing):
            # A sigmoid by hand is an inverse, too, and stays within 1.
            growing.update(v for v in node.outputs if amax.get(str(v.name), 0.0) > 1)
    return frozenset(str(value.name) for value in found | growing)


def _is_exponential(node: ir.Node) -> bool:
    base, exponent = (*node.inputs, None, None)[:2]
    if node.op_type == "Pow" and base is not None and exponent is not None:
        return is_constant(base) and not is_constant(exponent)
    return node.op_type == "Exp"


def _is_inverse_of(node: ir.Node, growing: Set[ir.Value]) -> bool:
    if node.op_type == "Div" and node.inputs[0] is not None:
        return is_constant(node.inputs[0]) and node.inputs[1] in growing
    return node.op_type == "Reciprocal" and node.inputs[0] in growing


def _grows_with(node: ir.Node, growing: Set[ir.Value]) -> bool:
    if node.domain or node.op_type not in _CARRYING | {"Mul", "Pow", "ReduceProd", "Sqrt"}:
        return False
    if node.op_type == "Pow":
        return node.inputs[0] in growing and (number_of(node.inputs[1]) or 0.0) > 0
    if node.op_type == "Div":  # of two of them the quotient need not grow, as in a softmax
        return node.inputs[0] in growing and node.inputs[1] not in growing
    return any(value in growing for value in node.inputs)

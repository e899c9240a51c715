"""A value of a graph as a polynomial of two others: what a chain of Add, Mul and Pow computes.

Exporters put the same few operators in a dozen orders. Their polynomial is the same one.
"""

from __future__ import annotations

from math import isclose
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx_ir as ir

    Polynomial = dict[tuple[int, int], float]
    """Factor of x^i t^j by (i, j)."""


TERMS: Final = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
"""Operators that may be in a chain."""

_DEEPEST: Final = 10
"""Operators in a row."""

_NEAR: Final = 1e-3
"""Files have sqrt(2) in four digits and more."""

_HIGHEST: Final = 4
"""Power of x beyond which no GELU goes."""


def polynomial(
    value: ir.Value | None, x: ir.Value, t: ir.Value | None, depth: int = _DEEPEST
) -> Polynomial | None:
    """What ``value`` is as a polynomial of ``x`` and ``t``; ``None`` where it is none."""
    if value is x:
        return {(1, 0): 1.0}
    if value is not None and value is t:
        return {(0, 1): 1.0}
    constant = scalar(value)
    if constant is not None:
        return {(0, 0): constant}
    node = None if value is None else value.producer()
    if node is None or node.op_type not in TERMS or node.domain or depth == 0:
        return None
    left, right = (polynomial(each, x, t, depth - 1) for each in node.inputs)
    if left is None or right is None:
        return None
    return _combined(node.op_type, left, right)


def _combined(op_type: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    number = right.get((0, 0), 0.0) if right.keys() == {(0, 0)} else None
    if op_type == "Mul":
        return _times(left, right)
    if op_type == "Add":
        return _plus(left, right, 1.0)
    if op_type == "Sub":
        return _plus(left, right, -1.0)
    if op_type == "Div":
        return _times(left, {(0, 0): 1 / number}) if number else None
    if number not in range(_HIGHEST):
        return None
    power: Polynomial = {(0, 0): 1.0}
    for _ in range(int(number or 0)):
        power = _times(power, left)
    return power


def _plus(left: Polynomial, right: Polynomial, sign: float) -> Polynomial:
    keys = {**left, **right}
    return {key: left.get(key, 0.0) + sign * right.get(key, 0.0) for key in keys}


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for (i, j), a in left.items():
        for (k, m), b in right.items():
            found[i + k, j + m] = found.get((i + k, j + m), 0.0) + a * b
    return found


def is_near(found: Polynomial | None, wanted: Polynomial) -> bool:
    """Whether all factors are those of ``wanted``, but for the digits that files leave out."""
    if found is None:
        return False
    keys = {**found, **wanted}
    return all(
        isclose(found.get(key, 0.0), wanted.get(key, 0.0), rel_tol=_NEAR, abs_tol=1e-6)
        for key in keys
    )


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant that has one; else ``None``."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(()))

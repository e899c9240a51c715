"""The first activation that goes wrong, and what to try about it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.core.precision import Precision
    from deploykit.core.precision_facts import PrecisionFacts

CLIPPED_SHARE: Final = 0.5
"""A quantized value that ends below this share of the reference's peak lost more than outliers."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A value that goes wrong though its inputs are right.

    ``kind`` is ``shape``, ``non_finite``, ``sqnr`` or ``cosine``; ``reason`` says it in figures,
    ``advice`` what to try, a sentence each; ``inputs`` are the figures of what it was made from.
    """

    value: ValueComparison
    kind: str
    reason: str
    advice: tuple[str, ...]
    inputs: tuple[ValueComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "value": self.value.name,
            "node": self.value.node,
            "op_type": self.value.op_type,
            "kind": self.kind,
            "reason": self.reason,
            "advice": list(self.advice),
            "inputs": to_plain(self.inputs),
        }


def find_faults(values: Sequence[ValueComparison], precision: Precision) -> tuple[Fault, ...]:
    """Every value of a candidate in ``precision`` that goes wrong by itself, in graph order."""
    known = {value.name: value for value in values}
    found = []
    for value in values:
        inputs = tuple(known[name] for name in value.reads if name in known)
        compared = _judge(value, inputs, precision)
        if compared is not None:
            kind, reason = compared
            found.append(Fault(value, kind, reason, _advise(value, kind, precision), inputs))
    return tuple(found)


def drop_db(
    value: ValueComparison, inputs: Sequence[ValueComparison], precision: Precision
) -> float:
    """What is lost between the worst input and the value; better than healthy counts as healthy.

    NaN where an input or the value cannot be compared.
    """
    healthy = precision.facts.tolerance.healthy_db
    ratios = [each.sqnr_db for each in inputs]
    if any(map(isnan, (value.sqnr_db, *ratios))):  # which min would pass over
        return nan
    if value.sqnr_db == -inf:  # noise where the reference is all zero
        return inf if min(ratios, default=inf) > -inf else 0.0
    return min([healthy, *ratios]) - min(healthy, value.sqnr_db)


def _judge(
    value: ValueComparison, inputs: Sequence[ValueComparison], precision: Precision
) -> tuple[str, str] | None:
    """Kind and reason of a fault."""
    if not _same_shape(value):
        here, there = value.shape, value.reference_shape
        reason = f"its shape is {here}, the reference's {there}"
        return ("shape", reason) if all(map(_same_shape, inputs)) else None
    if not _is_finite(value):
        return ("non_finite", _non_finite(value)) if all(map(_is_finite, inputs)) else None
    lost = drop_db(value, inputs, precision)
    if lost > precision.facts.tolerance.drop_db:
        before = min((each.sqnr_db for each in inputs), default=inf)
        return "sqnr", f"SQNR falls from {decibels(before)} to {decibels(value.sqnr_db)}"
    limit = precision.facts.limits.min_cosine
    if value.cosine < limit and all(each.cosine >= limit for each in inputs):
        return "cosine", f"cosine {value.cosine:.6f} is under {limit}, the limit of {precision}"
    return None


def decibels(ratio: float) -> str:
    """A ratio in words of a table.

    >>> decibels(31.25), decibels(float("inf")), decibels(float("nan"))
    ('31.2 dB', 'equal', '-')
    """
    if ratio == inf:
        return "equal"
    return "-" if isnan(ratio) else f"{ratio:.1f} dB"


def _same_shape(value: ValueComparison) -> bool:
    return value.shape == value.reference_shape


def _is_finite(value: ValueComparison) -> bool:
    return not value.non_finite and not value.reference_non_finite


def _non_finite(value: ValueComparison) -> str:
    here, there = value.non_finite, value.reference_non_finite
    return f"{here} values are NaN or infinite, {there} of the reference's"


def _advise(value: ValueComparison, kind: str, precision: Precision) -> tuple[str, ...]:
    if kind == "shape":
        return ("these are not the same network, or one was exported with another batch or size",)
    if kind == "non_finite":
        return _advise_non_finite(value, precision.facts)
    if precision.facts.quantized:
        return _advise_quantized(value, kind, precision.upper())
    if kind == "cosine":
        return ("no single node does this: see which lose most with --all",)
    compare = f"the weights or attributes of {value.node} differ: compare them in both files"
    rounding = precision.facts.rounding
    if rounding is not None:
        costs = f"rounding to {precision.upper()} costs {_short(rounding)}, this is more"
        return (compare, f"keep {value.node} in FP32: {costs}")
    return (compare, "export it again from the same weights")


def _short(number: float) -> str:
    """A small number with two digits, without zeros in its exponent.

    >>> _short(2**-11)
    '4.9e-4'
    """
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _advise_non_finite(value: ValueComparison, facts: PrecisionFacts) -> tuple[str, ...]:
    if value.reference_non_finite:
        return ("the reference has them too: check its weights and the preprocessing",)
    end = facts.overflow
    if end is None:
        return (f"look for NaN in the weights of {value.node}, and for a division by 0",)
    kept = (
        f"keep {value.node} in FP32: `export` does so by itself if it sees such values, "
        "give it images like these with --data"
    )
    largest = f"{end.largest:.0f}"
    if value.reference_peak > end.largest:
        reached = f"the reference reaches {value.reference_peak:.3g}"
        return (f"{reached}, {end.type_name} ends at {largest}", kept)
    return (f"a square or a sum within the node passes {largest}, where {end.type_name} ends", kept)


def _advise_quantized(value: ValueComparison, kind: str, name: str) -> tuple[str, ...]:
    layers = value.readers if value.op_type == "DequantizeLinear" else (value.node,)
    exclude = f"keep it out of {name}: " + " ".join(f"--exclude '{node}'" for node in layers)
    more = "calibrate with more images (--calib-count), or like those in use (--calib PATH)"
    if kind == "cosine":
        return ("errors have added up: --sensitive-layers keep finds who adds most", more, exclude)
    if value.op_type != "DequantizeLinear":
        return (f"its weights or its inputs lose too much in {name}: {exclude}", more)
    if value.peak < CLIPPED_SHARE * value.reference_peak:
        ends = f"its {name} range ends at {value.peak:.3g}, the reference reaches"
        return (f"{ends} {value.reference_peak:.3g}: all beyond is clipped", more, exclude)
    coarse = f"its {name} steps are too coarse for a range of {value.peak:.3g}"
    return (f"{coarse}: try another --method (percentile, entropy, mse)", exclude)


@dataclass(frozen=True, slots=True)
class ValueComparison:
    """One activation on all images; ``reads`` are the values that it was computed from.

    ``sqnr_db`` is 10 log10(sum r^2 / sum (c - r)^2) for the reference's values r and the
    candidate's c: infinite where they are equal. It and ``cosine`` are NaN where a value is not
    finite or the shapes differ. Ranges are (smallest, largest) of the finite values.
    """

    name: str
    reference: str
    node: str
    op_type: str
    reads: tuple[str, ...]
    readers: tuple[str, ...]
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]
    cosine: float
    sqnr_db: float
    range: tuple[float, float]
    reference_range: tuple[float, float]
    non_finite: int
    reference_non_finite: int

    @property
    def peak(self) -> float:
        """The candidate's largest finite magnitude."""
        return max(abs(self.range[0]), abs(self.range[1]))

    @property
    def reference_peak(self) -> float:
        """The reference's largest finite magnitude."""
        return max(abs(self.reference_range[0]), abs(self.reference_range[1]))

"""Estimated latency of a network on a GPU of the table, with an interval and what to know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import isfinite, log
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import UnknownNameError, UsageError
from deploykit.costs.intervals import Interval, half_width, interval
from deploykit.costs.kernels import KernelKind, kind_of
from deploykit.costs.latency import GRAPH, Timing, fitted, fitted_constants, latency_ms
from deploykit.costs.limits import Limit, physical_limit
from deploykit.costs.peaks import gpu_facts, gpu_names, gpu_peak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.precision import Precision
    from deploykit.costs.network import NetworkCost
    from deploykit.costs.peaks import DevicePeak

NEW_PRECISION: Final = 1.3
NEW_OPERATOR: Final = 1.5
NEW_LATENCY: Final = 1.3
"""Factors that an interval is wider by where no published row has the precision, the operator, or
a latency as short, or as long."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a batch is estimated to take; ``limit_ms`` is the physical limit below it.

    ``published`` is the number of rows of this GPU in this precision that the model was fitted on.
    """

    latency_ms: Interval
    limit_ms: float
    published: int
    notes: tuple[str, ...]


def known_gpu(name: str) -> DevicePeak:
    """The GPU of the table that ``name`` means.

    Raises:
        UnknownNameError: none has this name; suggests the one that resembles it.
        UsageError: several may be meant.
    """
    found = gpu_peak(name)
    if found.peak is not None:
        return found.peak
    if len(found.candidates) > 1:
        raise UsageError(
            f"{name!r} may be several GPUs: {', '.join(found.candidates)}\nname one of them"
        )
    known = gpu_names()
    raise UnknownNameError("GPU", name, known, ", ".join(known), found.candidates)


def estimate(
    cost: NetworkCost, peak: DevicePeak, precision: Precision, timing: Timing = GRAPH
) -> Estimate | None:
    """The estimate of one batch; ``None`` for a device without figures, or without a rate.

    ``precision`` is that of most of the arithmetic in ``cost``.
    """
    facts = gpu_facts(peak.name)
    if facts is None or not runs(peak, precision):
        return None
    value = latency_ms(cost, peak, facts, fitted_constants(), timing)
    if not isfinite(value):
        return None
    limit = physical_limit(cost, peak).limit_ms
    group = (peak.name, str(precision))
    width, notes = half_width(group, _groups()), []
    if not any(str(precision) == each for _, each in _groups()):
        width += log(NEW_PRECISION)
        notes.append(f"no published latency is in {precision.upper()}: the interval is a guess")
    new = sorted(_operators(cost) - set(fitted()["operators"]))
    if new:
        width += log(NEW_OPERATOR)
        notes.append(f"no published network has {', '.join(new)}: the interval is a guess")
    shortest, longest = fitted()["latency_ms"]
    if not shortest <= value <= longest:
        width += log(NEW_LATENCY)
        bound = f"shorter than {shortest:.2g}" if value < shortest else f"longer than {longest:.0f}"
        notes.append(f"no published latency is {bound} ms: the interval is a guess")
    low, high = interval(value, width)
    return Estimate(
        Interval(value, max(low, limit), high), limit, len(_groups().get(group, ())), tuple(notes)
    )


def limit_and_estimate(cost: NetworkCost, peak: DevicePeak) -> Limit:
    """The physical limit of one batch, with its estimate where the device is a GPU of the table."""
    limit, counts = physical_limit(cost, peak), cost.multiply_adds_in
    if not counts:
        return limit
    found = estimate(cost, peak, max(counts, key=lambda each: counts[each]))
    return limit if found is None else replace(limit, estimated_ms=found.latency_ms)


def runs(peak: DevicePeak, precision: Precision) -> bool:
    """Whether a device computes in ``precision``."""
    capability = peak.compute_capability
    if capability is not None and not precision.facts.runs_on(capability):
        return False
    # Kernels that stay in FP16 have a time even where the GPU cannot compute the rest.
    return peak.flop_per_s(precision) is not None


def _operators(cost: NetworkCost) -> set[str]:
    found = {kind for layer in cost.layers for kind in layer.kinds}
    attention = any(kind_of(layer) is KernelKind.ATTENTION for layer in cost.layers)
    return found | ({"attention"} if attention else set())


@cache
def _groups() -> Mapping[tuple[str, str], Sequence[float]]:
    return {(gpu, precision): errors for gpu, precision, errors in fitted()["errors"]}


def basis() -> dict[str, Any]:
    """What the model was fitted on, and how far it was from rows that it had not seen."""
    names = ("rows", "sources", "median_error")
    return {name: fitted()[name] for name in names}

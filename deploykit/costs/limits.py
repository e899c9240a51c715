"""The time that no honest measurement goes below, and how near a measured one comes to it.

limit = max(sum of FLOP / dense peak, (weights + input + output bytes) / bandwidth)

The sum is taken layer by layer, each in its own precision. Activations between layers are not
charged to memory: published latencies beat a limit that does, because they stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Literal

from deploykit.core.errors import UsageError
from deploykit.core.serialization import MAY_BE_MISSING
from deploykit.costs.intervals import Interval  # noqa: TC001  (read back by this type)

if TYPE_CHECKING:
    from deploykit.costs.network import NetworkCost
    from deploykit.costs.peaks import DevicePeak

Side = Literal["compute", "memory"]


@dataclass(frozen=True, slots=True)
class Limit:
    """The two sides of the limit of one network on one device, for one batch.

    ``compute_ms`` is ``None`` when the device's rate in one of the network's precisions is not
    known. ``uncached_ms`` is the memory side after everything that the cache could keep from one
    pass to the next: repeated passes of a small network may lie between the two.
    """

    flop: int
    required_bytes: int
    compute_ms: float | None
    memory_ms: float
    uncached_ms: float
    peak_measured: bool
    """True if the peaks were measured on the machine, False if they are from a data sheet."""
    estimated_ms: Interval | None = field(default=None, metadata=MAY_BE_MISSING)
    """What `deploykit estimate` says of it, copies apart; ``None`` for what is not in the table."""

    @property
    def is_known(self) -> bool:
        """Whether all of the network's arithmetic has a rate: memory alone is no limit to quote."""
        return self.compute_ms is not None or not self.flop

    @property
    def limit_ms(self) -> float:
        """The larger of the two sides."""
        return max(self.compute_ms or 0.0, self.memory_ms)

    @property
    def binds(self) -> Side:
        """The side that sets the limit."""
        return "memory" if self.memory_ms >= (self.compute_ms or 0.0) else "compute"

    @property
    def floor_ms(self) -> float:
        """The limit with a warm cache; a latency below it is an error of measurement."""
        return max(self.compute_ms or 0.0, self.uncached_ms)


@dataclass(frozen=True, slots=True)
class Achieved:
    """Rates that a measured latency amounts to, and its share of the limit.

    ``share`` is the limit over the latency: 1.0 is as fast as can be. It passes 1.0 without
    ``doubt`` only where memory binds and the weights fit in the cache. ``doubt`` is a sentence, or
    ``None`` where nothing speaks against the figure.
    """

    flop_per_s: float
    bytes_per_s: float
    share: float
    doubt: str | None


def physical_limit(cost: NetworkCost, peak: DevicePeak) -> Limit:
    """Compute and memory limit of one batch of a network on a device."""
    beyond_cache = max(0, cost.required_bytes - peak.cache_bytes)
    return Limit(
        flop=cost.flop,
        required_bytes=cost.required_bytes,
        compute_ms=_compute_ms(cost, peak),
        memory_ms=cost.required_bytes / peak.bytes_per_s * 1e3,
        uncached_ms=beyond_cache / peak.bytes_per_s * 1e3,
        peak_measured=peak.measured is not None,
    )


def achieved(limit: Limit, latency_ms: float) -> Achieved:
    """Compare a measured latency with the limit of the same batch.

    Raises:
        UsageError: the latency is not a number above 0.
    """
    if not (isfinite(latency_ms) and latency_ms > 0):
        raise UsageError(
            f"a latency of {latency_ms} ms cannot be compared with a limit\n"
            "expected a number of milliseconds above 0"
        )
    seconds = latency_ms / 1e3
    return Achieved(
        flop_per_s=limit.flop / seconds,
        bytes_per_s=limit.required_bytes / seconds,
        share=limit.limit_ms / latency_ms,
        doubt=_doubt(limit, latency_ms),
    )


def _doubt(limit: Limit, latency_ms: float) -> str | None:
    if latency_ms >= limit.floor_ms:
        return None
    computes = (limit.compute_ms or 0.0) >= limit.uncached_ms
    reason = "the arithmetic alone" if computes else "reading the weights alone"
    sentence = (
        f"{latency_ms:.3g} ms is probably an error: {reason} takes {limit.floor_ms:.3g} ms "
        "at the device's peak"
    )
    if limit.peak_measured:
        sentence += ", unless that peak was measured while the machine was busy"
    return sentence


def _compute_ms(cost: NetworkCost, peak: DevicePeak) -> float | None:
    total_s = 0.0
    for layer in cost.layers:
        if not layer.multiply_adds:
            continue
        rate = peak.flop_per_s(layer.precision, winograd=layer.winograd)
        if rate is None:
            return None
        total_s += layer.flop / rate
    return total_s * 1e3

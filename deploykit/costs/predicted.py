"""Predicted time of a kernel: the one place that a better estimator has to replace.

The roofline: a kernel takes as long as its arithmetic at the device's peak rate, or as reading and
writing all its operands at the device's bandwidth, whichever is longer (Williams, Waterman and
Patterson 2009, Communications of the ACM 52, 65-76). Launches, caches and how well a kernel fills
the device are left out: it compares the formats of a network, and is no promise of a latency.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.costs.network import LayerCost
    from deploykit.costs.peaks import DevicePeak


def predicted_ms(kernel: LayerCost, peak: DevicePeak) -> float:
    """Milliseconds that a kernel is predicted to take on a device, for its whole batch.

    Infinite where the device's rate in the kernel's precision is not known.
    """
    rate = peak.flop_per_s(kernel.precision, winograd=kernel.winograd)
    if rate is None:
        return inf
    moved = kernel.weight_bytes + kernel.input_bytes + kernel.output_bytes
    return max(kernel.flop / rate, moved / peak.bytes_per_s) * 1e3

"""Predicted time of one kernel, for the choice of a format for each layer.

On a GPU of the table it is that of the fitted model (`deploykit.costs.latency`), with its launch.
For any other device it is the roofline: a kernel takes as long as its arithmetic at the peak rate,
or as reading and writing all its operands at the bandwidth, whichever is longer (Williams, Waterman
and Patterson 2009, Communications of the ACM 52, 65-76).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from deploykit.costs.peaks import gpu_facts

if TYPE_CHECKING:
    from deploykit.costs.network import LayerCost
    from deploykit.costs.peaks import DevicePeak


def predicted_ms(kernel: LayerCost, peak: DevicePeak) -> float:
    """Milliseconds that a kernel is predicted to take on a device, for its whole batch.

    Infinite where the device's rate in the kernel's precision is not known. Never less than the
    arithmetic at the peak rate.
    """
    rate = peak.flop_per_s(kernel.precision, winograd=kernel.winograd)
    if rate is None:
        return inf
    facts = gpu_facts(peak.name)
    if facts is None:
        moved = kernel.weight_bytes + kernel.input_bytes + kernel.output_bytes
        return max(kernel.flop / rate, moved / peak.bytes_per_s) * 1e3
    from deploykit.costs.latency import fitted_constants, kernel_ms  # numpy

    return max(kernel_ms(kernel, peak, facts, fitted_constants()), kernel.flop / rate * 1e3)

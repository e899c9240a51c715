"""Warnings that a measurement is not to be trusted, one sentence for each.

The first four are trtexec's own, on medians; drift and stalls it does not look for.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.benchmarking.statistics.percentiles import (
    coefficient_of_variation,
    statistical_inefficiency,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.benchmarking.results import Samples, Switches

    Series = NDArray[np.float64]

ENQUEUE_SHARE: Final = 0.8
"""Enqueueing above this share of computing no longer hides behind it (trtexec's limit)."""

MAX_COMPUTE_VARIATION: Final = 0.025
"""Largest coefficient of variation of stable GPU compute times."""

MIN_DRIFT: Final = 0.02
"""Smallest trend that is reported, as a share of the median, however certain it is."""

_DRIFT_CHANCE: Final = 0.01
_MAX_BLOCKS: Final = 30
_MIN_BLOCKS: Final = 8  # with fewer, no order of blocks is surprising enough
_INDEPENDENT: Final = 5  # block lengths in statistical inefficiencies

STALL_FACTOR: Final = 2.0
"""A stalled query takes at least this many medians."""

_BULK: Final = 95  # percent of the queries that say what is usual
_BEYOND_BULK: Final = 4
_MIN_FOR_STALLS: Final = 20


def warnings_of(samples: Samples, switches: Switches) -> list[str]:
    """All warnings about a measurement, a sentence each."""
    found = (
        launch_bound(samples, switches),
        transfer_bound(samples),
        unstable_compute(samples),
        overlapping(switches),
        drifting(samples),
        stalled(samples),
    )
    return [sentence for sentence in found if sentence is not None]


def launch_bound(samples: Samples, switches: Switches) -> str | None:
    """Warn if the host takes about as long to launch the work as the GPU to do it."""
    if samples.enqueue_ms is None or samples.compute_ms is None:
        return None
    enqueue_ms, compute_ms = _median(samples.enqueue_ms), _median(samples.compute_ms)
    if enqueue_ms <= ENQUEUE_SHARE * compute_ms:
        return None
    remedy = "use a larger batch" if switches.cuda_graph else "use a CUDA graph"
    return (
        f"launch-bound: enqueueing takes {enqueue_ms:.3g} ms, computing {compute_ms:.3g} ms, "
        f"so the GPU may wait for the host; {remedy}"
    )


def transfer_bound(samples: Samples) -> str | None:
    """Warn if a copy takes as long as computing; each direction by itself, as they overlap."""
    if samples.compute_ms is None:
        return None
    compute_ms = _median(samples.compute_ms)
    copies = {"H2D": samples.h2d_ms, "D2H": samples.d2h_ms}
    medians = {name: _median(series) for name, series in copies.items() if series is not None}
    slow = [f"{name} {ms:.3g} ms" for name, ms in medians.items() if ms >= compute_ms]
    if not slow:
        return None
    return (
        f"transfer-bound: {' and '.join(slow)}, computing {compute_ms:.3g} ms; "
        "measure without transfers where the application keeps its data on the GPU"
    )


def unstable_compute(samples: Samples) -> str | None:
    """Warn if the GPU's times vary more than those of a GPU with steady clocks.

    Times of a CPU are left out; they are known by the lack of the step ``enqueue_ms``.
    """
    if samples.compute_ms is None or samples.enqueue_ms is None:
        return None
    variation = coefficient_of_variation(samples.compute_ms)
    if variation is None or variation <= MAX_COMPUTE_VARIATION:
        return None
    return (
        f"unstable: GPU compute times vary by {variation:.1%} (coefficient of variation, limit "
        f"{MAX_COMPUTE_VARIATION:.1%}); lock the GPU's clocks, or wait for it by spinning"
    )


def overlapping(switches: Switches) -> str | None:
    """Warn if queries shared the device, so that a latency is not that of one query alone."""
    if switches.streams == 1:
        return None
    return (
        f"{switches.streams} streams: each latency includes waiting for the queries beside it; "
        "believe the throughput, and take latencies from one stream"
    )


@dataclass(frozen=True, slots=True)
class Trend:
    """Change of a series from begin to end, as a share of its median, and its two-sided p-value."""

    change: float
    p_value: float


def drifting(samples: Samples) -> str | None:
    """Warn if the wall times rise or fall over the measurement."""
    trend = trend_of(samples.wall_ms)
    if trend is None or trend.p_value > _DRIFT_CHANCE or abs(trend.change) < MIN_DRIFT:
        return None
    return (
        f"drift: latency changed by {trend.change:+.1%} from begin to end; "
        "warm up for longer, and look at clocks and temperature"
    )


def trend_of(series: Series) -> Trend | None:
    """The trend of a series, ``None`` where it is too short to tell.

    Mann-Kendall test (Kendall 1975, with ties) and Theil-Sen slope on the medians of successive
    blocks. The blocks are several times longer than the samples depend on each other, so that
    slow noise is not taken for a trend; a median leaves stalls out.
    """
    blocks = _independent_blocks(series)
    if blocks < _MIN_BLOCKS:
        return None
    medians = _block_medians(series, blocks)
    middle = _median(series)
    change = _theil_sen(medians) * blocks / middle if middle else 0.0
    return Trend(change, mann_kendall(medians))


def mann_kendall(series: Series) -> float:
    """Two-sided p-value of the Mann-Kendall test (normal approximation, corrected for ties)."""
    count = len(series)
    score = float(np.triu(np.sign(series[None, :] - series[:, None])).sum())
    _, ties = np.unique(series, return_counts=True)
    variance = (_kendall_term(count) - float(_kendall_term(ties).sum())) / 18
    if variance <= 0 or abs(score) <= 1:
        return 1.0
    # One less: the score moves in steps of two, the normal distribution does not.
    return 2 * NormalDist().cdf(-(abs(score) - 1) / variance**0.5)


def stalled(samples: Samples) -> str | None:
    """Warn if single queries took far longer than most."""
    bound_ms = stall_bound(samples.wall_ms)
    if bound_ms is None:
        return None
    count = int(np.count_nonzero(samples.wall_ms > bound_ms))
    if not count:
        return None
    return (
        f"stalls: {count} of {len(samples)} queries took over {bound_ms:.3g} ms, the longest "
        f"{samples.wall_ms.max():.3g} ms, the median {_median(samples.wall_ms):.3g} ms; "
        "look for other load on this machine"
    )


def stall_bound(series: Series) -> float | None:
    """Time above which a query counts as stalled; ``None`` for too few samples.

    The median and four times the way from there to the 95th percentile: 6.6 standard deviations
    of normal noise, and beyond the second mode of a bimodal latency as long as one query in
    twenty is in it. At least `STALL_FACTOR` medians, so that a very steady series is not blamed
    for a hiccup.
    """
    if len(series) < _MIN_FOR_STALLS:
        return None
    median, bulk = np.percentile(series, [50, _BULK])
    return float(max(STALL_FACTOR * median, median + _BEYOND_BULK * (bulk - median)))


def _median(series: Series) -> float:
    return float(np.median(series))


def _independent_blocks(series: Series) -> int:
    """Number of blocks whose medians hardly depend on each other; 0 if there are too few."""
    blocks = min(_MAX_BLOCKS, len(series) // _INDEPENDENT)
    if blocks < _MIN_BLOCKS:
        return 0
    # Around each block's own level: a trend or a step is not a dependence of the noise.
    level = np.repeat(_block_medians(series, blocks), _block_sizes(len(series), blocks))
    length = _INDEPENDENT * statistical_inefficiency(series <= level)
    return min(blocks, int(len(series) / length))


def _block_sizes(count: int, blocks: int) -> list[int]:
    return [len(part) for part in np.array_split(np.empty(count), blocks)]


def _block_medians(series: Series, blocks: int) -> Series:
    return np.array([np.median(part) for part in np.array_split(series, blocks)])


def _theil_sen(series: Series) -> float:
    """Median of the slopes between all pairs, per step."""
    left, right = np.triu_indices(len(series), 1)
    return float(np.median((series[right] - series[left]) / (right - left)))


def _kendall_term(count: Any) -> Any:
    return count * (count - 1) * (2 * count + 5)

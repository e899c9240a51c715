"""One row for each result, with its remarks: what tables, the page and ``--json`` show.

A remark is a warning that the figure is not to be trusted, or a note on how it came to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.benchmarking.results import cell_key
from deploykit.benchmarking.statistics.percentiles import (
    Percentile,
    coefficient_of_variation,
    percentile,
    statistical_inefficiency,
)
from deploykit.core.serialization import to_plain
from deploykit.costs.limits import achieved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from deploykit.benchmarking.results import BenchmarkResult, Samples, Switches
    from deploykit.core.precision import Precision
    from deploykit.costs.intervals import Interval
    from deploykit.costs.limits import Achieved

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
    sizes = [len(part) for part in np.array_split(series, blocks)]
    level = np.repeat(_block_medians(series, blocks), sizes)
    length = _INDEPENDENT * statistical_inefficiency(series <= level)
    return min(blocks, int(len(series) / length))


def _block_medians(series: Series, blocks: int) -> Series:
    return np.array([np.median(part) for part in np.array_split(series, blocks)])


def _theil_sen(series: Series) -> float:
    """Median of the slopes between all pairs, per step."""
    left, right = np.triu_indices(len(series), 1)
    return float(np.median((series[right] - series[left]) / (right - left)))


def _kendall_term(count: Any) -> Any:
    return count * (count - 1) * (2 * count + 5)


LEVELS: Final = (10, 50, 90, 99, 99.9)
"""Percentiles that are shown where the samples support them."""

STEPS: Final = ("wall_ms", "h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")

RESOLUTION: Final = 0.1
"""Share by which runs on a shared machine may differ; closer models share a rank."""

_P50: Final = 50
_P99: Final = 99

MIN_FOR_P99: Final = 100
"""Queries from which on a 99th percentile lies between two of them."""

_SERVER: Final = "server"


@dataclass(frozen=True)
class Row:
    """The figures of one result; percentiles that the samples do not support are left out.

    ``latency_ms`` has a percentile by its level; ``median_ms`` is there in any case, even where it
    has no interval; ``p99_ms`` likewise, from `MIN_FOR_P99` queries on. ``variation`` is the
    coefficient of variation of the latency (a share), ``steps_ms`` the median of each step that was
    timed. ``limit_ms`` and ``achieved`` are ``None`` where the physical limit is not known; a note
    says why. ``estimated_ms`` is what the cost model says of the GPU, copies to and from it apart.
    """

    model: str
    precision: Precision
    precision_proven: Precision | None
    backend: str
    batch: int
    scenario: str
    streams: int
    samples: int
    latency_ms: Mapping[float, Percentile]
    median_ms: float
    p99_ms: float | None
    throughput_per_s: float
    variation: float | None
    steps_ms: Mapping[str, float]
    limit_ms: float | None
    binds: str | None
    achieved: Achieved | None
    warnings: tuple[str, ...]
    condition: tuple[str, ...]
    notes: tuple[str, ...]
    estimated_ms: Interval | None = None

    @property
    def has_brackets(self) -> bool:
        """Whether its median, or its 99th percentile, is known without an interval alone."""
        no_tail = self.p99_ms is not None and _P99 not in self.latency_ms
        return _P50 not in self.latency_ms or no_tail

    @property
    def key(self) -> str:
        """The name of the cell."""
        return cell_key(self.model, self.backend, self.precision, self.batch)


def row_to_plain(row: Row) -> dict[str, Any]:
    """Plain data for ``--json``: ``latency_ms`` has ``p50`` and ``p50_interval``, and so on.

    ``p50`` is always there; its interval is ``None`` where the samples do not carry one.
    """
    latency: dict[str, Any] = {"p50": row.median_ms, "p50_interval": None}
    for level, found in row.latency_ms.items():
        latency[f"p{level:g}"] = found.value
        latency[f"p{level:g}_interval"] = [found.low, found.high]
    return {**to_plain(row), "latency_ms": latency}


def row_of(result: BenchmarkResult) -> Row:
    """The figures of one result."""
    subject, latency = result.subject, latency_of(result)
    found = {level: percentile(latency, level) for level in LEVELS}
    carried = {level: each for level, each in found.items() if each is not None}
    middle = percentile_value(latency)
    limit = result.limit if result.limit is not None and result.limit.is_known else None
    return Row(
        model=subject.model,
        precision=subject.precision_asked,
        precision_proven=subject.precision_proven,
        backend=subject.backend,
        batch=subject.batch,
        scenario=result.switches.scenario,
        streams=result.switches.streams,
        samples=len(result.samples),
        latency_ms=carried,
        median_ms=middle,
        p99_ms=percentile_value(latency, _P99) if len(latency) >= MIN_FOR_P99 else None,
        throughput_per_s=result.throughput_per_s,
        variation=coefficient_of_variation(latency),
        steps_ms=_steps(result),
        limit_ms=None if limit is None else limit.limit_ms,
        binds=None if limit is None else limit.binds,
        achieved=None if limit is None else achieved(limit, middle),
        warnings=tuple(warnings_of(result.samples, result.switches)),
        condition=result.condition,
        notes=(*result.notes, *_no_limit(result)),
        estimated_ms=None if limit is None else limit.estimated_ms,
    )


def _no_limit(result: BenchmarkResult) -> tuple[str, ...]:
    """Why a network that was counted has no physical limit."""
    if result.limit is None or result.limit.is_known:
        return ()
    asked = result.subject.precision_asked
    return (f"no physical limit: the best rate of this device in {asked} is not known",)


def latency_of(result: BenchmarkResult) -> Series:
    """Latency of each query (queries,) in ms.

    It is trtexec's H2D + compute + D2H where these were timed; in the server scenario the time
    from the scheduled moment on.
    """
    if result.switches.scenario == _SERVER:
        return result.samples.wall_ms
    return result.samples.latency_ms


def percentile_value(series: Series, level: float = 50) -> float:
    """A percentile without an interval, for any number of samples."""
    return float(np.percentile(series, level))


def ranking(results: Iterable[BenchmarkResult]) -> list[tuple[int, str, float]]:
    """Rank, model and latency in ms of results that differ in their model alone, fastest first.

    The latency is the 10th percentile: work of others on the machine disturbs it least. A model
    that is within `RESOLUTION` of the one before it shares its rank.
    """
    fastest = sorted((percentile_value(latency_of(r), 10), r.subject.model) for r in results)
    ranked: list[tuple[int, str, float]] = []
    for place, (latency_ms, model) in enumerate(fastest, 1):
        near = ranked and latency_ms <= ranked[-1][2] * (1 + RESOLUTION)
        ranked.append((ranked[-1][0] if near else place, model, latency_ms))
    return ranked


def _steps(result: BenchmarkResult) -> dict[str, float]:
    series = ((name, getattr(result.samples, name)) for name in STEPS)
    return {name: percentile_value(times) for name, times in series if times is not None}


KINDS: Final = ("doubt", "condition", "warning", "note")
"""Kinds of remarks, from the gravest to the mildest."""


BRACKETS: Final = (
    "A figure in brackets has no interval: too few independent samples; measure longer."
)


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about one row; ``kind`` is one of `KINDS`."""

    kind: str
    sentence: str


def remarks_of(row: Row) -> tuple[Remark, ...]:
    """Every remark about a row, the gravest first."""
    doubts = [row.achieved.doubt] if row.achieved and row.achieved.doubt else []
    if row.precision_proven not in (None, row.precision):
        doubts.append(f"{row.precision} was asked, the network is {row.precision_proven}")
    by_kind = zip(KINDS, (doubts, row.condition, row.warnings, row.notes), strict=True)
    return tuple(Remark(kind, sentence) for kind, given in by_kind for sentence in given)

"""One row for each result, with its remarks: what tables, the page and ``--json`` show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.results import cell_key
from deploykit.benchmarking.statistics.percentiles import (
    Percentile,
    coefficient_of_variation,
    percentile,
)
from deploykit.benchmarking.statistics.warnings import warnings_of
from deploykit.core.serialization import to_plain
from deploykit.costs.limits import achieved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.benchmarking.results import BenchmarkResult
    from deploykit.core.precision import Precision
    from deploykit.costs.limits import Achieved

    Series = NDArray[np.float64]


LEVELS: Final = (10, 50, 90, 99, 99.9)
"""Percentiles that are shown where the samples support them."""

STEPS: Final = ("wall_ms", "h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")

RESOLUTION: Final = 0.1
"""Share by which runs on a shared machine may differ; closer models share a rank."""

_SERVER: Final = "server"


@dataclass(frozen=True)
class Row:
    """The figures of one result; percentiles that the samples do not support are left out.

    ``latency_ms`` has a percentile by its level; ``median_ms`` is there in any case, even where it
    has no interval. ``variation`` is the coefficient of variation of the latency (a share),
    ``steps_ms`` the median of each step that was timed. ``limit_ms`` and ``achieved`` are ``None``
    where the physical limit is not known.
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
    throughput_per_s: float
    variation: float | None
    steps_ms: Mapping[str, float]
    limit_ms: float | None
    binds: str | None
    achieved: Achieved | None
    warnings: tuple[str, ...]
    condition: tuple[str, ...]
    notes: tuple[str, ...]

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
    measured = None if result.limit is None else achieved(result.limit, middle)
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
        throughput_per_s=result.throughput_per_s,
        variation=coefficient_of_variation(latency),
        steps_ms=_steps(result),
        limit_ms=None if result.limit is None else result.limit.limit_ms,
        binds=None if result.limit is None else result.limit.binds,
        achieved=measured,
        warnings=tuple(warnings_of(result.samples, result.switches)),
        condition=result.condition,
        notes=result.notes,
    )


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
    import numpy as np

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
    "A median in brackets has no interval: too few independent samples; measure longer."
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

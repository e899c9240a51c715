"""A CPU's peak, settled after the rows: no row may be above it.

A shared machine changes its speed, so a trial before the rows may find less than they do. What is
found then is a fault of the peak and not of the row.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Final

from deploykit.backends import CPU
from deploykit.backends._registry import find_backend
from deploykit.benchmarking.report.facts import peak_of, rate_text
from deploykit.benchmarking.report.rows import latency_of, percentile_value
from deploykit.core.errors import DeviceError
from deploykit.costs.limits import achieved
from deploykit.costs.peaks import faster_of, peak_to_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun
    from deploykit.costs.limits import Limit
    from deploykit.costs.peaks import DevicePeak

AFTER_S: Final = (0.5, 1.0, 2.0)
"""Seconds of the trials after the rows: the first always, the others while a row is above."""

CACHED: Final = (
    "no physical limit: memory would be, but the weights stay in the cache from one query to the "
    "next"
)


def with_settled_peak(run: BenchmarkRun, measure: Callable[[float], DevicePeak]) -> BenchmarkRun:
    """The run with one peak for all rows of the CPU, the best of all trials, and limits by it.

    ``measure`` makes a trial of so many seconds. Where a row stays above the peak no row has a
    limit, and a note says why.
    """
    own = [result for result in run.results if _is_limited(result)]
    peaks = [peak for peak in map(_peak_of, own) if peak is not None]
    if len(peaks) != len(own) or not own:
        return run
    best = reduce(faster_of, peaks)
    for seconds in AFTER_S:
        try:
            best = faster_of(best, measure(seconds))
        except DeviceError:  # the machine is busy: what was found before holds
            break
        if _above(own, best) is None:
            break
    above = _above(own, best)
    note = None if above is None else _fault(above, best)
    settled = {id(result): _settled(result, best, note) for result in own}
    results = (settled.get(id(each)) or _with_peak(each, best) for each in run.results)
    return replace(run, results=tuple(results))


def _is_limited(result: BenchmarkResult) -> bool:
    return (
        result.limit is not None
        and result.limit.peak_measured
        and find_backend(result.subject.backend).device == CPU
    )


def _with_peak(result: BenchmarkResult, best: DevicePeak) -> BenchmarkResult:
    """A row without a limit, of this CPU or of something else."""
    on_cpu = find_backend(result.subject.backend).device == CPU
    if not on_cpu or _peak_of(result) is None:
        return result
    return replace(result, environment={**result.environment, "peak": peak_to_plain(best)})


def _peak_of(result: BenchmarkResult) -> DevicePeak | None:
    return peak_of(result.environment)


def _above(results: list[BenchmarkResult], best: DevicePeak) -> BenchmarkResult | None:
    """The first row that no arithmetic of this peak could be as fast as."""
    for result in results:
        limit = _limit_by(result, best)
        if limit.is_known and achieved(limit, _median_ms(result)).doubt is not None:
            return result
    return None


def _median_ms(result: BenchmarkResult) -> float:
    return percentile_value(latency_of(result))


def _limit_by(result: BenchmarkResult, best: DevicePeak) -> Limit:
    """The limit of a row by another peak: a CPU has one rate for all arithmetic it has one for."""
    limit, own = result.limit, _peak_of(result)
    if limit is None or own is None:
        raise TypeError("a row of the CPU without its limit or its peak")
    compute = own.fp32_flop_per_s / best.fp32_flop_per_s
    memory = own.bytes_per_s / best.bytes_per_s
    return replace(
        limit,
        compute_ms=None if limit.compute_ms is None else limit.compute_ms * compute,
        memory_ms=limit.memory_ms * memory,
        uncached_ms=limit.uncached_ms * memory,
    )


def _fault(above: BenchmarkResult, best: DevicePeak) -> str:
    reached = achieved(_limit_by(above, best), _median_ms(above)).flop_per_s
    return (
        f"no physical limit: {above.key} computes {rate_text(reached, 'FLOP/s')}, more than the "
        f"{rate_text(best.fp32_flop_per_s, 'FLOP/s')} that trials found before and after; "
        "measure again when the machine is idle"
    )


def _settled(result: BenchmarkResult, best: DevicePeak, note: str | None) -> BenchmarkResult:
    environment = {**result.environment, "peak": peak_to_plain(best)}
    limit = _limit_by(result, best)
    if note is None and limit.is_known and achieved(limit, _median_ms(result)).share > 1:
        note = CACHED
    if note is None:
        return replace(result, environment=environment, limit=limit)
    return replace(result, environment=environment, limit=None, notes=(*result.notes, note))

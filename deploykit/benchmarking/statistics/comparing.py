"""One measurement against another: how much slower, how sure, and whether they may be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import ceil, exp, log
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.benchmarking.statistics.percentiles import statistical_inefficiency
from deploykit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure

    Series = NDArray[np.float64]


CONFIDENCE: Final = 0.99
MIN_EFFECT: Final = 0.02
"""Smallest change that gets a verdict; two runs of the same program differ by about as much."""

MIN_SAMPLES: Final = 20
MACHINE: Final = ("cpu", "logical_cores", "gpus", "driver")
"""Keys of the environment that make two machines the same; packages may differ."""

_RESAMPLES: Final = 1000
_CELLS: Final = 1_000_000  # of one array of resamples: 8 MB
_MAX_SHARE: Final = 4  # a block is at most this part of the series
_WIDEST: Final = 40  # characters of a value in a message


class Verdict(StrEnum):
    """Outcome of a comparison: the new result against the old one."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians, new over old, and the interval that holds it with `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """New against old; ``differences`` are conditions that differ and were accepted by force."""

    ratio: Ratio
    min_effect: float
    differences: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Faster or slower if the interval excludes 1 and the change reaches ``min_effect``."""
        if self.ratio.low > 1 and self.ratio.value >= 1 + self.min_effect:
            return Verdict.SLOWER
        if self.ratio.high < 1 and self.ratio.value <= 1 / (1 + self.min_effect):
            return Verdict.FASTER
        return Verdict.NO_DIFFERENCE

    def regression(self, fail_above: float) -> bool:
        """True if the new result is slower, and by more than the share ``fail_above``.

        Raises:
            UsageError: ``fail_above`` is negative or not a number.
        """
        if not fail_above >= 0:
            raise UsageError(f"fail_above is {fail_above}, expected 0 or more, 0.05 for 5 %")
        return self.verdict is Verdict.SLOWER and self.ratio.value > 1 + fail_above


def compare(
    old: BenchmarkResult,
    new: BenchmarkResult,
    *,
    step: str = "wall_ms",
    min_effect: float = MIN_EFFECT,
    force: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare the medians of one step of two results.

    ``min_effect`` is a share; give the noise floor of an A/A run where one was made. ``force``
    compares in spite of other switches, another batch or another machine. The same ``seed`` gives
    the same interval.

    Raises:
        UsageError: the results differ in what must be equal, and ``force`` was not given; a
            ``min_effect`` that is negative.
        UnknownNameError: one of the results has no such step.
        DataError: a result has too few samples or a time of zero.
    """
    if not min_effect >= 0:
        raise UsageError(f"min_effect is {min_effect}, expected 0 or more, 0.02 for 2 %")
    found = differences(old, new)
    if found and not force:
        raise refusal(found)
    ratio = ratio_of_medians(old.samples.step(step), new.samples.step(step), seed=seed)
    return Comparison(ratio, min_effect, found)


def differences(old: BenchmarkResult, new: BenchmarkResult) -> tuple[str, ...]:
    """Conditions in which two results differ, as "streams 1 against 4"; empty if in none."""
    before, after = _conditions(old), _conditions(new)
    return tuple(
        f"{name} {_brief(before.get(name))} against {_brief(after.get(name))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    )


def refusal(found: Iterable[str]) -> UsageError:
    """The error that names the `differences`."""
    return UsageError(
        "these results cannot be compared, old against new: "
        f"{'; '.join(found)}\n"
        "measure again on the same machine with the same switches, or force the comparison"
    )


def ratio_of_medians(old: Series, new: Series, *, seed: int = 0) -> Ratio:
    """Median of ``new`` over median of ``old`` with its bootstrap interval.

    Raises:
        DataError: fewer than `MIN_SAMPLES` samples or a time of zero.
    """
    return _ratio(old, new, _MEDIAN, seed)


def ratio_of_means(old: Series, new: Series, *, seed: int = 0) -> Ratio:
    """As `ratio_of_medians`, for times whose sum counts: every stall has its weight.

    Raises:
        DataError: fewer than `MIN_SAMPLES` samples or a time of zero.
    """
    return _ratio(old, new, _MEAN, seed)


@dataclass(frozen=True, slots=True)
class _Statistic:
    """A statistic of a series; ``of_rows`` may reorder the rows that it gets.

    Its error follows from the autocorrelation of ``scores``, one for each sample.
    """

    of: Callable[[Series], Any]
    of_rows: Callable[[Series], Series]
    scores: Callable[[Series], NDArray[Any]]


def _medians_of_rows(rows: Series) -> Series:
    # Four times as fast as np.median, which does not use the processor's vector sort.
    rows.sort(axis=1)
    count = rows.shape[1]
    medians: Series = (rows[:, (count - 1) // 2] + rows[:, count // 2]) / 2
    return medians


_MEDIAN: Final = _Statistic(np.median, _medians_of_rows, lambda series: series <= np.median(series))
_MEAN: Final = _Statistic(np.mean, lambda rows: rows.mean(axis=1), lambda series: series)


def _ratio(old: Series, new: Series, statistic: _Statistic, seed: int) -> Ratio:
    """A ratio with its bootstrap interval.

    Blocks are drawn instead of samples (circular block bootstrap: Politis and Romano 1992),
    because latencies that follow each other are alike. A percentile interval of few blocks is too
    narrow; it is expanded as Student's t is wider than the normal distribution (Hesterberg, What
    Teachers Should Know About the Bootstrap, 2014, section 5.3).
    """
    _require_comparable("old", old)
    _require_comparable("new", new)
    rng = np.random.default_rng(seed)
    # In logarithms, so that old over new gives the inverse of new over old.
    value = log(statistic.of(new) / statistic.of(old))
    ratios = np.log(_resampled(new, statistic, rng) / _resampled(old, statistic, rng))
    return ratio_of_logarithms(value, ratios, min(_blocks(old, statistic), _blocks(new, statistic)))


def ratio_of_logarithms(value: float, drawn: Series, blocks: int) -> Ratio:
    """The ratio of the logarithm ``value``, its interval from those ``drawn`` in so many blocks."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    # Quantile of Student's t over the normal one (first term of Cornish and Fisher).
    quantile = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    wider = 1 + (quantile**2 + 1) / (4 * (blocks - 1))
    return Ratio(
        value=exp(value),
        low=exp(value + wider * (min(low, value) - value)),
        high=exp(value + wider * (max(high, value) - value)),
    )


def _conditions(result: BenchmarkResult) -> Mapping[str, Any]:
    machine = {key: result.environment.get(key) for key in MACHINE}
    switches = asdict(result.switches)
    if result.switches.bound_ms is not None:
        del switches["rate_per_s"]  # it was searched for: a result, not a condition
    return {**machine, **switches, "batch": result.subject.batch}


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        names = [item.get("name", item) if isinstance(item, dict) else item for item in value]
        value = ", ".join(map(str, names)) or None
    text = "none" if value is None else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _require_comparable(which: str, series: Series) -> None:
    if len(series) < MIN_SAMPLES:
        raise DataError(
            f"the {which} result has {len(series)} samples, a comparison needs {MIN_SAMPLES}\n"
            "measure for longer"
        )
    if series.min() <= 0:
        raise DataError(f"the {which} result holds a time of zero, so there is no ratio")


def _block_length(series: Series, statistic: _Statistic) -> int:
    """Block length: grows with the dependence of samples, and with n^(1/3), best for a variance.

    Hall, Horowitz and Jing (1995) give the power; for AR(1) noise with a correlation of 0.9 the
    best length is about 50 of 1,000 samples, this gives 70.
    """
    inefficiency = statistical_inefficiency(statistic.scores(series))
    length = ceil(len(series) ** (1 / 3) * inefficiency ** (2 / 3))
    return int(min(length, len(series) // _MAX_SHARE))


def _blocks(series: Series, statistic: _Statistic) -> int:
    return ceil(len(series) / _block_length(series, statistic))


def _resampled(series: Series, statistic: _Statistic, rng: np.random.Generator) -> Series:
    count, length = len(series), _block_length(series, statistic)
    # A block may begin at the last sample: the series goes round.
    blocks = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([series, series[: length - 1]]), length
    )
    # In portions: all resamples of a long series at once would take gigabytes.
    size = (min(_RESAMPLES, max(1, _CELLS // count)), _blocks(series, statistic))
    found: list[Series] = []
    while sum(map(len, found)) < _RESAMPLES:
        chosen = blocks[rng.integers(count, size=size)].reshape(size[0], -1)[:, :count]
        found.append(statistic.of_rows(chosen))
    return np.concatenate(found)[:_RESAMPLES]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The cells of two runs, matched, in the order of the runs.

    ``common`` are measured in both. ``lost`` are measured in OLD, and failed in NEW. ``only_old``
    and ``only_new`` are measured in one and not in the other, where ``only_new`` may have failed
    in OLD. ``failed_old`` and ``failed_new`` are failures of cells that the other run has neither
    measured nor seen fail. What fails in both is in none of them.
    """

    common: tuple[tuple[BenchmarkResult, BenchmarkResult], ...]
    lost: tuple[tuple[BenchmarkResult, CellFailure], ...]
    only_old: tuple[BenchmarkResult, ...]
    only_new: tuple[BenchmarkResult, ...]
    failed_old: tuple[CellFailure, ...]
    failed_new: tuple[CellFailure, ...]


def pair(old: BenchmarkRun, new: BenchmarkRun) -> Pairs:
    """Match the results by `key_of`, and failures, which know no scenario, by their cell.

    Raises:
        DataError: one of the runs has two results for the same key.
    """
    before, after = _by_key("old", old), _by_key("new", new)
    failures = {failure.key: failure for failure in new.failures}
    gone = [result for key, result in before.items() if key not in after]
    return Pairs(
        common=tuple((before[key], after[key]) for key in before if key in after),
        lost=tuple((each, failures[each.key]) for each in gone if each.key in failures),
        only_old=tuple(each for each in gone if each.key not in failures),
        only_new=tuple(each for key, each in after.items() if key not in before),
        failed_old=_failed_alone(old, new),
        failed_new=_failed_alone(new, old),
    )


def key_of(result: BenchmarkResult) -> str:
    """Key of a result, its cell and scenario; results with equal keys are compared."""
    return f"{result.key}/{result.switches.scenario}"


def _by_key(which: str, run: BenchmarkRun) -> Mapping[str, BenchmarkResult]:
    found: dict[str, BenchmarkResult] = {}
    for result in run.results:
        key = key_of(result)
        if key in found:
            raise DataError(
                f"the {which} run has two results for {key}\n"
                "so it is not clear which one to compare: keep one of them"
            )
        found[key] = result
    return found


def _failed_alone(run: BenchmarkRun, other: BenchmarkRun) -> tuple[CellFailure, ...]:
    measured = {each.key for each in other.results}
    known = measured | {each.key for each in other.failures}
    return tuple(failure for failure in run.failures if failure.key not in known)


def ratio_of_query_times(old: BenchmarkResult, new: BenchmarkResult, *, seed: int = 0) -> Ratio:
    """Time per completed query, new over old: the inverse ratio of the throughputs.

    Raises:
        DataError: fewer than 20 rounds of all streams, or one that took no time.
    """
    return ratio_of_means(query_times_ms(old), query_times_ms(new), seed=seed)


def query_times_ms(result: BenchmarkResult) -> Series:
    """Mean time of a query in each round (rounds,) of a closed loop.

    A round is as many completions as there are streams, from the last of the round before to its
    own last; streams that end together, as on a GPU, would otherwise give times of nothing and of
    several queries in turn. Rounds add up to the measurement, but for what is left of the last.
    """
    samples, streams = result.samples, result.switches.streams
    begin_ms = samples.start_s * 1e3
    ends_ms = np.sort(begin_ms + samples.wall_ms)
    times: Series = np.diff(ends_ms[streams - 1 :: streams], prepend=begin_ms[0]) / streams
    return times

"""``deploykit bench --compare OLD NEW``: what became of each cell between two runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.report.rows import latency_of, percentile_value
from deploykit.benchmarking.results import read_run
from deploykit.benchmarking.statistics.comparing import (
    MIN_EFFECT,
    Comparison,
    differences,
    key_of,
    pair,
    ratio_of_medians,
    ratio_of_query_times,
    refusal,
)
from deploykit.core.errors import DataError, UsageError
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure
    from deploykit.benchmarking.statistics.comparing import Pairs, Verdict

    Both = tuple[BenchmarkResult, BenchmarkResult]

LATENCY: Final = "latency_ms"
THROUGHPUT: Final = "throughput_per_s"

_OFFLINE: Final = "offline"
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """A cell that both runs have measured.

    ``measure`` is what was compared, ``old`` and ``new`` its values: the median latency, or, of
    offline runs, whose latencies include waiting for the queries beside them, the throughput.
    The ratio is one of times in both cases, new over old: above 1 is slower. ``conditions_old``
    and ``conditions_new`` say that a machine was busy or throttled.
    """

    key: str
    measure: str
    old: float
    new: float
    comparison: Comparison
    conditions_old: tuple[str, ...]
    conditions_new: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Faster, slower or no difference."""
        return self.comparison.verdict


def _pair_to_plain(compared: ComparedPair) -> dict[str, Any]:
    """Plain data for ``--json``."""
    ratio = compared.comparison.ratio
    return {
        "key": compared.key,
        "measure": compared.measure,
        "old": compared.old,
        "new": compared.new,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": str(compared.verdict),
        "differences": list(compared.comparison.differences),
        "conditions_old": list(compared.conditions_old),
        "conditions_new": list(compared.conditions_new),
    }


@dataclass(frozen=True, slots=True)
class FailedCell:
    """A cell that failed in the new run and not in the old one."""

    key: str
    kind: str
    reason: str
    measured_before: bool


@dataclass(frozen=True, slots=True)
class NotComparedCell:
    """A cell that both runs have measured, and why there is no verdict on it."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class CompareReport:
    """All cells of two runs, except those that failed in both.

    ``only_old`` and ``only_new`` are the keys of what one run has measured and the other has not
    tried; the latter may have failed before. ``failed_only_old`` failed in the old run and is not
    in the new one.
    """

    pairs: tuple[ComparedPair, ...]
    not_compared: tuple[NotComparedCell, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    failed: tuple[FailedCell, ...]
    failed_only_old: tuple[str, ...]
    fail_above: float | None

    @property
    def regressions(self) -> tuple[str, ...]:
        """Keys of what is slower by more than ``fail_above``, or fails and did not before.

        Without a ``fail_above`` whatever has the verdict "slower".
        """
        above = self.fail_above or 0.0
        slower = [each.key for each in self.pairs if each.comparison.regression(above)]
        return (*slower, *(each.key for each in self.failed if each.measured_before))

    @property
    def fails(self) -> bool:
        """True if the command fails: there are regressions, and ``fail_above`` was given."""
        return self.fail_above is not None and bool(self.regressions)


def comparison_to_plain(report: CompareReport) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        **to_plain(report),
        "pairs": list(map(_pair_to_plain, report.pairs)),
        "regressions": list(report.regressions),
    }


def compare_files(
    old: Path, new: Path, *, fail_above: float | None = None, force: bool = False
) -> CompareReport:
    """Compare what two files of results have in common.

    ``fail_above`` is the share by which a cell may be slower, 0.05 for 5 %. ``force`` compares in
    spite of another machine or other switches; the pairs then say what was overlooked.

    Raises:
        UsageError: the machines or the switches differ, and ``force`` was not given; a
            ``fail_above`` that is negative.
        DataError: a file cannot be read, or has two results for a cell; there is nothing to
            compare.
    """
    if fail_above is not None:
        _require_share(fail_above, str(fail_above))
    before, after = read_run(old), read_run(new)
    pairs = pair(before, after)
    if not pairs.common and not pairs.lost:
        raise DataError(
            f"{old} and {new} have no cell in common\n"
            f"{old.name} has {_contents(before)}\n"
            f"{new.name} has {_contents(after)}"
        )
    if not force:
        _require_alike(pairs.common)
    return _report(pairs, fail_above)


def parse_share(text: str) -> float:
    """Read a share as a person writes it.

    >>> parse_share("5%"), parse_share("7.5 %"), parse_share("0.05")
    (0.05, 0.075, 0.05)

    Raises:
        UsageError: not a share, or a number that could be meant in percent.
    """
    number = text.strip().removesuffix("%")
    percent = number != text.strip()
    try:
        value = float(number)
    except ValueError as exc:
        raise UsageError(f"a share of {text!r}\nexpected 5% or 0.05") from exc
    # "5" may be meant as 5 %: as a share it would let everything pass.
    if not percent and value >= 1:
        raise UsageError(f"a share of {text!r}\nexpected {text.strip()}% or a number below 1")
    return _require_share(value / 100 if percent else value, text)


def _require_share(share: float, text: str) -> float:
    if not (isfinite(share) and share >= 0):
        raise UsageError(f"a share of {text!r}, expected 0 or more, as 5% or 0.05")
    return share


def _require_alike(common: Sequence[Both]) -> None:
    # A dict for its order: cells of one run mostly differ in the same things.
    found = dict.fromkeys(each for pair in common for each in differences(*pair))
    if found:
        shown = list(found)[:_SHOWN]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise refusal([*shown, *more])


def _report(pairs: Pairs, fail_above: float | None) -> CompareReport:
    outcomes = [outcome_of(*both) for both in pairs.common]
    compared = tuple(each for each in outcomes if isinstance(each, ComparedPair))
    without = tuple(each for each in outcomes if isinstance(each, NotComparedCell))
    if not compared and not pairs.lost:
        raise DataError(
            f"none of the {len(without)} common cells can be compared\n"
            f"{without[0].key}: {without[0].reason}"
        )
    lost = (_failed(key_of(result), failure, measured=True) for result, failure in pairs.lost)
    others = (_failed(failure.key, failure, measured=False) for failure in pairs.failed_new)
    return CompareReport(
        pairs=compared,
        not_compared=without,
        only_old=tuple(map(key_of, pairs.only_old)),
        only_new=tuple(map(key_of, pairs.only_new)),
        failed=(*lost, *others),
        failed_only_old=tuple(failure.key for failure in pairs.failed_old),
        fail_above=fail_above,
    )


def _failed(key: str, failure: CellFailure, *, measured: bool) -> FailedCell:
    return FailedCell(key, failure.kind, failure.reason, measured)


def outcome_of(old: BenchmarkResult, new: BenchmarkResult) -> ComparedPair | NotComparedCell:
    """What became of a cell; conditions that differ are named, and nothing is refused for them."""
    key = key_of(old)
    if old.switches.bound_ms is not None and new.switches.bound_ms is not None:
        rates = f"{old.switches.rate_per_s or 0:.4g} and {new.switches.rate_per_s or 0:.4g}"
        return NotComparedCell(
            key, f"the highest rates are {rates} queries per second, found without an interval"
        )
    try:
        # A cell with too few samples must not stop the comparison of the others.
        return _compared(key, old, new)
    except DataError as exc:
        return NotComparedCell(key, str(exc).splitlines()[0])


def _compared(key: str, old: BenchmarkResult, new: BenchmarkResult) -> ComparedPair:
    if old.switches.scenario == _OFFLINE:
        measure, ratio = THROUGHPUT, ratio_of_query_times(old, new)
        values = old.throughput_per_s, new.throughput_per_s
    else:
        measure, ratio = LATENCY, ratio_of_medians(latency_of(old), latency_of(new))
        values = percentile_value(latency_of(old)), percentile_value(latency_of(new))
    return ComparedPair(
        key=key,
        measure=measure,
        old=values[0],
        new=values[1],
        comparison=Comparison(ratio, MIN_EFFECT, differences(old, new)),
        conditions_old=old.condition,
        conditions_new=new.condition,
    )


def _contents(run: BenchmarkRun) -> str:
    keys = [*map(key_of, run.results)]
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}" if keys else "no results"

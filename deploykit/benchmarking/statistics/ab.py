"""Interleaved A/B: rounds of queries, the ratio of each pair, the noise floor, a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from deploykit.benchmarking.results import Samples, Series, times
from deploykit.benchmarking.statistics.comparing import (
    MIN_EFFECT,
    Comparison,
    Ratio,
    Verdict,
    ratio_of_logarithms,
)
from deploykit.benchmarking.statistics.percentiles import statistical_inefficiency
from deploykit.core.errors import DataError, UsageError
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MIN_PAIRS: Final = 20
"""Fewest rounds; an interval from fewer is worth nothing."""


@dataclass(frozen=True, slots=True)
class Round:
    """Two blocks of queries, one right after the other; ``start_s`` of both have one origin."""

    a: Samples
    b: Samples

    @property
    def a_first(self) -> bool:
        """True if the block of A came first; the order is drawn at random."""
        return bool(self.a.start_s[0] < self.b.start_s[0])


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """Every query of A against itself (``aa``: blocks A1 and A2), then of A against B (``ab``).

    ``warmup_a_ms`` and ``warmup_b_ms`` (warm-up queries,) do not count.

    Raises:
        UsageError: fewer than `MIN_PAIRS` rounds of one of them, or a time that cannot be one.
    """

    aa: tuple[Round, ...]
    ab: tuple[Round, ...]
    warmup_a_ms: Series
    warmup_b_ms: Series

    def __post_init__(self) -> None:
        for rounds in (self.aa, self.ab):
            require_pairs(len(rounds))
        for name in ("warmup_a_ms", "warmup_b_ms"):
            object.__setattr__(self, name, times(name, getattr(self, name)))


def require_pairs(count: int) -> None:
    """Refuse fewer rounds than `MIN_PAIRS`."""
    if count < MIN_PAIRS:
        raise UsageError(f"{count} rounds of A and B\nexpected at least {MIN_PAIRS}")


LATENCY: Final = "latency_ms"
_RESAMPLES: Final = 2_000
_MAX_SHARE: Final = 4  # a block of rounds is at most this part of them


@dataclass(frozen=True, slots=True)
class AbReport:
    """Result of interleaved A/B; ``noise`` is A2 over A1, ``comparison`` is B over A.

    ``a_ms`` and ``b_ms`` are the medians of the rounds' medians of ``step``.
    """

    step: str
    rounds: int
    queries_a: int
    queries_b: int
    a_ms: float
    b_ms: float
    noise: Ratio
    comparison: Comparison

    @property
    def verdict(self) -> Verdict:
        """Verdict on B against A."""
        return self.comparison.verdict

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons why a change could be missed; empty on a quiet machine."""
        floor = self.comparison.min_effect
        if floor <= MIN_EFFECT:
            return ()
        return (f"noisy: A against itself leaves {floor:.1%} open, a smaller change is not seen",)


def report_to_plain(report: AbReport) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "verdict": report.verdict.value,
        "step": report.step,
        "rounds": report.rounds,
        "queries_a": report.queries_a,
        "queries_b": report.queries_b,
        "a_ms": report.a_ms,
        "b_ms": report.b_ms,
        "ratio": to_plain(report.comparison.ratio),
        "noise": to_plain(report.noise),
        "min_effect": report.comparison.min_effect,
        "notes": list(report.notes),
    }


def report_of(rounds: Rounds, *, step: str = LATENCY, seed: int = 0) -> AbReport:
    """Compare one step of the queries; the same ``seed`` gives the same intervals.

    ``step`` is ``"latency_ms"`` or the name of a series of `Samples`. The smallest effect that
    gets a verdict is `MIN_EFFECT`, or what A against itself leaves open where that is more.

    Raises:
        UnknownNameError: A or B has no such step.
        DataError: a block whose median is zero.
    """
    noise = ratio_of_pairs(*_medians(rounds.aa, step), seed=seed)
    a, b = _medians(rounds.ab, step)
    return AbReport(
        step=step,
        rounds=len(rounds.ab),
        queries_a=sum(len(each.a) for each in rounds.ab),
        queries_b=sum(len(each.b) for each in rounds.ab),
        a_ms=float(np.median(a)),
        b_ms=float(np.median(b)),
        noise=noise,
        comparison=Comparison(ratio_of_pairs(a, b, seed=seed), max(MIN_EFFECT, floor_of(noise))),
    )


def floor_of(noise: Ratio) -> float:
    """The largest change, as a share, that the interval of A against itself does not rule out.

    >>> round(floor_of(Ratio(1.0, low=0.96, high=1.03)), 4)
    0.0417
    """
    return max(noise.high, 1 / noise.low) - 1


def ratio_of_pairs(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Ratio:
    """The median of b / a over the pairs, with its bootstrap interval over the pairs.

    ``a`` and ``b`` (pairs,) are positive and belong together by their place. Neighbouring pairs
    that are alike are drawn in blocks, and the interval is expanded for their small number, both
    as in `comparing.ratio_of_medians`.

    Raises:
        UsageError: fewer than `MIN_PAIRS` pairs, or sides of different length.
        DataError: a time that is zero, negative or not a number.
    """
    pairs = _Pairs.of(a, b)
    # In logarithms, so that A over B gives the inverse of B over A.
    value = float(np.median(pairs.logs))
    drawn = pairs.resampled(np.random.default_rng(seed))
    return ratio_of_logarithms(value, drawn, pairs.blocks)


def _medians(rounds: tuple[Round, ...], step: str) -> tuple[list[float], list[float]]:
    a = [float(np.median(_step(each.a, step))) for each in rounds]
    return a, [float(np.median(_step(each.b, step))) for each in rounds]


def _step(samples: Samples, name: str) -> Series:
    return samples.latency_ms if name == LATENCY else samples.step(name)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Logarithms of b / a (pairs,), drawn ``length`` neighbours at a time."""

    logs: Series
    length: int

    @classmethod
    def of(cls, a: ArrayLike, b: ArrayLike) -> Self:
        before, after = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if len(before) != len(after):
            raise UsageError(f"{len(before)} times of A and {len(after)} of B\nexpected pairs")
        require_pairs(len(before))
        if not (np.minimum(before, after) > 0).all():
            raise DataError("a round took no time, so there is no ratio\nmeasure for longer")
        logs = np.log(after / before)
        # Of the sign about the median: the estimate is a median, which depends on signs alone.
        inefficiency = statistical_inefficiency(logs <= np.median(logs))
        return cls(logs, min(ceil(inefficiency), len(logs) // _MAX_SHARE))

    @property
    def blocks(self) -> int:
        return ceil(len(self.logs) / self.length)

    def resampled(self, random: np.random.Generator) -> Series:
        """Medians of pairs drawn in blocks, which wrap around at the end (circular bootstrap)."""
        count = len(self.logs)
        starts = random.integers(count, size=(_RESAMPLES, self.blocks, 1))
        chosen = ((starts + np.arange(self.length)) % count).reshape(_RESAMPLES, -1)[:, :count]
        medians: Series = np.median(self.logs[chosen], axis=1)
        return medians

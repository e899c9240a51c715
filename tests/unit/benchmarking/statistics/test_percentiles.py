from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.benchmarking.statistics import percentiles
from deploykit.benchmarking.statistics.percentiles import (
    autocorrelation,
    coefficient_of_variation,
    interval_ranks,
    percentile,
    samples_needed,
    statistical_inefficiency,
)
from deploykit.core.errors import UsageError
from tests.unit.benchmarking.statistics.noise import dependent, independent, lognormal, mixture

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Series = NDArray[np.float64]

LEVELS = (1, 10, 50, 90, 95, 99, 99.9)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [1, 7, 8, 51, 100, 527, 528, 1000, 5296, 250_000])
def test_ranks_are_those_of_the_binomial_distribution(count: int, confidence: float) -> None:
    from scipy import stats

    tail = (1 - confidence) / 2
    for level in LEVELS:
        low = int(stats.binom.ppf(tail, count, level / 100))
        high = int(stats.binom.ppf(1 - tail, count, level / 100)) + 1
        expected = (low, high) if low >= 1 and high <= count else None
        assert interval_ranks(count, level, confidence=confidence) == expected


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99, 0.999])
def test_one_sample_fewer_than_needed_carries_nothing(level: float, confidence: float) -> None:
    needed = samples_needed(level, confidence=confidence)
    assert interval_ranks(needed, level, confidence=confidence) is not None
    assert interval_ranks(needed - 1, level, confidence=confidence) is None


def test_a_probability_may_lie_on_the_bound() -> None:
    """Four samples miss the median on one side with 0.0625, up to rounding just the tail."""
    assert interval_ranks(4, 50, confidence=0.875) in {None, (1, 4)}
    assert interval_ranks(5, 50, confidence=0.875) == (1, 5)


@pytest.mark.parametrize("count", [60, 61, 1000])
@pytest.mark.parametrize("level", [25, 50, 90])
def test_the_value_is_numpys_and_the_interval_is_of_two_samples(count: int, level: float) -> None:
    samples = np.random.default_rng(count).permutation(np.geomspace(1, 100, count))
    found = percentile(samples, level)
    assert found is not None
    ordered = np.sort(samples)
    ranks = interval_ranks(count, level)
    assert ranks is not None
    assert found.value == np.percentile(samples, level)
    assert (found.low, found.high) == (ordered[ranks[0] - 1], ordered[ranks[1] - 1])
    assert found.low <= found.value <= found.high
    assert (found.level, found.confidence, found.effective_samples) == (level, 0.99, count)


def test_what_the_samples_do_not_carry_is_left_out() -> None:
    samples = np.random.default_rng(0).standard_normal(527)
    assert percentile(samples, 90) is not None
    assert percentile(samples, 99) is None
    assert percentile(samples[:0], 50) is None
    assert percentile(samples[:7], 50) is None


def test_dependent_samples_carry_less() -> None:
    rng = np.random.default_rng(1)
    alone = percentile(independent(rng, 4000, 0.1), 50)
    tied = percentile(dependent(rng, 4000, 0.1, 0.9), 50)
    assert alone is not None
    assert tied is not None
    assert alone.effective_samples == 4000
    assert tied.effective_samples < 800
    assert tied.high - tied.low > 2 * (alone.high - alone.low)
    assert percentile(dependent(rng, 600, 0.1, 0.99), 99) is None


FIXED = ((1.0, 5.0, 0.0),)
BIMODAL = ((0.7, 4.0, 0.1), (0.3, 9.0, 0.3))
STALLS = ((0.98, 5.0, 0.25), (0.02, 60.0, 15.0))


def true_mixture(parts: tuple[tuple[float, float, float], ...], level: float) -> float:
    from scipy import optimize, stats

    def excess(value: float) -> float:
        below = sum(weight * stats.norm.cdf(value, *part) for weight, *part in parts)
        return float(below) - level / 100

    return float(optimize.brentq(excess, 0, 200, xtol=1e-12))


def covered(draw: Callable[[np.random.Generator], Series], level: float, truth: float) -> int:
    """In how many of 100 seeded measurements the interval is there and holds the truth."""
    found = [percentile(draw(np.random.default_rng(seed)), level) for seed in range(100)]
    return sum(one is not None and one.low <= truth <= one.high for one in found)


@pytest.mark.parametrize("level", [50, 90, 99])
@pytest.mark.parametrize("name", ["fixed", "normal", "bimodal", "lognormal", "stalls"])
def test_the_interval_holds_the_true_percentile(name: str, level: float) -> None:
    from scipy import stats

    draws: dict[str, Callable[[np.random.Generator], Series]] = {
        "fixed": lambda rng: mixture(rng, 1000, FIXED),
        "normal": lambda rng: independent(rng, 1000, 0.05),
        "bimodal": lambda rng: mixture(rng, 1000, BIMODAL),
        "lognormal": lambda rng: lognormal(rng, 1000, 0.5),
        "stalls": lambda rng: mixture(rng, 1000, STALLS),
    }
    truths: dict[str, Callable[[], float]] = {
        "fixed": lambda: 5.0,
        "normal": lambda: stats.norm.ppf(level / 100, 5, 0.25),
        "bimodal": lambda: true_mixture(BIMODAL, level),
        "lognormal": lambda: stats.lognorm.ppf(level / 100, 0.5, scale=5),
        "stalls": lambda: true_mixture(STALLS, level),
    }
    assert covered(draws[name], level, truths[name]()) >= 95


@pytest.mark.parametrize("lag", [0.5, 0.8])
@pytest.mark.parametrize("level", [50, 90])
def test_the_interval_holds_for_dependent_samples(level: float, lag: float) -> None:
    from scipy import stats

    truth = stats.norm.ppf(level / 100, 5, 0.5)
    assert covered(lambda rng: dependent(rng, 1000, 0.1, lag), level, truth) >= 95


@pytest.mark.parametrize(("count", "level"), [(768, 99), (1000, 50), (1535, 50)])
def test_ranks_are_stretched_to_the_series_exactly(
    monkeypatch: pytest.MonkeyPatch, count: int, level: float
) -> None:
    """For 546 of 768 samples, 546 * (768 / 546) is above 768 in floats."""
    samples = np.arange(1.0, count + 1)  # the sample of rank r is r
    for effective in range(samples_needed(level), count + 1):
        inefficiency = np.nextafter(count / effective, 0)
        monkeypatch.setattr(
            percentiles, "statistical_inefficiency", lambda _series, found=inefficiency: found
        )
        found = percentile(samples, level)
        ranks = interval_ranks(effective, level)
        assert found is not None
        assert ranks is not None
        assert found.effective_samples == effective
        stretched = [Fraction(rank * count, effective) for rank in ranks]
        assert (found.low, found.high) == (floor(stretched[0]), ceil(stretched[1]))


def test_the_interval_is_not_wider_than_it_must_be() -> None:
    """At a confidence of 80 % about a fifth must miss, or the promise is not the one made."""
    found = [
        percentile(independent(np.random.default_rng(seed), 1000, 0.1), 50, confidence=0.8)
        for seed in range(400)
    ]
    held = sum(one is not None and one.low <= 5 <= one.high for one in found)
    assert 300 <= held <= 350


@pytest.mark.parametrize("level", [0, 100, -1, 150, float("nan")])
def test_an_impossible_level_is_refused(level: float) -> None:
    message = f"a percentile of {level}, expected more than 0 and less than 100"
    with pytest.raises(UsageError, match=message):
        samples_needed(level)
    with pytest.raises(UsageError, match=message):
        percentile(np.ones(100), level)
    with pytest.raises(UsageError, match=message):
        interval_ranks(100, level)


@pytest.mark.parametrize("confidence", [0, 1, 99, float("nan")])
def test_an_impossible_confidence_is_refused(confidence: float) -> None:
    message = f"a confidence of {confidence}, expected more than 0 and less than 1"
    with pytest.raises(UsageError, match=message):
        percentile(np.ones(100), 50, confidence=confidence)


def test_the_coefficient_of_variation_is_scipys() -> None:
    from scipy import stats

    samples = independent(np.random.default_rng(3), 500, 0.07)
    assert coefficient_of_variation(samples) == pytest.approx(stats.variation(samples, ddof=1))
    assert coefficient_of_variation(np.full(9, 3.0)) == 0
    assert coefficient_of_variation(np.array([3.0])) is None
    assert coefficient_of_variation(np.zeros(9)) is None


@pytest.mark.parametrize("count", [1, 2, 3, 16, 101])
def test_autocorrelation_is_the_sum_of_the_products(count: int) -> None:
    series = np.random.default_rng(count).standard_normal(count)
    centred = series - series.mean()
    direct = np.correlate(centred, centred, "full")[count - 1 :]
    expected = direct / direct[0] if count > 1 else np.ones(1)
    np.testing.assert_allclose(autocorrelation(series), expected, atol=1e-12)
    assert autocorrelation(np.full(count, 2.0)).tolist() == [1.0, *[0.0] * (count - 1)]


@pytest.mark.parametrize("lag", [0.3, 0.6, 0.9])
def test_inefficiency_is_that_of_an_autoregressive_series(lag: float) -> None:
    series = dependent(np.random.default_rng(5), 20_000, 0.1, lag)
    assert statistical_inefficiency(series) == pytest.approx((1 + lag) / (1 - lag), rel=0.2)


def test_independent_samples_are_worth_what_they_are() -> None:
    """An estimate may say too little by chance, never too much: an interval is then wider."""
    series = (np.random.default_rng(seed).standard_normal(500) for seed in range(100))
    found = [statistical_inefficiency(one) for one in series]
    assert min(found) == 1
    assert found.count(1) >= 80
    assert np.mean(found) < 1.1
    assert statistical_inefficiency(np.full(100, 7.0)) == 1
    assert statistical_inefficiency(np.array([7.0])) == 1
    assert statistical_inefficiency(np.tile([1.0, 2.0], 50)) == 1

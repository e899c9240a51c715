from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.statistics.ab import (
    MIN_PAIRS,
    Round,
    Rounds,
    floor_of,
    ratio_of_pairs,
    report_of,
    report_to_plain,
)
from deploykit.benchmarking.statistics.comparing import MIN_EFFECT, Comparison, Ratio, Verdict
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from tests.unit.benchmarking.statistics.noise import MEDIAN_MS, dependent, independent, samples_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Series = NDArray[np.float64]
    Draw = Callable[[np.random.Generator], tuple[Series, Series]]

PAIRS = MIN_PAIRS


def levels(rng: np.random.Generator) -> Series:
    """A shared machine: its speed stays for some rounds, then jumps by up to a third."""
    jumps = np.where(rng.random(PAIRS) < 0.2, rng.uniform(0.8, 1.3, PAIRS), np.nan)
    jumps[0] = 1.0
    last = np.maximum.accumulate(np.where(np.isnan(jumps), 0, np.arange(PAIRS)))
    return np.asarray(jumps[last], np.float64)


def around(rng: np.random.Generator, variation: float) -> tuple[Series, Series]:
    return independent(rng, PAIRS, variation), independent(rng, PAIRS, variation)


def on_a_shared_machine(rng: np.random.Generator) -> tuple[Series, Series]:
    level = levels(rng)
    a, b = around(rng, 0.02)
    return a * level, b * level


def with_stalls(rng: np.random.Generator) -> tuple[Series, Series]:
    a, b = around(rng, 0.01)
    a[rng.random(PAIRS) < 0.1] *= 2
    b[rng.random(PAIRS) < 0.1] *= 2
    return a, b


NOISE: dict[str, Draw] = {
    "quiet": lambda rng: around(rng, 0.005),
    "noisy": lambda rng: around(rng, 0.04),
    "speed jumps": on_a_shared_machine,
    "stalls": with_stalls,
}


@cache
def ratios(name: str, slowdown: float) -> list[Ratio]:
    """Of 100 seeded sets of pairs, B slower by the factor."""
    found = []
    for seed in range(100):
        a, b = NOISE[name](np.random.default_rng(seed))
        found.append(ratio_of_pairs(a, b * slowdown))
    return found


def verdicts(name: str, slowdown: float) -> list[Verdict]:
    return [Comparison(ratio, MIN_EFFECT).verdict for ratio in ratios(name, slowdown)]


@pytest.mark.parametrize("name", NOISE)
def test_the_interval_holds_the_true_ratio(name: str) -> None:
    assert sum(ratio.low <= 1.1 <= ratio.high for ratio in ratios(name, 1.1)) >= 95


@pytest.mark.parametrize("name", NOISE)
def test_the_same_thing_twice_is_no_difference(name: str) -> None:
    assert verdicts(name, 1.0).count(Verdict.NO_DIFFERENCE) >= 95


@pytest.mark.parametrize("name", NOISE)
def test_a_slowdown_of_a_tenth_is_found(name: str) -> None:
    assert verdicts(name, 1.1).count(Verdict.SLOWER) >= 90


def test_a_speedup_is_found() -> None:
    assert verdicts("speed jumps", 1 / 1.1).count(Verdict.FASTER) >= 90


def test_what_disturbs_a_whole_round_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b = around(rng, 0.01)
    level = rng.uniform(0.5, 2.0, PAIRS)
    quiet, disturbed = ratio_of_pairs(a, b), ratio_of_pairs(a * level, b * level)
    expected = quiet.value, quiet.low, quiet.high
    assert (disturbed.value, disturbed.low, disturbed.high) == pytest.approx(expected)


@pytest.mark.parametrize("count", [20, 21, 500])
def test_the_ratio_is_numpys_median_of_the_pairs(count: int) -> None:
    rng = np.random.default_rng(count)
    a, b = independent(rng, count, 0.05), 1.3 * independent(rng, count, 0.05)
    ratio = ratio_of_pairs(a, b)
    # Of an even number of pairs it is the geometric mean of the middle two.
    assert ratio.value == pytest.approx(np.median(b / a), rel=1e-3)
    assert ratio.value == pytest.approx(np.exp(np.median(np.log(b / a))), rel=1e-12)
    assert ratio.low < ratio.value < ratio.high


def test_the_interval_has_the_width_of_the_theory() -> None:
    """A median's standard error is sqrt(pi / 2) sigma / sqrt(n); a pair has two noises."""
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(20):
        ratio = ratio_of_pairs(independent(rng, 1000, 0.02), independent(rng, 1000, 0.02))
        widths.append(np.log(ratio.high / ratio.low) / 2)
    expected = 2.5758 * np.sqrt(np.pi / 2) * np.sqrt(2) * 0.02 / np.sqrt(1000)
    assert np.mean(widths) == pytest.approx(expected, rel=0.15)


def test_pairs_that_are_like_their_neighbours_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    still = np.full(400, MEDIAN_MS)
    narrow = ratio_of_pairs(still, independent(rng, 400, 0.03))
    wide = ratio_of_pairs(still, dependent(rng, 400, 0.03, 0.9))
    assert wide.high / wide.low - 1 > 2 * (narrow.high / narrow.low - 1)


def test_a_and_b_may_change_places() -> None:
    a, b = on_a_shared_machine(np.random.default_rng(0))
    there, back = ratio_of_pairs(a, b), ratio_of_pairs(b, a)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1, abs=5e-3)


def test_the_seed_decides_the_interval() -> None:
    a, b = around(np.random.default_rng(0), 0.05)
    assert ratio_of_pairs(a, b, seed=3) == ratio_of_pairs(a, b, seed=3)
    assert ratio_of_pairs(a, b, seed=3) != ratio_of_pairs(a, b, seed=4)


def test_fixed_times_have_an_exact_ratio() -> None:
    ratio = ratio_of_pairs([4.0] * PAIRS, [5.0] * PAIRS)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.25, 1.25, 1.25))


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^19 rounds of A and B\nexpected at least 20$"):
        ratio_of_pairs([4.0] * 19, [4.0] * 19)


def test_sides_must_have_the_same_length() -> None:
    with pytest.raises(UsageError, match=r"^20 times of A and 21 of B\nexpected pairs$"):
        ratio_of_pairs([4.0] * 20, [4.0] * 21)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_round_without_a_time_has_no_ratio(bad: float) -> None:
    with pytest.raises(
        DataError, match=r"^a round took no time, so there is no ratio\nmeasure for"
    ):
        ratio_of_pairs([4.0] * 20, [4.0] * 19 + [bad])


def rounds_of(
    a1_ms: Any, a2_ms: Any, a_ms: Any, b_ms: Any, queries: int = 3, **steps: float
) -> Rounds:
    """Blocks of three queries, the given median between a shorter and a longer one."""

    def block(median_ms: float, start_s: float) -> Any:
        times = median_ms * np.array([0.9, 1.0, 1.2])[:queries]
        shares = {name: times * share for name, share in steps.items()}
        return samples_of(times, start_s=start_s + np.arange(queries) / 1e3, **shares)

    def pairs(first_ms: Any, second_ms: Any) -> tuple[Round, ...]:
        times = np.broadcast_arrays(first_ms, second_ms, np.zeros(PAIRS))[:2]
        return tuple(
            Round(block(one, 2.0 * at), block(other, 2.0 * at + 1))
            for at, (one, other) in enumerate(zip(*times, strict=True))
        )

    warm_up = np.array([9.0, 7.0])
    return Rounds(pairs(a1_ms, a2_ms), pairs(a_ms, b_ms), warm_up, warm_up[:1])


def test_a_report_has_the_figures_of_both_sides() -> None:
    report = report_of(rounds_of(4.0, 4.0, 4.0, 5.0))
    assert report.a_ms == pytest.approx(4.0)
    assert report.b_ms == pytest.approx(5.0)
    assert (report.rounds, report.queries_a, report.queries_b) == (20, 60, 60)
    assert report.comparison.ratio.value == pytest.approx(1.25)
    assert report.noise.value == pytest.approx(1.0)
    assert report.comparison.min_effect == MIN_EFFECT
    assert report.verdict is Verdict.SLOWER
    assert report.notes == ()


def test_a_report_is_plain_data() -> None:
    report = report_of(rounds_of(4.0, 4.0, 4.0, 3.0))
    plain = json.loads(json.dumps(report_to_plain(report)))
    assert plain["verdict"] == "faster"
    assert plain["ratio"]["value"] == pytest.approx(0.75)
    assert plain["noise"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert plain["min_effect"] == MIN_EFFECT
    assert plain["step"] == "latency_ms"
    assert (plain["a_ms"], plain["b_ms"]) == pytest.approx((4.0, 3.0))
    assert (plain["rounds"], plain["queries_a"], plain["queries_b"]) == (20, 60, 60)
    assert plain["notes"] == []


def test_what_a_against_itself_leaves_open_is_no_verdict() -> None:
    a1, a2 = around(np.random.default_rng(0), 0.2)
    noisy = report_of(rounds_of(a1, a2, 4.0, 4.4))
    floor = noisy.comparison.min_effect
    assert floor == floor_of(noisy.noise) > 0.1
    assert noisy.verdict is Verdict.NO_DIFFERENCE
    note = f"noisy: A against itself leaves {floor:.1%} open, a smaller change is not seen"
    assert noisy.notes == (note,)
    assert report_to_plain(noisy)["notes"] == [note]
    assert report_of(rounds_of(a1, a2, 4.0, 8.0)).verdict is Verdict.SLOWER


def test_a_block_that_always_wins_against_itself_raises_the_floor() -> None:
    report = report_of(rounds_of(4.0, 4.2, 4.0, 4.1))
    assert report.comparison.min_effect == pytest.approx(0.05)
    assert report.verdict is Verdict.NO_DIFFERENCE


@pytest.mark.parametrize(
    ("noise", "floor"), [(Ratio(1, 1, 1), 0), (Ratio(1, 0.8, 1.1), 0.25), (Ratio(1, 0.9, 1.3), 0.3)]
)
def test_the_floor_is_the_farther_end_of_the_interval(noise: Ratio, floor: float) -> None:
    assert floor_of(noise) == pytest.approx(floor)


def test_latency_is_what_trtexec_calls_so() -> None:
    rounds = rounds_of(4.0, 4.0, 4.0, 5.0, compute_ms=0.5, h2d_ms=0.25, d2h_ms=0.125)
    assert report_of(rounds).a_ms == pytest.approx(4.0 * 0.875)
    assert report_of(rounds, step="compute_ms").a_ms == pytest.approx(2.0)
    assert report_of(rounds, step="wall_ms").a_ms == pytest.approx(4.0)


def test_a_step_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown step 'compute_ms'"):
        report_of(rounds_of(4.0, 4.0, 4.0, 5.0), step="compute_ms")

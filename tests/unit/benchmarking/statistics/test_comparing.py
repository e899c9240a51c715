from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.benchmarking.statistics.comparing import (
    Comparison,
    Ratio,
    Verdict,
    compare,
    differences,
    ratio_of_medians,
)
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from tests.unit.benchmarking.statistics.noise import (
    ENVIRONMENT,
    SUBJECT,
    SWITCHES,
    dependent,
    independent,
    mixture,
    result_of,
    samples_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Series = NDArray[np.float64]
    Draw = Callable[[np.random.Generator], Series]

NOISE: dict[str, Draw] = {
    "few samples": lambda rng: independent(rng, 60, 0.05),
    "noisy": lambda rng: independent(rng, 300, 0.1),
    "dependent": lambda rng: dependent(rng, 300, 0.05, 0.7),
    "noisy and dependent": lambda rng: dependent(rng, 500, 0.1, 0.7),
    "bimodal": lambda rng: mixture(rng, 300, ((0.8, 4.0, 0.2), (0.2, 6.0, 0.3))),
}


PAIRS, FEW_PAIRS = 100, 30
"""The few are for what is found in nearly every pair, with a rate that need not be known well."""


def verdicts(draw: Draw, slowdown: float, pairs: int) -> list[Verdict]:
    """Of seeded pairs of runs, the second slower by the factor."""
    found = []
    for seed in range(pairs):
        rng = np.random.default_rng(seed)
        ratio = ratio_of_medians(draw(rng), draw(rng) * slowdown)
        found.append(Comparison(ratio, min_effect=0.02).verdict)
    return found


@pytest.mark.parametrize("name", NOISE)
def test_the_same_thing_twice_is_no_difference(name: str) -> None:
    assert verdicts(NOISE[name], 1.0, PAIRS).count(Verdict.NO_DIFFERENCE) >= 0.95 * PAIRS


@pytest.mark.parametrize("name", NOISE)
def test_a_slowdown_of_a_tenth_is_found(name: str) -> None:
    assert verdicts(NOISE[name], 1.1, FEW_PAIRS).count(Verdict.SLOWER) >= 0.9 * FEW_PAIRS


def test_a_speedup_is_found() -> None:
    found = verdicts(NOISE["dependent"], 1 / 1.1, FEW_PAIRS)
    assert found.count(Verdict.FASTER) >= 0.9 * FEW_PAIRS


def test_the_interval_has_the_width_of_the_theory() -> None:
    """A median's standard error is sqrt(pi / 2) sigma / sqrt(n); two of them make a ratio."""
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(20):
        ratio = ratio_of_medians(independent(rng, 1000, 0.05), independent(rng, 1000, 0.05))
        widths.append(np.log(ratio.high / ratio.low) / 2)
    expected = 2.5758 * np.sqrt(2) * np.sqrt(np.pi / 2) * 0.05 / np.sqrt(1000)
    assert np.mean(widths) == pytest.approx(expected, rel=0.15)


def test_dependence_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    narrow = ratio_of_medians(*(independent(rng, 1000, 0.05) for _ in range(2)))
    wide = ratio_of_medians(*(dependent(rng, 1000, 0.05, 0.9) for _ in range(2)))
    assert wide.high / wide.low - 1 > 2 * (narrow.high / narrow.low - 1)


@pytest.mark.parametrize("count", [20, 21, 3001])
def test_the_ratio_is_that_of_numpys_medians(count: int) -> None:
    rng = np.random.default_rng(count)
    old, new = independent(rng, count, 0.1), independent(rng, count + 1, 0.1) * 1.3
    ratio = ratio_of_medians(old, new)
    assert ratio.value == pytest.approx(np.median(new) / np.median(old), rel=1e-12)
    assert ratio.low < ratio.value < ratio.high


def test_the_order_of_the_results_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    old, new = independent(rng, 2000, 0.05), independent(rng, 2000, 0.05) * 1.2
    there, back = ratio_of_medians(old, new), ratio_of_medians(new, old)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1, abs=2e-3)


def test_the_seed_decides_the_interval() -> None:
    rng = np.random.default_rng(4)
    old, new = independent(rng, 200, 0.05), independent(rng, 200, 0.05)
    assert ratio_of_medians(old, new, seed=3) == ratio_of_medians(old, new, seed=3)
    assert ratio_of_medians(old, new, seed=3) != ratio_of_medians(old, new, seed=4)


def test_many_samples_are_drawn_in_parts() -> None:
    rng = np.random.default_rng(4)
    old = np.repeat([4.0, 5.0, 6.0], 2000)
    new = rng.permutation(old) * 1.5
    ratio = ratio_of_medians(old, new)
    assert ratio.value == pytest.approx(1.5)
    assert ratio.low <= 1.5 <= ratio.high


def test_fixed_latencies_are_compared_exactly() -> None:
    assert ratio_of_medians(np.full(20, 4.0), np.full(20, 4.0)) == Ratio(1.0, 1.0, 1.0)
    ratio = ratio_of_medians(np.full(20, 4.0), np.full(20, 5.0))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.25, 1.25, 1.25))


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.05, 1.03, 1.07), Verdict.SLOWER),
        (Ratio(1.05, 0.99, 1.12), Verdict.NO_DIFFERENCE),
        (Ratio(1.015, 1.01, 1.02), Verdict.NO_DIFFERENCE),
        (Ratio(0.95, 0.93, 0.97), Verdict.FASTER),
        (Ratio(0.95, 0.88, 1.01), Verdict.NO_DIFFERENCE),
        (Ratio(0.985, 0.98, 0.99), Verdict.NO_DIFFERENCE),
    ],
)
def test_a_verdict_needs_certainty_and_size(ratio: Ratio, verdict: Verdict) -> None:
    assert Comparison(ratio, min_effect=0.02).verdict is verdict


@pytest.mark.parametrize(
    ("ratio", "fail_above", "fails"),
    [
        (Ratio(1.10, 1.07, 1.13), 0.05, True),
        (Ratio(1.10, 1.07, 1.13), 0.10, False),
        (Ratio(1.10, 0.99, 1.20), 0.05, False),
        (Ratio(0.90, 0.87, 0.93), 0.05, False),
        (Ratio(1.01, 1.005, 1.02), 0.0, False),
    ],
)
def test_a_regression_is_slower_by_more_than_is_allowed(
    ratio: Ratio, fail_above: float, fails: bool
) -> None:
    assert Comparison(ratio, min_effect=0.02).regression(fail_above) is fails


@pytest.mark.parametrize("share", [-0.05, float("nan")])
def test_a_negative_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=f"fail_above is {share}, expected 0 or more, 0.05 for"):
        Comparison(Ratio(1, 1, 1), min_effect=0.02).regression(share)
    with pytest.raises(UsageError, match=f"min_effect is {share}, expected 0 or more, 0.02 for"):
        compare(result_of([1.0] * 20), result_of([1.0] * 20), min_effect=share)


def steady(milliseconds: float = 4.0, **changes: Any) -> Any:
    return result_of([milliseconds] * 20, **changes)


def test_two_results_are_compared() -> None:
    comparison = compare(steady(4.0), steady(5.0))
    assert comparison.verdict is Verdict.SLOWER
    assert comparison.differences == ()
    assert comparison.regression(0.2)
    assert compare(steady(4.0), steady(5.0), min_effect=0.3).verdict is Verdict.NO_DIFFERENCE


def test_another_step_is_compared_where_both_have_it() -> None:
    old = steady(samples=samples_of([9.0] * 20, compute_ms=[2.0] * 20))
    new = steady(samples=samples_of([9.0] * 20, compute_ms=[1.0] * 20))
    assert compare(old, new).verdict is Verdict.NO_DIFFERENCE
    assert compare(old, new, step="compute_ms").ratio.value == pytest.approx(0.5)
    with pytest.raises(UnknownNameError, match="unknown step 'compute_ms'"):
        compare(old, steady(), step="compute_ms")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"switches": replace(SWITCHES, streams=4)}, "streams 1 against 4"),
        ({"switches": replace(SWITCHES, preset=None)}, "preset trtexec10 against none"),
        ({"switches": replace(SWITCHES, spin=False)}, "spin True against False"),
        ({"subject": replace(SUBJECT, batch=1)}, "batch 8 against 1"),
        ({"environment": {**ENVIRONMENT, "cpu": "B" * 50}}, f"against {'B' * 37}..."),
        ({"environment": {**ENVIRONMENT, "gpus": []}}, "gpus NVIDIA L4 against none"),
        ({"environment": {}}, "driver 13.0 against none"),
    ],
)
def test_what_differs_is_named_and_refused(changes: dict[str, Any], expected: str) -> None:
    old, new = steady(4.0), steady(5.0, **changes)
    with pytest.raises(UsageError, match="cannot be compared, old against new: ") as caught:
        compare(old, new)
    first, *rest = str(caught.value).splitlines()
    assert first.endswith(expected)
    assert rest == [
        "measure again on the same machine with the same switches, or force the comparison"
    ]
    forced = compare(old, new, force=True)
    assert forced.verdict is Verdict.SLOWER
    assert forced.differences == differences(old, new) != ()


def test_every_difference_is_named() -> None:
    switches = replace(SWITCHES, streams=2, seed=7)
    environment = {**ENVIRONMENT, "logical_cores": 64}
    assert differences(steady(), steady(switches=switches, environment=environment)) == (
        "logical_cores 2 against 64",
        "streams 1 against 2",
        "seed 0 against 7",
    )


def test_models_packages_and_precisions_may_differ() -> None:
    environment = {**ENVIRONMENT, "packages": {"numpy": "2.5.0"}}
    subject = replace(SUBJECT, model="vgg16", engine_sha256="c" * 64, compiler_version="12")
    assert differences(steady(), steady(environment=environment, subject=subject)) == ()


def test_too_few_samples_are_not_compared() -> None:
    with pytest.raises(DataError, match=r"the new result has 19 samples, a comparison needs 20\n"):
        compare(steady(), result_of([4.0] * 19))
    with pytest.raises(DataError, match=r"the old result has 1 samples, a comparison needs 20\n"):
        compare(result_of([4.0]), steady())


def test_a_time_of_zero_has_no_ratio() -> None:
    with pytest.raises(DataError, match="the old result holds a time of zero, so there is no rat"):
        compare(result_of([0.0] + [4.0] * 19), steady())

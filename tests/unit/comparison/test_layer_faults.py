"""The rules for what goes wrong, at their edges, on figures that are given."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from deploykit.comparison.activation_figures import Sums, ValueComparison
from deploykit.comparison.layerwise import (
    decibels,
    drop_db,
    find_faults,
)
from deploykit.core.precision import Precision
from deploykit.graph.activations import ActivationPair

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def value(name: str, **changes: Any) -> ValueComparison:
    figures: dict[str, Any] = {
        "name": name,
        "reference": name,
        "node": f"{name}/node",
        "op_type": "Conv",
        "reads": (),
        "readers": (),
        "shape": (1, 4),
        "reference_shape": (1, 4),
        "cosine": 1.0,
        "sqnr_db": inf,
        "range": (-1.0, 1.0),
        "reference_range": (-1.0, 1.0),
        "non_finite": 0,
        "reference_non_finite": 0,
    }
    return ValueComparison(**(figures | changes))


def kinds(values: list[ValueComparison], precision: Precision) -> list[tuple[str, str]]:
    return [(fault.value.name, fault.kind) for fault in find_faults(values, precision)]


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("before", [inf, 200.0, "healthy"])
def test_a_good_input_counts_as_healthy(precision: Precision, before: float | str) -> None:
    allowed = precision.facts.tolerance
    start = allowed.healthy_db if isinstance(before, str) else before
    edge = allowed.healthy_db - allowed.drop_db
    first = value("a", sqnr_db=start)
    assert kinds([first, value("b", reads=("a",), sqnr_db=edge)], precision) == []
    worse = value("b", reads=("a",), sqnr_db=edge - 0.1)
    assert kinds([first, worse], precision) == [("b", "sqnr")]
    assert drop_db(worse, [first], precision) == pytest.approx(allowed.drop_db + 0.1)


def test_the_worst_input_counts() -> None:
    inputs = [value("a", sqnr_db=70.0), value("b", sqnr_db=45.0)]
    assert kinds([*inputs, value("c", reads=("a", "b"), sqnr_db=26.0)], FP16) == []
    assert kinds([*inputs, value("c", reads=("a", "b"), sqnr_db=24.0)], FP16) == [("c", "sqnr")]
    assert kinds([*inputs, value("c", reads=("a",), sqnr_db=26.0)], FP16) == [("c", "sqnr")]


def test_what_reads_the_input_of_the_graph_has_good_inputs() -> None:
    (fault,) = find_faults([value("a", sqnr_db=3.0)], FP16)
    assert fault.inputs == ()
    assert fault.reason == "SQNR falls from equal to 3.0 dB"


def test_nothing_is_lost_twice() -> None:
    chain = [value("a", sqnr_db=-3.0, cosine=0.1), value("b", reads=("a",), sqnr_db=-9.0, cosine=0)]
    assert kinds(chain, FP16) == [("a", "sqnr")]


@pytest.mark.parametrize("precision", list(Precision))
def test_cosine_under_its_limit_without_a_drop(precision: Precision) -> None:
    limit, level = precision.facts.limits.min_cosine, precision.facts.tolerance.healthy_db - 10
    first = value("a", sqnr_db=level, cosine=limit)
    under = value("b", reads=("a",), sqnr_db=level - 1, cosine=limit - 1e-3)
    after = value("c", reads=("b",), sqnr_db=level - 2, cosine=limit - 2e-3)
    assert kinds([first, under, after], precision) == [("b", "cosine")]
    (fault,) = find_faults([first, under, after], precision)
    assert fault.reason.endswith(f"is under {limit}, the limit of {precision}")
    if precision is INT8:
        assert fault.advice[0].startswith("errors have added up: --sensitive-layers keep")
    elif precision == "fp8":  # it has no trials
        assert fault.advice[0] == "errors have added up"
    else:
        assert fault.advice[0].startswith("no single node does this")


@pytest.mark.parametrize("side", ["non_finite", "reference_non_finite"])
def test_nan_counts_where_it_appears(side: str) -> None:
    broken: dict[str, Any] = {side: 2, "sqnr_db": nan, "cosine": nan}
    chain = [value("a"), value("b", reads=("a",), **broken), value("c", reads=("b",), **broken)]
    assert kinds(chain, FP16) == [("b", "non_finite")]
    # NaN that is gone again leaves nothing to judge by.
    assert kinds([*chain[:2], value("c", reads=("b",), sqnr_db=1.0)], FP16) == [("b", "non_finite")]


def test_shape_comes_before_figures() -> None:
    other: dict[str, Any] = {"shape": (1, 5), "sqnr_db": nan, "cosine": nan}
    chain = [value("a"), value("b", reads=("a",), **other), value("c", reads=("b",), **other)]
    assert kinds(chain, FP32) == [("b", "shape")]


def test_noise_where_the_reference_is_zero_is_an_endless_loss() -> None:
    silent = value("b", reads=("a",), sqnr_db=-inf)
    assert drop_db(silent, [value("a", sqnr_db=70.0)], FP16) == inf
    assert drop_db(silent, [value("a", sqnr_db=-inf)], FP16) == 0
    assert kinds([value("a"), silent], FP16) == [("b", "sqnr")]


def advice(precision: Precision, **changes: Any) -> tuple[str, ...]:
    (fault,) = find_faults([value("a", **({"sqnr_db": 0.0} | changes))], precision)
    return fault.advice


def test_advice_for_each_precision() -> None:
    assert advice(FP32)[1] == "export it again from the same weights"
    assert advice(FP16)[1].startswith("keep a/node in FP32")
    assert "--exclude 'a/node'" in advice(INT8)[0]
    assert "more images" in advice(INT8)[1]


def test_advice_for_ranges_of_int8() -> None:
    quantized: dict[str, Any] = {"op_type": "DequantizeLinear", "readers": ("p", "q")}
    clipped = advice(INT8, **quantized, range=(0.0, 0.4))
    assert clipped[0] == (
        "its INT8 range ends at 0.4, the reference reaches 1: all beyond is clipped"
    )
    assert clipped[-1].endswith("--exclude 'p' --exclude 'q'")
    coarse = advice(INT8, **quantized, range=(-9.0, 9.0))
    assert coarse[0].startswith("its INT8 steps are too coarse for a range of 9: try another")


def test_advice_for_overflow() -> None:
    broken: dict[str, Any] = {"non_finite": 1, "sqnr_db": nan, "cosine": nan}
    assert "passes 65504" in advice(FP16, **broken)[0]
    large = advice(FP16, **broken, reference_range=(-7e4, 1.0))
    assert large[0] == "the reference reaches 7e+04, FP16 ends at 65504"


@pytest.mark.parametrize(
    ("op_type", "cause"), [("Div", "underflows to 0"), ("Add", "NaN or infinite")]
)
def test_an_operand_that_vanished_is_blamed_where_it_is_divided_by(
    op_type: str, cause: str
) -> None:
    """A sum of 0 and an infinite mask is infinite for the mask."""
    small = value("a", range=(0.0, 1.0), reference_range=(1e-8, 1.0))
    broken: dict[str, Any] = {"non_finite": 1, "sqnr_db": nan, "cosine": nan}
    result = value("b", reads=("a",), op_type=op_type, **broken)
    (fault,) = find_faults([small, result], FP16)
    assert cause in fault.reason


def test_decibels_of_what_is_no_number() -> None:
    assert [decibels(inf), decibels(nan), decibels(-inf)] == ["equal", "-", "-inf dB"]


# Figures

PAIR = ActivationPair("a", "a", "n", "Conv", (), (), None)


def figures(*runs: tuple[list[float], list[float]]) -> ValueComparison:
    sums = Sums()
    for left, right in runs:
        sums.add(np.array([left], np.float16), np.array([right], np.float32))
    return sums.figures(PAIR)


def test_ranges_leave_out_what_is_not_finite() -> None:
    found = figures(([1.0, nan, -2.0, inf], [1.0, 3.0, -2.0, 4.0]), ([0.5] * 4, [0.5] * 4))
    assert (found.non_finite, found.reference_non_finite) == (2, 0)
    assert found.range == (-2.0, 1.0)
    assert found.reference_range == (-2.0, 4.0)
    assert math.isnan(found.cosine)
    assert math.isnan(found.sqnr_db)


def test_a_range_of_nothing_is_none() -> None:
    found = figures(([nan], [nan]))
    assert all(map(math.isnan, (*found.range, *found.reference_range)))
    assert (found.non_finite, found.reference_non_finite) == (1, 1)
    empty = figures(([], []))
    assert empty.shape == (1, 0)
    assert empty.sqnr_db == inf


def test_zero_on_one_side() -> None:
    assert (figures(([0, 0], [0, 0])).cosine, figures(([0, 0], [0, 0])).sqnr_db) == (1.0, inf)
    assert (figures(([0, 0], [1, 2])).cosine, figures(([0, 0], [1, 2])).sqnr_db) == (0.0, 0.0)
    assert (figures(([1, 2], [0, 0])).cosine, figures(([1, 2], [0, 0])).sqnr_db) == (0.0, -inf)


def test_a_large_value_is_taken_in_pieces() -> None:
    rng = np.random.default_rng(0)
    right = rng.normal(size=(2, 50_001)).astype(np.float32)
    left = right.astype(np.float16)
    right[1, 50_000] = left[1, 50_000] = 9  # in the last piece
    sums = Sums()
    sums.add(left, right)
    found = sums.figures(PAIR)
    exact, got = right.astype(np.float64), left.astype(np.float64)
    ratio = 10 * np.log10(np.square(exact).sum() / np.square(exact - got).sum())
    assert found.sqnr_db == pytest.approx(ratio, rel=1e-9)
    assert found.range[1] == found.reference_range[1] == 9
    assert found.range[0] == got.min()


def test_runs_add_up() -> None:
    found = figures(([1, 2], [1, 2]), ([3, 3], [3, 4]))
    assert found.sqnr_db == pytest.approx(10 * math.log10(30))
    assert found.cosine == pytest.approx(26 / math.sqrt(23 * 30))
    assert (found.peak, found.reference_peak) == (3, 4)


def summed(candidate: list[float], reference: list[float], **changes: Any) -> ValueComparison:
    """What one run of a value comes to."""
    sums = Sums()
    sums.add(np.array([candidate], np.float32), np.array([reference], np.float32))
    pair = ActivationPair("m", "m", "m/node", "Add", (), (), len(candidate))
    return replace(sums.figures(pair), **changes)


def test_infinities_that_both_have_at_one_place_are_no_fault() -> None:
    found = summed([1, -inf, 3, inf], [1, -inf, 3, inf])
    assert (found.infinite_alike, found.non_finite, found.reference_non_finite) == (2, 0, 0)
    assert (found.cosine, found.sqnr_db, found.range) == (1.0, inf, (1.0, 3.0))
    assert find_faults([found], FP16) == ()
    noisy = summed([1.5, -inf, 3], [1, -inf, 3])
    assert noisy.sqnr_db == pytest.approx(10 * math.log10(10 / 0.25))
    assert summed([-inf, -inf], [-inf, -inf]).sqnr_db == inf


@pytest.mark.parametrize(
    ("candidate", "reference", "said", "advice"),
    [
        ([1, -65504, 3], [1, -inf, 3], "0 values are NaN or infinite, 1 of the", "infinity is at"),
        (
            [-inf, -inf, 3],
            [1, -inf, 3],
            "1 values .*, 0 of .*, beside 1 inf",
            "keep m/node in FP32",
        ),
        ([1, -inf, -inf], [1, -inf, inf], "1 values .*, 1 of .*, beside 1 inf", "infinity is at"),
        ([-inf, 2, -inf], [2, -inf, -inf], "1 values .*, 1 of .*, beside 1 inf", "infinity is at"),
        ([1, nan, 3], [1, nan, 3], "1 values are NaN or infinite, 1 of", "check its weights"),
        ([1, nan, 3], [1, -inf, 3], "1 values are NaN or infinite, 1 of", "check its weights"),
    ],
)
def test_any_other_infinity_is_a_fault_with_its_cause(
    candidate: list[float], reference: list[float], said: str, advice: str
) -> None:
    (fault,) = find_faults([summed(candidate, reference)], FP16)
    assert fault.kind == "non_finite"
    assert re.match(said, fault.reason)
    assert any(advice in line for line in fault.advice)

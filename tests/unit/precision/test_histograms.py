from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.core.errors import DataError, UsageError
from deploykit.precision.calibration.calibrators import BINS, Histogram, RunningHistogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float32]

# Scales far apart, so that ranges grow by many doublings at once.
PIECES = st.lists(
    st.tuples(
        arrays.arrays(
            np.float32,
            st.integers(0, 40),
            elements=st.floats(-8, 8, width=32, allow_subnormal=False),
        ),
        st.integers(-30, 30),
    ),
    min_size=1,
    max_size=6,
).map(lambda pairs: [np.ldexp(values, power).astype(np.float32) for values, power in pairs])


def counted(*pieces: Values, bins: int = BINS) -> Histogram:
    running = RunningHistogram(bins)
    for piece in pieces:
        running.add(piece)
    return running.freeze()


def same(one: Histogram, other: Histogram) -> bool:
    return (
        one.limit == other.limit
        and one.amax == other.amax
        and np.array_equal(one.counts, other.counts)
    )


def by_definition(values: Values, bins: int) -> tuple[NDArray[np.int64], float]:
    """In double precision, where nothing is rounded."""
    magnitudes = np.abs(values.astype(np.float64))
    limit = 2.0 ** (math.floor(math.log2(magnitudes.max())) + 1)
    return np.histogram(magnitudes, bins, (0.0, limit))[0], limit


@settings(deadline=None, max_examples=150)
@given(PIECES)
def test_counts_are_those_of_the_definition(pieces: list[Values]) -> None:
    values = np.concatenate(pieces)
    found = counted(*pieces)
    assert found.total == values.size
    assert found.amax == np.max(np.abs(values), initial=0.0)
    if found.amax > 2.0**-100:
        counts, limit = by_definition(values, BINS)
        assert found.limit == limit
        np.testing.assert_array_equal(found.counts, counts)


@settings(deadline=None, max_examples=100)
@given(PIECES, st.randoms(use_true_random=False))
def test_neither_order_nor_batches_change_the_result(pieces: list[Values], random: Any) -> None:
    expected = counted(np.concatenate(pieces))
    random.shuffle(pieces)
    assert same(counted(*pieces), expected)


@settings(deadline=None, max_examples=100)
@given(PIECES, PIECES)
def test_merging_counts_what_both_have_counted(first: list[Values], second: list[Values]) -> None:
    one, other = RunningHistogram(), RunningHistogram()
    for running, pieces in ((one, first), (other, second)):
        for piece in pieces:
            running.add(piece)
    before = other.freeze()
    one.merge(other)
    assert same(one.freeze(), counted(*first, *second))
    assert same(other.freeze(), before)


@pytest.mark.parametrize("size", [1, 32768, 32769, 3 * 32768, 100_003])
def test_large_tensors_are_counted_piece_by_piece(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    found = counted(values)
    counts, limit = by_definition(values, BINS)
    assert (found.limit, found.total) == (limit, size)
    np.testing.assert_array_equal(found.counts, counts)


def test_any_shape_and_stride() -> None:
    values = np.random.default_rng(0).normal(size=(2, 6, 5, 7)).astype(np.float32)
    turned = values.transpose(0, 2, 3, 1)[:, ::2]
    assert not turned.flags.c_contiguous
    assert same(counted(turned), counted(turned.copy().reshape(-1)))


def test_the_input_is_left_as_it_was() -> None:
    values = np.array([-3.0, 2.0, -0.5], np.float32)
    values.setflags(write=False)
    counted(values)
    np.testing.assert_array_equal(values, np.array([-3.0, 2.0, -0.5], np.float32))


@pytest.mark.parametrize(
    ("largest", "limit"), [(1.0, 2.0), (0.75, 1.0), (255.0, 256.0), (256.0, 512.0)]
)
def test_the_range_ends_at_the_next_power_of_two(largest: float, limit: float) -> None:
    found = counted(np.array([largest, -0.1], np.float32))
    assert (found.limit, found.amax) == (limit, largest)
    assert found.bin_width == limit / BINS
    assert found.counts[int(largest / found.bin_width)] == 1


def test_zeros_are_counted_and_have_no_range() -> None:
    found = counted(np.zeros(100, np.float32))
    assert (found.total, found.amax, found.counts[0]) == (100, 0.0, 100)
    assert found.limit > 0


def test_nothing_counted() -> None:
    found = counted(np.zeros(0, np.float32))
    assert (found.total, found.amax) == (0, 0.0)


def test_the_whole_range_of_fp32() -> None:
    ends = np.array([np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal], np.float32)
    for values in (ends, ends[::-1], ends[:1], ends[1:]):
        found = counted(values)
        assert found.total == len(values)
        assert found.amax == float(values.max())
        assert found.amax < found.limit


def test_a_frozen_histogram_stays_as_it_is() -> None:
    running = RunningHistogram()
    running.add(np.ones(3, np.float32))
    first = running.freeze()
    running.add(np.full(5, 100, np.float32))
    assert (first.total, first.amax) == (3, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        first.counts[0] = 7


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 20_000])
def test_values_that_are_not_finite_are_refused(broken: float, place: int) -> None:
    values = np.ones(40_000, np.float32)
    values[place] = broken
    with pytest.raises(DataError, match="a value is NaN or infinite"):
        counted(values)


@pytest.mark.parametrize("bins", [0, 1, -2, 100])
def test_bins_must_merge_in_pairs(bins: int) -> None:
    with pytest.raises(UsageError, match=rf"of {bins} bins was asked\nexpected 2, 4, 8"):
        RunningHistogram(bins)


def test_few_bins_fold_into_one() -> None:
    small = np.array([0.1, 0.6, 0.9], np.float32)
    found = counted(small, np.array([1000.0], np.float32), bins=4)
    np.testing.assert_array_equal(found.counts, [3, 0, 0, 1])

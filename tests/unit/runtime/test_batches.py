from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from deploykit.runtime.inputs import BatchLimits

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Doubling:
    """Doubles its input, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[NDArray[Any]] = []

    def __call__(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.batches.append(feeds["x"])
        return {"y": feeds["x"] * 2, "other": feeds["x"]}


def numbers(count: int) -> NDArray[np.float32]:
    return np.arange(count * 2, dtype=np.float32).reshape(count, 2)


@pytest.mark.parametrize(
    ("limits", "count", "sizes"),
    [
        (BatchLimits(), 100, [100]),
        (BatchLimits(1, 2, 4), 4, [4]),
        (BatchLimits(1, 2, 4), 5, [4, 1]),
        (BatchLimits(1, 2, 4), 11, [4, 4, 3]),
        (BatchLimits(3, 4, 4), 1, [3]),
        (BatchLimits(3, 4, 4), 9, [4, 4, 3]),
        (BatchLimits(2, 2, 2), 3, [2, 2]),
    ],
)
def test_runs_of_allowed_sizes(limits: BatchLimits, count: int, sizes: list[int]) -> None:
    run = Doubling()
    result = limits.run(run, {"x": numbers(count)}, count, "y")
    assert [len(batch) for batch in run.batches] == sizes
    np.testing.assert_array_equal(result, numbers(count) * 2)


@given(st.data())
@settings(deadline=None)
def test_any_count_comes_back_whole_and_in_order(data: st.DataObject) -> None:
    smallest = data.draw(st.integers(1, 5))
    largest = data.draw(st.integers(smallest, 9))
    count = data.draw(st.integers(1, 40))
    run = Doubling()
    result = BatchLimits(smallest, smallest, largest).run(run, {"x": numbers(count)}, count, "y")
    np.testing.assert_array_equal(result, numbers(count) * 2)
    assert all(smallest <= len(batch) <= largest for batch in run.batches)


def test_padding_repeats_the_last_image() -> None:
    run = Doubling()
    BatchLimits(4, 4, 4).run(run, {"x": numbers(2)}, 2, "y")
    np.testing.assert_array_equal(run.batches[0], numbers(2)[[0, 1, 1, 1]])


def test_logits_come_out_as_float32() -> None:
    result = BatchLimits().run(Doubling(), {"x": numbers(2).astype(np.float16)}, 2, "y")
    assert result.dtype == np.float32


def test_limits_of_an_engine_and_of_graphs() -> None:
    assert BatchLimits.of_engine(ShapeProfile(1, 8, 32)) == BatchLimits(1, 8, 32)
    fixed = TensorSpec("x", "float32", (6, 3))
    assert BatchLimits.of_graph((fixed,)) == BatchLimits(6, 6, 6)
    assert BatchLimits.of_graph((TensorSpec("x", "float32", ("N", 3)),)).largest is None


SEVERAL = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(8, 8, 8), ShapeProfile(16, 24, 32)])


def test_limits_of_an_engine_with_several_profiles() -> None:
    limits = BatchLimits.of_engine(SEVERAL)
    assert limits == BatchLimits(1, 24, 32, ((1, 1), (8, 8), (16, 32)))
    assert limits.words == "1, 8, 16 to 32"
    assert [limits.in_one_run(count) for count in (1, 2, 8, 9, 16, 33)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    with pytest.raises(UsageError, match="a batch of 9 with x: the engine takes 1, 8, 16 to 32 at"):
        limits.require_one_run(9, "x")


@pytest.mark.parametrize(
    ("count", "runs"), [(1, [1]), (2, [8]), (9, [16]), (17, [17]), (33, [32, 1]), (36, [32, 8])]
)
def test_batches_between_profiles_are_filled_up(count: int, runs: list[int]) -> None:
    run = Doubling()
    result = BatchLimits.of_engine(SEVERAL).run(run, {"x": numbers(count)}, count, "y")
    np.testing.assert_array_equal(result, numbers(count) * 2)
    assert [len(batch) for batch in run.batches] == runs


def test_of_several_profiles_those_of_the_image_count() -> None:
    small, large = SizeRange(64, 64, 64), SizeRange(512, 512, 512)
    profile = ShapeProfile.of(
        [ShapeProfile(1, 4, 8, small, small), ShapeProfile(1, 1, 1, large, large)]
    )
    assert BatchLimits.of_engine(profile, (512, 512)) == BatchLimits(1, 1, 1)
    assert BatchLimits.of_engine(profile, (64, 64)) == BatchLimits(1, 4, 8)
    assert BatchLimits.of_engine(profile, (64, 512)).largest == 8


@pytest.mark.parametrize("count", [1, 5])
def test_what_cannot_be_split_or_filled_up(count: int) -> None:
    limits = BatchLimits(2, 2, 4)
    limits.require_one_run(2, "x")
    limits.require_one_run(4, "x")
    with pytest.raises(
        UsageError,
        match=rf"^a batch of {count} with arrays on a GPU: the engine takes 2 to 4 at once\ngive",
    ):
        limits.require_one_run(count, "arrays on a GPU")


def test_all_outputs_of_a_batch_in_parts() -> None:
    limits = BatchLimits(2, 2, 2)
    feeds = {"x": np.arange(5.0)}
    found = limits.run_all(lambda part: {"a": part["x"], "b": part["x"] * 2}, feeds, 5)
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1, 2, 3, 4], [0, 2, 4, 6, 8])
    with pytest.raises(
        UsageError, match=r"output 'boxes' \(7,\) has no entry per image, and a batch of 5 is run"
    ):
        limits.run_all(lambda part: {"boxes": np.zeros(7)}, feeds, 5)

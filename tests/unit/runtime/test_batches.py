from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile
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

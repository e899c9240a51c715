"""Who gets the error when a batch fails, and how often a model that fails is asked again."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.core.errors import DeviceError, ModelFileError, UsageError
from deploykit.serving.micro_batcher import MicroBatcher, run_as_batch
from tests.fakes.batch_model import PATIENCE_S, NumberModel, image, images, logits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def outcomes(model: Any, groups: Iterable[Iterable[float]]) -> list[object]:
    asked = [images(*group) for group in groups]
    answered = list(run_as_batch(model, asked))
    return [o if isinstance(o, BaseException) else o.tolist() for o in answered]


def test_a_good_batch_is_one_call() -> None:
    model = NumberModel()
    assert outcomes(model, [[1], [2, 3], [4]]) == [[logits(1)], [logits(2), logits(3)], [logits(4)]]
    assert model.calls == [[1, 2, 3, 4]]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, ModelFileError, MemoryError])
def test_only_the_guilty_request_sees_the_error(error: type[Exception]) -> None:
    model = NumberModel(poison=frozenset({3}), error=error)
    first, guilty, last = outcomes(model, [[1], [2, 3], [4]])
    assert (first, last) == ([logits(1)], [logits(4)])
    assert isinstance(guilty, error)
    assert str(guilty) == "cannot compute [3.0]"


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=8),
    st.frozensets(st.integers(1, 9)),
)
def test_whatever_is_poison_the_others_are_answered(
    groups: list[list[int]], poison: frozenset[float]
) -> None:
    results = outcomes(NumberModel(poison=poison), groups)
    for group, result in zip(groups, results, strict=True):
        if poison.isdisjoint(group):
            assert result == [logits(number) for number in group]
        else:
            assert str(result) == f"cannot compute {sorted(map(float, poison & set(group)))}"


def test_a_request_alone_is_not_run_twice() -> None:
    model = NumberModel(poison=frozenset({1}))
    (result,) = outcomes(model, [[1, 2]])
    assert isinstance(result, ValueError)
    assert model.calls == [[1, 2]]


def test_a_model_that_fails_on_a_blank_image_too_is_not_asked_again() -> None:
    model = NumberModel(poison=frozenset(range(9)), error=RuntimeError)
    results = outcomes(model, [[1], [2], [3]])
    assert [str(result) for result in results] == ["cannot compute [1.0, 2.0, 3.0]"] * 3
    assert model.calls == [[1, 2, 3], [0]]


def test_a_device_that_broke_is_asked_once_more_and_no_oftener() -> None:
    class Breaks(NumberModel):
        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            self.poison = frozenset(range(9))  # for good, whoever comes
            return super().run(batch)

    model = Breaks(error=DeviceError)
    results = outcomes(model, [[1], [2], [3]])
    assert [type(result) for result in results] == [DeviceError] * 3
    assert model.calls == [[1, 2, 3], [0]]


def test_a_batch_too_large_for_the_memory_is_answered_one_by_one() -> None:
    class Small(NumberModel):
        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            if len(batch) > 1:
                raise DeviceError("out of memory")
            return super().run(batch)

    assert outcomes(Small(), [[1], [2], [3]]) == [[logits(1)], [logits(2)], [logits(3)]]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_program_is_no_ones_fault(error: type[BaseException]) -> None:
    model = NumberModel(poison=frozenset({2}), error=error)
    results = outcomes(model, [[1], [2], [3]])
    assert [type(result) for result in results] == [error] * 3
    assert model.calls == [[1, 2, 3]]


def test_a_model_that_ends_the_program_on_the_blank_image_counts_as_broken() -> None:
    class Ends(NumberModel):
        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            self.error = SystemExit if not batch.any() else ValueError
            return super().run(batch)

    results = outcomes(Ends(poison=frozenset({0, 2})), [[1], [2]])
    assert [type(result) for result in results] == [ValueError] * 2


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_model_that_returns_too_few_or_too_many_rows(rows: int) -> None:
    class Wrong:
        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.zeros((rows, 10), np.float32)

    (result,) = outcomes(Wrong(), [[1, 2]])
    assert isinstance(result, UsageError)
    assert str(result) == (
        f"the model returned ({rows}, 10) for a batch of 2 images\nexpected one row for each image"
    )


def test_an_error_does_not_hold_the_images_of_others() -> None:
    class Translates(NumberModel):
        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            try:
                return super().run(batch)
            except ValueError as error:
                raise RuntimeError("translated") from error

    gate = threading.Event()
    model = Translates(poison=frozenset({1, 0}), gate=gate)
    with MicroBatcher(model, max_wait_ms=0) as batcher:
        running = batcher.submit(image(5))
        model.wait_until_called()
        innocent = image(2)
        theirs = weakref.ref(innocent)
        futures = [batcher.submit(image(1)), batcher.submit(innocent)]
        del innocent
        gate.set()
        kept = [future.exception(PATIENCE_S) for future in futures]
        assert running.done()
    gc.collect()
    assert model.calls == [[5], [1, 2], [0]]
    assert theirs() is None
    assert isinstance(kept[0], RuntimeError)
    assert kept[0].__traceback__ is not None
    assert isinstance(kept[0].__cause__, ValueError)


def test_the_thread_outlives_whatever_the_model_raises() -> None:
    model = NumberModel(poison=frozenset({1}), error=SystemExit)
    with MicroBatcher(model) as batcher:
        with pytest.raises(SystemExit, match="cannot compute"):
            batcher.run(image(1))
        assert batcher.run(image(2)).tolist() == logits(2)
        assert batcher.stats().failed == 1


def test_images_of_the_past_are_let_go() -> None:
    with MicroBatcher(NumberModel()) as batcher:
        first = image(1)
        gone = weakref.ref(first)
        batcher.run(first)
        del first
        batcher.run(image(2))  # by now the thread has left the first batch behind
        gc.collect()
        assert gone() is None


def test_a_failure_in_one_batch_does_not_reach_the_next() -> None:
    with MicroBatcher(NumberModel(poison=frozenset({1})), max_wait_ms=0) as batcher:
        futures = [batcher.submit(image(number % 5)) for number in range(50)]
        for number, future in enumerate(futures):
            if number % 5 == 1:
                assert isinstance(future.exception(PATIENCE_S), ValueError)
            else:
                assert future.result(PATIENCE_S).tolist() == logits(number % 5)
        stats = batcher.stats()
    assert (stats.answered, stats.failed) == (40, 10)

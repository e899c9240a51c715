from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.specs import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = Preprocessing(crop=(4, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass
class NumberedImages:
    """Image ``i`` is filled with ``i``; remembers what was loaded."""

    count: int
    corrupt: frozenset[int] = frozenset()
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    digest: str = ""
    loaded: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Image.Image:
        self.loaded.append(index)
        if index in self.corrupt:
            raise DataError(f"image {index} is damaged")
        return Image.new("RGB", (4, 4), (index, index, index))


def numbers(batch: NDArray[np.float32]) -> list[int]:
    assert batch.dtype == np.float32
    assert batch.shape[1:] == (3, 4, 4)
    return (batch[:, 0, 0, 0] * 255).round().astype(int).tolist()  # type: ignore[no-any-return]  # numpy types tolist as Any


def test_every_image_comes_once_and_in_order() -> None:
    source = NumberedImages(103)
    found = list(images.batches(source, STEPS, 10))
    assert [len(indices) for _, indices in found] == [10] * 10 + [3]
    assert [index for _, indices in found for index in indices] == list(range(103))
    assert all(numbers(batch) == indices for batch, indices in found)
    assert sorted(source.loaded) == list(range(103))


def test_chosen_images_come_in_the_order_asked() -> None:
    found = list(images.batches(NumberedImages(9), STEPS, 2, indices=[7, 0, 7]))
    assert [indices for _, indices in found] == [[7, 0], [7]]
    assert [numbers(batch) for batch, _ in found] == [[7, 0], [7]]


def test_an_index_array_is_taken_too() -> None:
    chosen = np.array([3, 1])
    ((_, indices),) = images.batches(NumberedImages(4), STEPS, 8, indices=chosen)
    assert indices == [3, 1]
    assert all(type(index) is int for index in indices)


def test_no_indices_give_no_batches() -> None:
    assert list(images.batches(NumberedImages(4), STEPS, 2, indices=[])) == []


def test_batches_do_not_share_memory() -> None:
    first, second = images.batches(NumberedImages(4), STEPS, 2)
    first[0][:] = 9
    assert numbers(second[0]) == [2, 3]


def test_a_corrupt_image_stops_after_the_batches_before_it() -> None:
    found = images.batches(NumberedImages(9, frozenset({5})), STEPS, 2)
    assert [next(found)[1] for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="image 5 is damaged"):
        next(found)


def test_skipped_images_leave_full_batches() -> None:
    source = NumberedImages(9, frozenset({0, 5, 8}))
    found = list(images.batches(source, STEPS, 4, on_corrupt="skip"))
    assert [indices for _, indices in found] == [[1, 2, 3, 4], [6, 7]]
    assert all(numbers(batch) == indices for batch, indices in found)


def test_nothing_but_corrupt_images_give_no_batches() -> None:
    source = NumberedImages(3, frozenset(range(3)))
    assert list(images.batches(source, STEPS, 2, on_corrupt="skip")) == []


def test_only_about_one_batch_is_prepared_ahead() -> None:
    source = NumberedImages(200)
    found = images.batches(source, STEPS, 20)
    next(found)
    assert len(source.loaded) <= 20 + 20


def test_stopping_early_ends_the_threads() -> None:
    before = threading.active_count()
    found = images.batches(NumberedImages(200), STEPS, 2)
    next(found)
    del found
    assert threading.active_count() == before


def test_samples_fit_a_model() -> None:
    steps = Preprocessing(crop=(64, 48), resize=64)
    ((batch, indices),) = images.batches(images.sample_images(), steps, 32)
    assert batch.shape == (8, 3, 64, 48)
    assert indices == list(range(8))
    assert np.isfinite(batch).all()
    expected = images.preprocess(images.sample_images().load(3), steps)
    np.testing.assert_array_equal(batch[3], expected)


def test_a_batch_below_one_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="a batch of 0 images was asked\nexpected at least 1"):
        images.batches(NumberedImages(4), STEPS, 0)


@pytest.mark.parametrize("index", [4, -1])
def test_an_unknown_index_is_refused_at_once(index: int) -> None:
    with pytest.raises(UsageError, match=f"image {index} was asked of a set of 4\nexpected 0 to 3"):
        images.batches(NumberedImages(4), STEPS, 2, indices=[0, index])


def test_unknown_handling_of_corrupt_images_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="on_corrupt='ignore' is unknown\nexpected 'raise' or"):
        images.batches(NumberedImages(4), STEPS, 2, on_corrupt="ignore")  # type: ignore[arg-type]  # the test's point


def test_impossible_preprocessing_is_refused_at_once() -> None:
    steps = Preprocessing(crop=(4, 4), interpolation="cubic")
    with pytest.raises(UnknownNameError, match="unknown interpolation 'cubic'"):
        images.batches(NumberedImages(4), steps, 2)


def test_loading_ahead_keeps_the_order_and_its_bound() -> None:
    started: list[int] = []

    def load(index: int) -> str:
        started.append(index)
        return f"{index}"

    found = images.load_ahead(load, range(100), ahead=40)
    assert next(found) == "0"
    assert len(started) <= 41
    assert list(found) == [str(index) for index in range(1, 100)]

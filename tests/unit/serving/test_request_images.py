from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from deploykit.core.errors import DataError, UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from deploykit.runtime.inputs import Input
from deploykit.serving.micro_batcher import MicroBatcher, as_images
from tests.fakes.batch_model import NumberModel, image, images, logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEC = TensorSpec("input", "float32", ("batch", 3, 2, 2))
INPUT = Input(SPEC)


class OnTheGpu:
    def __array__(self, dtype: object = None, copy: object = None) -> NDArray[Any]:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_one_image_becomes_a_batch_of_one_without_a_copy() -> None:
    one = image(1)
    batch, is_single = as_images(one, INPUT, 8)
    assert batch.shape == (1, 3, 2, 2)
    assert is_single
    assert np.shares_memory(batch, one)


def test_a_small_batch_stays_as_it_is() -> None:
    few = images(1, 2)
    batch, is_single = as_images(few, INPUT, 8)
    assert batch is few
    assert not is_single


def test_tensors_and_lists_are_arrays_too() -> None:
    tensor, _ = as_images(torch.ones(3, 2, 2), INPUT, 8)
    assert tensor.tolist() == images(1).tolist()
    nested, _ = as_images(image(1).tolist(), None, 8)
    assert nested.tolist() == images(1).tolist()


@pytest.mark.parametrize(
    "awkward",
    [
        np.asfortranarray(image(1)),
        np.moveaxis(np.ones((2, 2, 3), np.float32), -1, 0),
        np.broadcast_to(np.float32(1), (3, 2, 2)),  # read only, strides of 0
        np.ones((6, 2, 2), np.float32)[::2],
    ],
    ids=["Fortran", "channels last", "broadcast", "every second"],
)
def test_layout_in_memory_does_not_matter(awkward: NDArray[np.float32]) -> None:
    with MicroBatcher(NumberModel()) as batcher:
        assert batcher.run(awkward).tolist() == logits(1)


SHAPES = "expected one image (C, H, W) or some (n, C, H, W)"
NUMBERS = "expected numbers, as the model takes them"
TOO_MANY = "split it, or give it to the model itself"
ELSEWHERE = "can't convert cuda:0 device type tensor to numpy"


@pytest.mark.parametrize(
    ("given", "found", "advice"),
    [
        (np.zeros((2, 2), np.float32), "float32 (2, 2)", SHAPES),
        (np.zeros((0, 3, 2, 2), np.float32), "float32 (0, 3, 2, 2)", SHAPES),
        (images(*range(9)), "float32 (9, 3, 2, 2) is larger than max_batch=8", TOO_MANY),
        ("cat.jpg", "str with elements of type <U7", NUMBERS),
        (None, "NoneType with elements of type object", NUMBERS),
        (OnTheGpu(), "OnTheGpu is not an array in host memory", ELSEWHERE),
    ],
)
def test_what_is_not_the_models_input_is_refused(given: Any, found: str, advice: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_images(given, INPUT, 8)
    assert str(caught.value) == f"a request of {found}\n{advice}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (image(1, size=4), r"float32 \(1, 3, 4, 4\), the model takes float32 \(N, 3, 2, 2\)"),
        (image(1).transpose(1, 2, 0), r"its layout is \(N, H, W, C\)"),
        (image(1).astype(np.float64), "convert it: batch.astype"),
        (images(1, np.nan), "12 of 24 values are NaN or infinite, the first in image 1"),
    ],
    ids=["size", "layout", "type", "NaN"],
)
def test_a_model_that_says_what_it_takes_is_never_given_anything_else(
    given: NDArray[Any], message: str
) -> None:
    class Said(NumberModel):
        inputs = (SPEC,)

    model = Said()
    with MicroBatcher(model) as batcher:
        with pytest.raises(UsageError, match=message):
            batcher.submit(given)
        assert batcher.run(image(1)).tolist() == logits(1)
        assert batcher.stats().accepted == 1
    assert model.calls == [[1]]


def test_a_model_of_several_inputs_cannot_be_served() -> None:
    class Several(NumberModel):
        inputs = (SPEC, TensorSpec("mask", "float32", ("batch", 1, 2, 2)))

    with pytest.raises(UsageError) as caught:
        MicroBatcher(Several())
    assert str(caught.value) == (
        "the model takes input, mask\na batcher gathers images for models of one input"
    )


class OfFour(NumberModel):
    """Four images at once, neither fewer nor more; 1 for each mean above 0, whatever the others."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec("input", "float32", (4, 3, 2, 2)),)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls.append([len(batch)])
        return np.asarray(batch.mean(axis=(1, 2, 3)) > 0, np.float32)[:, None]


class OfFrames(OfFour):
    """Means less that of the whole batch."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls.append([len(batch)])
        means = batch.mean(axis=(1, 2, 3))
        return np.asarray(means - means.mean(), np.float32)[:, None]


class OfPlaces(OfFour):
    """The places of the images of a batch of bytes, of any size."""

    inputs = (TensorSpec("input", "uint8", (4, "height", "width", 3)),)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        assert batch.shape == (4, 64, 64, 3)
        assert batch.dtype.name == "uint8"
        return np.arange(4, dtype=np.float32)[:, None]


class OfNoNoise(OfFour):
    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        raise DataError(f"NaN for {len(batch)} images")


@pytest.mark.parametrize("kind", [OfFrames, OfPlaces, OfNoNoise])
def test_a_fixed_batch_whose_images_change_one_another_is_refused(kind: type[OfFour]) -> None:
    with pytest.raises(UsageError) as caught:
        MicroBatcher(kind())
    assert str(caught.value) == (
        "the model takes 4 images at once, and in a trial with noise they changed one another's "
        "answers\na batcher would mix those of several callers: give whole batches to the model "
        "itself, or is_per_image=True where you know better"
    )
    model = kind()
    MicroBatcher(model, is_per_image=True).close()
    assert not model.calls


def test_a_fixed_batch_of_images_for_themselves_is_gathered() -> None:
    model = OfFour()
    with MicroBatcher(model, max_batch=4) as batcher:
        assert model.calls == [[4], [4]]  # the trial
        assert batcher.run(images(1, -1, -1, 1)).ravel().tolist() == [1, 0, 0, 1]


def test_an_open_batch_is_not_tried() -> None:
    class Open(OfFrames):
        inputs = (SPEC,)

    model = Open()
    MicroBatcher(model).close()
    assert not model.calls


def test_the_trial_has_the_sizes_of_the_engine() -> None:
    class OfSizes(OfFour):
        inputs = (TensorSpec("input", "float32", (4, 3, "height", "width")),)
        profile = ShapeProfile(4, 4, 4, SizeRange(8, 12, 16), SizeRange(8, 10, 16))

        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            assert batch.shape == (4, 3, 12, 10)
            return super().run(batch)

    MicroBatcher(OfSizes()).close()

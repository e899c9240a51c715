from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from deploykit.core.errors import UsageError
from deploykit.core.specs import TensorSpec
from deploykit.runtime.inputs import Inputs, is_on_gpu
from tests.fakes.engine_fake import OnGpu
from tests.graphs import normal

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE = TensorSpec("image", "float32", ("batch", 3, 4, 5))
INPUTS = Inputs((IMAGE,), takes_gpu_arrays=False)
ON_GPU = Inputs((IMAGE,), takes_gpu_arrays=True)


def fed(batch: Any, inputs: Inputs = INPUTS) -> NDArray[Any]:
    feeds, count = inputs.feeds(batch)
    (array,) = feeds.values()
    assert list(feeds) == ["image"]
    assert count == array.shape[0]
    assert isinstance(array, np.ndarray)
    return array


def test_an_array_that_fits_is_not_copied() -> None:
    batch = normal(2, 3, 4, 5)
    assert np.shares_memory(fed(batch), batch)
    assert np.shares_memory(fed({"image": batch}), batch)


def test_a_tensor_of_torch_is_not_copied() -> None:
    tensor = torch.from_numpy(normal(2, 3, 4, 5))
    array = fed(tensor)
    np.testing.assert_array_equal(array, tensor.numpy())
    assert np.shares_memory(array, tensor.numpy())


@pytest.mark.parametrize(
    "batch",
    [
        normal(4, 3, 4, 5)[::2],
        normal(2, 4, 5, 3).transpose(0, 3, 1, 2),
        np.asfortranarray(normal(2, 3, 4, 5)),
        np.broadcast_to(normal(1, 3, 4, 5), (2, 3, 4, 5)),
        normal(2, 3, 4, 5)[:, :, ::-1],
    ],
    ids=["strided", "transposed", "fortran", "broadcast", "reversed"],
)
def test_any_order_in_memory_comes_out_contiguous(batch: NDArray[np.float32]) -> None:
    array = fed(batch)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, batch)


def test_a_read_only_array_is_taken_as_it_is() -> None:
    batch = normal(1, 3, 4, 5)
    batch.setflags(write=False)
    assert np.shares_memory(fed(batch), batch)


@pytest.mark.parametrize(
    ("batch", "remedy"),
    [
        (normal(1, 3, 4, 5).astype(np.float64), r"convert it: batch.astype\(numpy.float32\)"),
        (normal(1, 3, 4, 5).astype(np.float16), r"convert it: batch.astype\(numpy.float32\)"),
        (normal(1, 3, 4, 5).astype(">f4"), r"convert it: batch.astype\(numpy.float32\)"),
        (np.ones((1, 3, 4, 5), np.int64), r"convert it: batch.astype\(numpy.float32\)"),
        (np.ones((1, 3, 4, 5), np.uint8), r"pixels are for predict\(\), which preprocesses them"),
        (np.ones((1, 4, 5, 3), np.uint8), r"pixels are for predict\(\)"),
        (normal(1, 4, 5, 3), r"layout is \(N, H, W, C\), turn it: batch.transpose\(0, 3, 1, 2\)"),
        (normal(3, 4, 5), r"one image lacks the batch dimension: batch\[None\]"),
        (normal(0, 3, 4, 5), "the batch is empty: give at least one image"),
        (normal(1, 3, 5, 4), r"predict\(\) resizes, crops and normalises images"),
        (normal(1, 1, 4, 5), r"predict\(\) resizes, crops and normalises images"),
        (np.zeros((), np.float32), r"predict\(\) resizes, crops and normalises images"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_a_misfit_says_what_to_do(batch: NDArray[Any], remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy) as caught:
        INPUTS.feeds(batch)
    got = f"input 'image' was given as {batch.dtype} {batch.shape}, the model takes float32"
    assert str(caught.value).startswith(f"{got} (N, 3, 4, 5)\n")


@pytest.mark.parametrize(
    ("dtype", "shape", "remedy"),
    [
        ("float32", ("n", 1, 4, 5), r"batch\[:, None\]$"),
        ("float32", ("n", 1, "h", "w"), r"batch\[:, None\]$"),
        ("uint8", ("n", 1, 4, 5), r"batch\[:, None\]$"),
        ("uint8", ("n", 4, 5, 1), r"batch\[\.\.\., None\]$"),
    ],
)
def test_grey_images_without_a_channel(
    dtype: str, shape: tuple[int | str, ...], remedy: str
) -> None:
    inputs = Inputs((TensorSpec("image", dtype, shape),), takes_gpu_arrays=False)
    with pytest.raises(UsageError, match=f"lack the axis of the channel: {remedy}"):
        inputs.feeds(np.zeros((2, 4, 5), dtype))
    batch = np.zeros((2, 4, 5), dtype)
    taken = batch[..., None] if shape[-1] == 1 else batch[:, None]
    assert inputs.feeds(taken)[1] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (2, 2, 3, 4), (1, 0, 2, 0)])
def test_values_that_are_no_numbers_are_found(value: float, place: tuple[int, ...]) -> None:
    batch = normal(3, 3, 4, 5)
    batch[place] = value
    with pytest.raises(
        UsageError, match=rf"1 of 180 values are NaN or infinite, the first in image {place[0]}\n"
    ):
        INPUTS.feeds(batch)


def test_large_values_are_numbers() -> None:
    batch = np.full((1, 3, 4, 5), 1e30, np.float32)  # their squares are infinite
    np.testing.assert_array_equal(fed(batch), batch)


@pytest.mark.parametrize("given", [[[1.0]], "cat.jpg", None, 1.0])
def test_what_is_no_array(given: Any) -> None:
    with pytest.raises(UsageError, match=r"(?s)input 'image' was given as .*for predict\(\)"):
        INPUTS.feeds(given)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1, 3, 4, 5, requires_grad=True), torch.zeros(1, 3, 4, 5, dtype=torch.bfloat16)],
    ids=["gradient", "bfloat16"],
)
def test_a_tensor_that_cannot_be_read_gives_its_reason(tensor: torch.Tensor) -> None:
    with pytest.raises(
        UsageError, match=r"this Tensor cannot be read: .+\nexpected float32 \(N, 3, 4, 5\)"
    ):
        INPUTS.feeds(tensor)


# On the GPU


def test_what_lies_on_a_gpu_is_recognised() -> None:
    class Interface:
        __cuda_array_interface__ = "a dictionary"

    assert is_on_gpu(OnGpu(normal(1)))
    assert is_on_gpu(Interface())
    assert not is_on_gpu(normal(1))
    assert not is_on_gpu(torch.zeros(1))
    assert not is_on_gpu("cat.jpg")


def test_pinned_memory_is_main_memory() -> None:
    class Pinned:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (3, 0)

    assert not is_on_gpu(Pinned())


def test_a_gpu_array_stays_what_it_is() -> None:
    array = OnGpu(normal(2, 3, 4, 5))
    feeds, count = ON_GPU.feeds(array)
    assert feeds["image"] is array
    assert count == 2


def test_a_gpu_array_for_a_model_on_the_cpu() -> None:
    with pytest.raises(
        UsageError, match=r"'image' lies on a GPU, .* main memory\ncopy it there \(of torch: batch"
    ):
        INPUTS.feeds(OnGpu(normal(2, 3, 4, 5)))


class ByInterface:
    """The least that an array on a GPU may be, as of Numba."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"shape": shape}


def test_an_array_that_shows_its_interface_only() -> None:
    array = ByInterface((2, 3, 4, 5))
    feeds, count = ON_GPU.feeds(array)  # type: ignore[arg-type]  # not DLPack, but taken
    assert feeds["image"] is array
    assert count == 2
    with pytest.raises(UsageError, match=r"given as an array \(1, 4, 5, 3\), .*\nits layout is"):
        ON_GPU.feeds(ByInterface((1, 4, 5, 3)))  # type: ignore[arg-type]  # as above


def test_an_array_that_does_not_say_its_shape() -> None:
    class Silent:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(UsageError, match="this Silent on a GPU does not say its shape\nexpected"):
        ON_GPU.feeds(Silent())  # type: ignore[arg-type]  # the mistake


def test_the_shape_of_a_gpu_array_is_compared() -> None:
    with pytest.raises(UsageError, match=r"given as float32 \(2, 4, 5, 3\), .*\nits layout is"):
        ON_GPU.feeds(OnGpu(normal(2, 4, 5, 3)))


# Several inputs

PAIR = Inputs((IMAGE, TensorSpec("age", "int64", ("batch",))), takes_gpu_arrays=True)


def test_several_inputs_go_by_name() -> None:
    given = {"age": np.array([1, 2]), "image": normal(2, 3, 4, 5)}
    feeds, count = PAIR.feeds(given)
    assert count == 2
    assert all(feeds[name] is given[name] for name in given)


def test_a_mapping_of_any_kind() -> None:
    batch = normal(2, 3, 4, 5)
    assert np.shares_memory(fed(MappingProxyType({"image": batch})), batch)


def test_a_number_in_place_of_a_vector() -> None:
    ages = Inputs((TensorSpec("age", "int64", ("batch",)),), takes_gpu_arrays=False)
    with pytest.raises(
        UsageError, match=r"'age' was given as int64 \(\), the model takes int64 \(N\)"
    ):
        ages.feeds(np.array(7))


def test_one_array_for_several_inputs() -> None:
    with pytest.raises(
        UsageError, match=r"one array was given, the model takes \['age', 'image'\]\ngive arrays by"
    ):
        PAIR.feeds(normal(2, 3, 4, 5))


@pytest.mark.parametrize("names", [[], ["image"], ["image", "ages"]])
def test_unknown_and_missing_names(names: list[str]) -> None:
    given = {name: normal(1, 3, 4, 5) for name in names}
    with pytest.raises(UsageError, match=r"the model was fed \[.*\nit takes \['age', 'image'\]"):
        PAIR.feeds(given)


def test_inputs_of_different_batches() -> None:
    with pytest.raises(UsageError, match=r"the inputs have batches of \[1, 2\]\nexpected one size"):
        PAIR.feeds({"age": np.array([1]), "image": normal(2, 3, 4, 5)})

"""Images out of what training scripts have: data loaders, data sets, batches, tensors."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from deploykit.core.errors import UsageError
from deploykit.core.specs import Preprocessing
from deploykit.images import GivenImages, PreparedTensors, batches, images_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8
PLAIN = Preprocessing(crop=(SIZE, SIZE), resize=SIZE)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
# What torchvision makes of them, which shares no code with ours.
_TO_TENSOR = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize(PLAIN.mean, PLAIN.std)]
)
TENSORS = torch.stack([_TO_TENSOR(Image.fromarray(one)) for one in PIXELS])


def prepared(given: Any, wanted: int = 6) -> np.ndarray[Any, Any]:
    found = images_of(given, wanted)
    ((batch, _),) = batches(found, PLAIN, wanted)
    return batch


LOADERS: dict[str, Any] = {
    "a loader of pairs": lambda: DataLoader(TensorDataset(TENSORS, torch.arange(6)), batch_size=4),
    "a data set": lambda: TensorDataset(TENSORS, torch.arange(6)),
    "one tensor": lambda: TENSORS,
    "double": TENSORS.double,
    "dicts": lambda: [
        {"labels": [1], "pixel_values": part} for part in TENSORS.reshape(3, 2, 3, SIZE, SIZE)
    ],
    "arrays": TENSORS.numpy,
    "a generator of bytes": lambda: iter(PIXELS),
    "bytes in batches": lambda: [PIXELS[:4], PIXELS[4:]],
    "bytes, channels first": lambda: torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    "pairs of Pillow": lambda: [(Image.fromarray(one), 3) for one in PIXELS],
    "lists of images": lambda: [list(PIXELS[:4]), list(PIXELS[4:])],
    "Pillow": lambda: deque(map(Image.fromarray, PIXELS)),
}


GREY = Preprocessing((SIZE, SIZE), mean=(0.0,), std=(1.0,), channel_order="grey")
GREYS = np.ascontiguousarray(PIXELS[..., 0])
GREY_LOADERS: dict[str, Any] = {
    "tensors": lambda: [torch.from_numpy(GREYS[:, None] / np.float32(255))],
    "a data set": lambda: [(torch.from_numpy(one[None] / np.float32(255)), 3) for one in GREYS],
    "bytes": lambda: list(GREYS),
    "bytes in batches, channels first": lambda: [torch.from_numpy(GREYS[:, None])],
    "bytes in batches, channels last": lambda: [GREYS[..., None]],
    "Pillow": lambda: [Image.fromarray(one) for one in GREYS],
}


@pytest.mark.parametrize("form", GREY_LOADERS)
def test_grey_images_have_one_channel(form: str) -> None:
    ((batch, _),) = batches(images_of(GREY_LOADERS[form](), 6), GREY, 6)
    np.testing.assert_allclose(batch, GREYS[:, None] / 255, atol=1e-5)


def test_grey_tensors_are_for_grey_models() -> None:
    found = images_of([torch.zeros(2, 1, SIZE, SIZE)], 2)
    with pytest.raises(UsageError, match=r"is a tensor \(1, \d+, \d+\), the model takes \(3, "):
        list(batches(found, PLAIN, 2))


@pytest.mark.parametrize("form", LOADERS)
def test_each_form_gives_the_same_input(form: str) -> None:
    np.testing.assert_allclose(prepared(LOADERS[form]()), TENSORS.numpy(), atol=1e-5)


def test_no_more_than_is_wanted_is_taken() -> None:
    taken = []

    def endless() -> Iterator[np.ndarray[Any, Any]]:
        for index in count():
            taken.append(index)
            yield PIXELS[:2]

    assert len(images_of(endless(), 5)) == 5
    assert taken == [0, 1, 2]


def test_of_a_sequence_they_are_spread_evenly() -> None:
    grey = [np.full((SIZE, SIZE, 3), value, np.uint8) for value in range(101)]
    found = images_of(grey, 5)
    assert isinstance(found, GivenImages)
    assert [found.load(index).getpixel((0, 0)) for index in range(5)] == [
        (value,) * 3 for value in (0, 25, 50, 75, 100)
    ]


def test_the_digest_is_of_the_values() -> None:
    first, same = images_of(TENSORS, 6), images_of(list(TENSORS.numpy()), 6)
    assert first.digest == same.digest
    assert first.digest != images_of(TENSORS.flip(0), 6).digest


def test_greys_of_half_precision_do_not_leave_the_range() -> None:
    white = torch.stack([_TO_TENSOR(Image.new("RGB", (SIZE, SIZE), "white"))]).half()
    assert prepared(white, 1).max() == pytest.approx((1 - 0.406) / 0.225, abs=2e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"jpeg", r"the images are one bytes\nexpected a folder, or an iterable"),
        ({"x": 1}, "the images are one dict"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "the images are one Tensor"),
        (7, "the images are int"),
        ([], "there is no image in the list"),
        ([7], "entry 0 is int\n"),
        ([{"labels": 1}], "entry 0 is NoneType\n"),
        ([torch.ones(2, 2, 4, 4)], r"entry 0 is float32 \(2, 2, 4, 4\)\n"),
        ([torch.ones(4)], r"entry 0 is float32 \(4,\)\n"),
        ([PIXELS[0], TENSORS[0]], "some images are prepared tensors, others not\n"),
        ([np.ones((3, 4, 4), np.int64)], r"entry 0 is int64 \(3, 4, 4\)\n"),
    ],
)
def test_what_is_no_image(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        images_of(given, 4)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(3, SIZE, SIZE + 1), r"a tensor \(3, 8, 9\), the model takes \(3, 8, 8\)\n"),
        (
            torch.full((3, SIZE, SIZE), 200.0),
            r"from 200 to 200 in channel 0\nwith the mean 0.485,0.456,0.406 .* -2.118 to 2.249",
        ),
        (torch.full((3, SIZE, SIZE), float("nan")), "from nan to nan in channel 0"),
    ],
)
def test_a_tensor_that_the_preprocessing_cannot_have_made(tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        prepared([tensor], 1)


def test_a_prepared_tensor_has_no_pixels() -> None:
    with pytest.raises(UsageError, match="image 0 is a tensor that is prepared for a model"):
        PreparedTensors([TENSORS[0].numpy()]).load(0)

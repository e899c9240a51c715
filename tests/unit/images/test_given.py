"""Images as a program has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def forms_in(folder: Path) -> list[Any]:
    path = folder / "image.png"
    Image.fromarray(PIXELS).save(path)
    return [path, str(path), path.read_bytes(), Image.open(path), PIXELS]


def test_every_form_is_the_same_image(tmp_path: Path) -> None:
    given = images.GivenImages(each for each in forms_in(tmp_path))  # a generator will do
    assert len(given) == 5
    assert (given.labels, given.classes) == (None, None)
    for index in range(len(given)):
        np.testing.assert_array_equal(np.asarray(given.load(index)), PIXELS)


def test_digest_is_of_pixels_and_order(tmp_path: Path) -> None:
    path, other = tmp_path / "image.png", PIXELS[::-1].copy()
    Image.fromarray(PIXELS).save(path)
    forms: list[Any] = [path, PIXELS, path.read_bytes()]
    digest = images.GivenImages([forms[0], other]).digest
    assert digest == images.GivenImages([forms[2], other]).digest
    assert digest != images.GivenImages([other, forms[0]]).digest
    assert digest != images.GivenImages([forms[0]]).digest
    assert digest != images.GivenImages([PIXELS.reshape(7, 5, 3), other]).digest


def test_a_damaged_image_is_an_error_when_it_is_asked_for() -> None:
    given = images.GivenImages([PIXELS, b"junk"])
    assert given.load(0).size == (7, 5)
    with pytest.raises(DataError, match="cannot read the image"):
        given.load(1)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (3, "image 1 is of type int"),
        (PIXELS.astype(np.float32), r"image 1 is float32 \(5, 7, 3\)"),
        (PIXELS[..., :2], r"image 1 is uint8 \(5, 7, 2\)"),
    ],
)
def test_what_is_no_image(image: Any, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^{said}\nexpected paths, encoded bytes, Pillow images"):
        images.GivenImages([PIXELS, image])


@pytest.mark.parametrize(
    ("given", "alone"),
    [
        ("a.png", True),
        (b"", True),
        (PIXELS, True),
        (Image.fromarray(PIXELS), True),
        (PIXELS[None], False),
        ([PIXELS], False),
        (3, False),
    ],
)
def test_one_image_where_several_were_expected(given: Any, alone: bool) -> None:
    assert images.is_one_image(given) is alone

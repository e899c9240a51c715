"""Prepared images back to the bytes that they were made of, by numpy alone as the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit.core.specs import PixelInput, Preprocessing
from deploykit.images import preprocess
from deploykit.images.byte_images import bytes_of, floats_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOK = Preprocessing((16, 12))
ALL = np.random.default_rng(0).permutation(16 * 12 * 3).astype(np.uint8).reshape(16, 12, 3)
FORMS = [(layout, order) for layout in ("nhwc", "nchw") for order in ("rgb", "bgr")]


def arranged(layout: str, order: str) -> NDArray[np.uint8]:
    pixels = ALL if order == "rgb" else ALL[..., ::-1]
    return pixels if layout == "nhwc" else pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("network", ["rgb", "bgr"])
@pytest.mark.parametrize(("layout", "order"), FORMS)
def test_bytes_and_prepared_images_are_one_another(layout: str, order: str, network: str) -> None:
    """All 256 values are among the pixels."""
    assert len(np.unique(ALL)) == 256
    floats = replace(LOOK, channel_order=network)
    look = replace(floats, pixels=PixelInput(layout, order))
    image = Image.fromarray(ALL)
    given = preprocess(image, look)
    assert given.dtype == np.uint8
    assert given.tolist() == arranged(layout, order).tolist()
    prepared = preprocess(image, floats)
    assert floats_of(given[None], look).tolist() == prepared[None].tolist()
    assert bytes_of(prepared[None], look).tolist() == given[None].tolist()


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_bytes_of_grey_images_have_one_channel(layout: str) -> None:
    floats = Preprocessing((2, 3), mean=(0.1307,), std=(0.3081,), channel_order="grey")
    look = replace(floats, pixels=PixelInput(layout, "grey"))
    pixels = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
    given = preprocess(Image.fromarray(pixels).convert("RGB"), look)
    assert given.tolist() == pixels.reshape((2, 3, 1) if layout == "nhwc" else (1, 2, 3)).tolist()
    prepared = preprocess(Image.fromarray(pixels).convert("RGB"), floats)
    assert floats_of(given[None], look).tolist() == prepared[None].tolist()
    assert bytes_of(prepared[None], look).tolist() == given[None].tolist()


def test_what_has_no_bytes() -> None:
    with pytest.raises(ValueError, match="that of a graph that takes prepared images"):
        bytes_of(np.zeros((1, 3, 2, 2), np.float32), LOOK)

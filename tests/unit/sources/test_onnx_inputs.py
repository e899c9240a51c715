"""Which input of a file is the image, what is assumed of it, what is taken beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.artifacts import OnnxArtifact
from deploykit.core.errors import DataError, ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from deploykit.sources.onnx_inputs import (
    assumed_preprocessing,
    require_image,
    require_image_classifier,
    side_inputs_of,
)
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path


IMAGE = TensorSpec("x", "float32", ("n", 3, 8, 8))


def artifact(
    path: Path, *inputs: TensorSpec, precision: Precision = Precision.FP32
) -> OnnxArtifact:
    return OnnxArtifact(path, "abc", precision, 20, inputs, (), ())


# --- the image among the inputs


def test_the_first_input_of_images_is_taken() -> None:
    age = TensorSpec("age", "float32", ("n", 4))
    mask = TensorSpec("mask", "float32", ("n", 3, 8, 8))
    assert require_image("net", (age, IMAGE, mask)) == IMAGE


def test_images_in_colours_come_before_what_may_be_grey_images() -> None:
    grey = TensorSpec("grey", "float32", ("n", 1, 8, 8))
    assert require_image("net", (grey, IMAGE)) == IMAGE
    assert require_image("net", (grey,)) == grey


def test_a_mask_is_no_grey_image() -> None:
    mask = TensorSpec("attention_mask", "float32", ("n", 1, 16, 16))
    words = TensorSpec("ids", "int64", ("n", 16))
    with pytest.raises(ModelFileError, match=r"grey \(batch, 1, H, W\)\n.*, ids is int64$"):
        require_image("net", (words, mask))
    scan = TensorSpec("scan", "float32", ("n", 1, 16, 16))
    assert require_image("net", (mask, scan)) == scan


@pytest.mark.parametrize(
    ("tensor", "advice"),
    [
        (TensorSpec("x", "uint8", ("n", 3, 8, 8)), "let it begin after the division by 255"),
        (TensorSpec("x", "float64", ("n", 3, 8, 8)), "with a float32 input, x is float64"),
        (
            TensorSpec("x", "float32", ("n", 8, 8, 3)),
            "its channels are last; deploykit export makes a graph",
        ),
        (TensorSpec("x", "float32", (3, 8, 8)), "it has no batch axis"),
        (TensorSpec("x", "float32", (1, 8, 8)), "no batch axis; .*zeros\\(1, 1, H, W\\)"),
        (TensorSpec("x", "float32", (8, 8, 3)), "no batch axis; .*zeros\\(1, 3, H, W\\)"),
        (TensorSpec("x", "float32", ("n", 8, 8)), "no channel axis; .*zeros\\(1, 1, H, W\\)"),
        (TensorSpec("x", "float32", ("n", 2, 8, 8)), "grey \\(batch, 1, H, W\\)$"),
        (TensorSpec("x", "float32", ("n", 1, 1, 8)), "H, W\\)$"),
        (TensorSpec("x", "float32", ("n", 32)), "H, W\\)$"),
    ],
)
def test_what_is_no_image_is_refused_with_advice(tensor: TensorSpec, advice: str) -> None:
    with pytest.raises(ModelFileError, match=rf"(?s)^net takes x .*\nexpected images, .*{advice}"):
        require_image("net", (tensor,))


def test_a_model_without_inputs() -> None:
    with pytest.raises(ModelFileError, match=r"^net takes nothing\nexpected images, float32"):
        require_image("net", ())


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_only_fp32_is_converted(tmp_path: Path, precision: Precision) -> None:
    source = artifact(tmp_path / "mine.onnx", IMAGE, precision=precision)
    with pytest.raises(
        ModelFileError, match=rf"^mine\.onnx is already {precision}; deploykit conv"
    ):
        require_image_classifier(source)


def test_the_image_of_an_fp32_classifier(tmp_path: Path) -> None:
    found = require_image_classifier(artifact(tmp_path / "mine.onnx", IMAGE))
    assert found == (IMAGE, False)


def test_images_with_channels_last_are_taken_where_none_have_them_first(tmp_path: Path) -> None:
    last = TensorSpec("photo", "float32", ("n", 8, "photo_2", 3))
    age = TensorSpec("age", "float32", ("n", 4))
    found = require_image_classifier(artifact(tmp_path / "mine.onnx", age, last))
    assert found == (TensorSpec("photo", "float32", ("n", 3, 8, "photo_3")), True)
    found = require_image_classifier(artifact(tmp_path / "mine.onnx", last, IMAGE))
    assert found == (IMAGE, False)


# --- what is beside the image


def test_images_alone_need_no_values(tmp_path: Path) -> None:
    assert side_inputs_of(artifact(tmp_path / "m.onnx", IMAGE), IMAGE, None).rows == {}


def test_values_for_images_alone_are_refused(tmp_path: Path) -> None:
    source = artifact(tmp_path / "m.onnx", IMAGE)
    with pytest.raises(UsageError, match=r"^m\.onnx takes images alone\nleave out --side-inputs v"):
        side_inputs_of(source, IMAGE, tmp_path.joinpath("v.npz").relative_to(tmp_path))


def test_numbers_beside_the_image_are_noise_where_nothing_is_given(tmp_path: Path) -> None:
    age = TensorSpec("age", "float32", ("n", 4))
    found = side_inputs_of(artifact(tmp_path / "m.onnx", IMAGE, age), IMAGE, None)
    assert found.is_noise
    assert found.rows["age"].shape[1:] == (4,)


def test_whole_numbers_beside_the_image_cannot_be_guessed(tmp_path: Path) -> None:
    ward = TensorSpec("ward", "int64", ("n",))
    source = artifact(tmp_path / "m.onnx", IMAGE, ward)
    with pytest.raises(UsageError, match=r"^input 'ward' beside the images is int64 .*nobody can"):
        side_inputs_of(source, IMAGE, None)


def test_given_values_are_read(tmp_path: Path) -> None:
    ages = normal(3, 4)
    np.savez(tmp_path / "v.npz", age=ages)
    age = TensorSpec("age", "float32", ("n", 4))
    source = artifact(tmp_path / "m.onnx", IMAGE, age)
    found = side_inputs_of(source, IMAGE, tmp_path / "v.npz")
    np.testing.assert_array_equal(found.rows["age"], ages)
    np.savez(tmp_path / "w.npz", weight=ages)
    with pytest.raises(DataError, match=r"^w\.npz has \['weight'\], .* takes \['age'\]"):
        side_inputs_of(source, IMAGE, tmp_path / "w.npz")


# --- the assumed preprocessing


@pytest.mark.parametrize(("size", "resize"), [((224, 224), 256), ((8, 8), 9), ((64, 112), 73)])
def test_the_share_of_the_published_networks_is_assumed(size: tuple[int, int], resize: int) -> None:
    """224 of 256, of the shorter side."""
    image = TensorSpec("x", "float32", ("n", 3, *size))
    found = assumed_preprocessing("mine", image)
    assert (found.crop, found.resize) == (size, resize)
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_an_open_size_is_the_preferred_one_of_the_profile() -> None:
    image = TensorSpec("x", "float32", ("n", 3, "h", "w"))
    profile = ShapeProfile(height=SizeRange(64, 112, 224), width=SizeRange(96, 96, 96))
    assert assumed_preprocessing("mine", image, profile).crop == (112, 96)


def test_an_open_size_that_nothing_says() -> None:
    image = TensorSpec("x", "float32", ("n", 3, "h", "w"))
    with pytest.raises(UsageError, match=r"^mine takes images .*nothing here says their height"):
        assumed_preprocessing("mine", image)


# --- the whole way

"""`from_onnx` and its parts: which input is the image, what is assumed of it, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.artifacts import OnnxArtifact, sha256_of
from deploykit.core.errors import DataError, ModelFileError, UsageError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from deploykit.graph import read_artifact
from deploykit.sources.definition import SourceOptions
from deploykit.sources.onnx_file import (
    ORIGINAL,
    assumed_preprocessing,
    from_onnx,
    require_image,
    require_image_classifier,
    side_inputs_of,
)
from tests import own_files
from tests.bundles import write_classifier
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Reference

IMAGE = TensorSpec("x", "float32", ("n", 3, 8, 8))


def artifact(
    path: Path, *inputs: TensorSpec, precision: Precision = Precision.FP32
) -> OnnxArtifact:
    return OnnxArtifact(path, "abc", precision, 20, inputs, (), ())


def make(
    original: Path, profile: ShapeProfile | None = None, told: SourceOptions | None = None
) -> tuple[Reference, Journal]:
    journal = Journal(SilentProgress())
    path = original.parent / "made.onnx"
    return from_onnx(original, path, journal, told or SourceOptions(), profile), journal


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


def test_the_graph_computes_what_the_file_does(tmp_path: Path) -> None:
    source = own_files.old(9, batch=1)
    original = save(source, tmp_path / "mine.onnx")
    reference, journal = make(original)
    assert reference.made_by == ORIGINAL
    assert reference.artifact.parents == (sha256_of(original),)
    assert reference.artifact.sha256 == sha256_of(tmp_path / "made.onnx")
    assert reference.weights == {
        "source": "mine.onnx",
        "sha256": sha256_of(original),
        "trained": True,
    }
    assert [step.partition(" (")[0] for step in reference.conversion["steps"]] == [
        "raising the opset", "opening the batch", "folding constants",
    ]  # fmt: skip
    assert any(note.startswith("done to the graph, and proven: ") for note in journal.notes)
    assert [len(batch) for batch in reference.batches] == [1, 2, 5]
    for batch, logits in zip(reference.batches, reference.outputs, strict=True):
        singly = [run_ort(source, {"x": image[None]})["y"] for image in batch]
        np.testing.assert_allclose(logits, np.concatenate(singly), atol=1e-5)


def test_a_batch_that_is_the_only_one_asked_for_stays(tmp_path: Path) -> None:
    original = save(own_files.written_shape(4, (4, 256)), tmp_path / "mine.onnx")
    reference, journal = make(original, ShapeProfile(4, 4, 4))
    assert reference.artifact.inputs[0].shape[0] == 4
    assert "the batch stays 4, as --batch 4 asks" in journal.notes
    assert [len(batch) for batch in reference.batches] == [4]


def test_another_fixed_batch_is_opened_all_the_same(tmp_path: Path) -> None:
    original = save(own_files.written_shape(4, (4, 256)), tmp_path / "mine.onnx")
    reference, _ = make(original, ShapeProfile(1, 4, 8))
    assert isinstance(reference.artifact.inputs[0].shape[0], str)


def test_a_sum_over_the_batch_keeps_it(tmp_path: Path) -> None:
    text = """net (float[2, 3, 8, 8] x) => (float[2, 3] y) {
        m = ReduceMean (x, first)  d = Sub (x, m)  p = GlobalAveragePool (d)  y = Flatten (p)
    }"""
    original = save(graph(text, {"first": np.array([0])}), tmp_path / "mixing.onnx")
    reference, journal = make(original)
    assert reference.artifact.inputs[0].shape[0] == 2
    assert any(note.startswith("opening the batch was left out: ") for note in journal.notes)
    assert "the batch stays 2: every call takes so many images at once" in journal.notes


def test_logits_are_flattened_and_put_first(tmp_path: Path) -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] map, float[N, 3, 1, 1] y) {
        map = Relu (x)  c = Conv (map, w)  y = GlobalAveragePool (c)
    }"""
    source = graph(text, {"w": np.eye(3, dtype=np.float32)[:, :, None, None]})
    reference, journal = make(save(source, tmp_path / "mine.onnx"))
    assert reference.artifact.outputs[0].name == "y"
    assert reference.artifact.outputs[0].shape[1:] == (3,)
    assert {"'y' was made the first output", "'y' was flattened to (batch, classes)"} <= set(
        journal.notes
    )
    batch = reference.batches[1]
    wanted = np.maximum(batch, 0).mean((2, 3))
    np.testing.assert_allclose(reference.outputs[1], wanted, atol=1e-6)


def test_a_graph_that_gives_no_numbers_is_not_proven(tmp_path: Path) -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 3] y) {
        p = GlobalAveragePool (x)  f = Flatten (p)  y = Div (f, zero)
    }"""
    weights = {"zero": np.full(3, np.nan, np.float32)}
    original = save(graph(text, weights), tmp_path / "nan.onnx")
    with pytest.raises(
        ValidationError, match=r"^the original file itself gives NaN or infinity for 8 of 8 images"
    ):
        make(original)


def test_sizes_for_images_of_a_fixed_size(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    with pytest.raises(UsageError, match=r"^--height 16 for mine\.onnx: its height is fixed to 8"):
        make(original, ShapeProfile(height=SizeRange(16, 16, 16)))


def test_open_sizes_are_compared_at_their_ends(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "open.onnx", image="h, w")
    profile = ShapeProfile(height=SizeRange(8, 8, 16), width=SizeRange(8, 8, 12))
    reference, journal = make(original, profile)
    sizes = {batch.shape[2:] for batch in reference.batches}
    assert {(8, 8), (16, 12)} <= sizes
    assert reference.model["image_size"] == [8, 8]
    assert any("8,8,16" in note or "16" in note for note in journal.notes)


def test_the_file_itself_is_only_read(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    before = original.read_bytes()
    make(original)
    assert original.read_bytes() == before
    assert read_artifact(original).precision is Precision.FP32

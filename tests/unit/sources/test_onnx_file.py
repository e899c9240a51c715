"""`from_onnx`: the graph computes what the file does, at every batch and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import UsageError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.graph import read_artifact
from deploykit.sources.definition import SourceOptions
from deploykit.sources.onnx_file import (
    ORIGINAL,
    from_onnx,
)
from tests import own_files
from tests.bundles import write_classifier
from tests.graphs import graph, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.comparison.reference import Reference


def make(
    original: Path, profile: ShapeProfile | None = None, told: SourceOptions | None = None
) -> tuple[Reference, Journal]:
    journal = Journal(SilentProgress())
    path = original.parent / "made.onnx"
    return from_onnx(original, path, journal, told or SourceOptions(), profile), journal


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
    assert [len(batch) for batch in reference.batches] == [4, 4]


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

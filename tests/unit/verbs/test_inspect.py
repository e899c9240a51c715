"""`inspect` of each kind of target, with figures that were counted by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.bundle.manifest import MODEL
from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import (
    BundleError,
    DataError,
    IntegrityError,
    ModelFileError,
    UnknownNameError,
    UsageError,
)
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Preprocessing
from deploykit.graph import convert_to_half, plan_half, read_model, tidy, write_model
from deploykit.sources.definition import SourceOptions
from deploykit.verbs.inspect import inspect, inspect_with_input
from tests import cli
from tests.bundles import write_bundle, write_classifier
from tests.graphs import graph, save

if TYPE_CHECKING:
    from pathlib import Path

CONVOLUTION = 16 * 3 * 9 * 8 * 8
LINEAR = 16 * 4


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_is_counted_node_by_node(tmp_path: Path, batch: int) -> None:
    summary = inspect(str(write_classifier(tmp_path / "mine.onnx")), batch=batch)
    assert summary.multiply_adds == batch * (CONVOLUTION + LINEAR)
    assert [layer.kind for layer in summary.layers] == [
        "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    assert summary.layers[0].output_shape == (batch, 16, 8, 8)
    assert summary.parameters == 16 * 3 * 9 + LINEAR


@pytest.mark.parametrize("converted", [False, True])
def test_a_batch_that_is_fixed_is_the_one_that_is_shown(tmp_path: Path, converted: bool) -> None:
    proto = onnx.load(write_classifier(tmp_path / "mine.onnx"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    path = save(proto, tmp_path / "four.onnx")
    if converted:
        model = read_model(path)
        tidy(model, rename=False)
        write_model(convert_to_half(model, plan_half(model, {}, 4.0)), path, Precision.FP16)
    summary = inspect(str(path))
    assert summary.multiply_adds == inspect(str(path), batch=4).multiply_adds
    assert summary.multiply_adds == 4 * (CONVOLUTION + LINEAR)
    assert summary.layers[0].output_shape[0] == summary.input_shape[0] == 4
    assert deploykit.inspect(path).multiply_adds == summary.multiply_adds
    asked = cli.deploykit("inspect", path, "--batch", "1")
    assert asked.code == (2 if converted else 0)
    assert not converted or "has a fixed batch of 4, not 1\nask for that batch" in asked.err
    for words in ([], ["--precision"], ["--precision", "--batch", "4"]):
        found = cli.deploykit("inspect", path, *words, "--json")
        assert (found.code, found.data["multiply_adds"]) == (0, summary.multiply_adds)


def test_an_open_size_is_what_the_user_asks_for(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "open.onnx", image="h, w")
    summary = inspect(str(path), DefinitionChoices(image_size=16))
    assert summary.multiply_adds == 4 * CONVOLUTION + LINEAR


def test_a_fixed_size_takes_no_other(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "mine.onnx")
    with pytest.raises(UsageError, match=r"mine\.onnx brings its own weights, classes and size"):
        inspect(str(path), DefinitionChoices(image_size=16))


def test_classes_are_for_definitions(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "open.onnx", image="h, w")
    with pytest.raises(UsageError, match=r"open\.onnx brings its own weights"):
        inspect(str(path), DefinitionChoices(image_size=16, num_classes=3))


MIB = 2**20


def test_memory_of_a_converted_file_is_what_an_engine_holds(tmp_path: Path) -> None:
    """Weights of 2 bytes; at the convolution its result alone; the caller binds FP32."""
    model = read_model(write_classifier(tmp_path / "mine.onnx"))
    tidy(model, rename=False)
    half = convert_to_half(model, plan_half(model, {}, 4.0))
    write_model(half, tmp_path / "half.onnx", Precision.FP16)
    full, found = (inspect(str(tmp_path / name)) for name in ("mine.onnx", "half.onnx"))
    assert found.parameters == full.parameters
    assert found.parameters_mb * MIB == 2 * (16 * 3 * 9 + 16 * 4)
    assert found.input_mb * MIB == 4 * 3 * 8 * 8
    assert found.forward_backward_mb * MIB == 2 * 16 * 8 * 8 + 2 * 16
    parts = found.input_mb + found.forward_backward_mb + found.parameters_mb
    assert found.total_mb == parts < full.total_mb / 2
    assert full.parameters_mb * MIB == 4 * full.parameters


def test_a_bundle_that_was_changed_is_not_shown(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    save(
        graph("g (float[N,3,8,8] input) => (float[N,3,8,8] y) { y = Relu(input) }"), folder / MODEL
    )
    with pytest.raises(IntegrityError, match=r"colours: model\.onnx has sha256 .* manifest gives"):
        inspect(str(folder))
    with pytest.raises(IntegrityError, match="has sha256"):
        inspect_with_input(str(folder), SourceOptions())


@pytest.mark.parametrize("image", ["8, 8", "h, w"])
def test_a_bundle_is_shown_at_the_size_of_its_images(tmp_path: Path, image: str) -> None:
    folder = write_bundle(tmp_path / "colours", image=image)
    summary = inspect(str(folder))
    assert [layer.kind for layer in summary.layers] == ["GlobalAveragePool", "Flatten"]
    assert summary.layers[1].output_shape == (1, 3)
    assert summary.parameters == 0


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        inspect(str(tmp_path))


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "odd.onnx").write_bytes(b"text")
    with pytest.raises(ModelFileError, match=r"odd\.onnx"):
        inspect(str(tmp_path / "odd.onnx"))


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'alexnt'\ndid you mean"):
        inspect("alexnt")


def test_a_definition_is_shown_as_modules() -> None:
    summary = inspect("resnet20", DefinitionChoices(image_size=8))
    assert summary.parameters == 269_722
    kinds = [layer.kind for layer in summary.layers]
    assert kinds.count("Conv2d") == 19
    assert kinds.count("Linear") == 1


def test_the_input_of_a_file_is_that_of_prepared_images(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "mine.onnx")
    chosen = PreprocessingChoices(mean=(0, 0, 0), std=(1, 1, 1), channel_order="bgr")
    options = SourceOptions(choices=DefinitionChoices(preprocessing=chosen))
    summary, prepared = inspect_with_input(str(path), options)
    assert prepared is not None
    assert summary == inspect(str(path))
    assert 0 <= prepared.range.min < 0.1
    assert 0.9 < prepared.range.max <= 1
    assert prepared.range.images == 8
    assert prepared.preprocessing.channel_order == "bgr"
    (note,) = prepared.notes
    assert note.startswith("preprocessing is assumed: resize 9, interpolation bilinear; as in")


def test_a_file_that_says_how_images_are_prepared(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "mine.onnx")
    model = onnx.load(path)
    said = to_plain(Preprocessing((8, 8), mean=(0.25,) * 3, std=(0.5,) * 3))
    onnx.helper.set_model_props(model, {"deploykit.preprocessing": json.dumps(said)})
    save(model, path)
    halves = np.zeros((1, 8, 8, 3), np.uint8)
    halves[:, 4:] = 255
    np.savez(tmp_path / "halves.npz", images=halves)
    options = SourceOptions(data=tmp_path / "halves.npz")
    _, prepared = inspect_with_input(str(path), options)
    assert prepared is not None
    assert (prepared.range.min, prepared.range.max) == ((0 - 0.25) / 0.5, (1 - 0.25) / 0.5)
    assert "mine.onnx says its preprocessing" in prepared.notes
    assert not any("is assumed" in note for note in prepared.notes)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_a_file_of_bytes_has_the_range_of_bytes(tmp_path: Path, layout: str) -> None:
    made = deploykit.export(
        write_classifier(tmp_path / "mine.onnx"), mean=0.25, std=0.5, input="uint8",
        input_layout=layout, backend="none", output=tmp_path / "made", quiet=True,
    )  # fmt: skip
    _, prepared = inspect_with_input(str(made.folder / MODEL), SourceOptions())
    _, wanted = inspect_with_input(str(made.folder), SourceOptions())
    assert prepared is not None
    assert wanted is not None
    assert prepared.range == wanted.range
    assert 128 < prepared.range.max <= 255


@pytest.mark.parametrize("shape", ["N, 5", "N, 2, 8, 8", "N, 3, 16000, 16000"])
def test_what_takes_no_images_or_enormous_ones_has_no_range(tmp_path: Path, shape: str) -> None:
    model = graph(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu (x) }}")
    path = save(model, tmp_path / "g.onnx")
    summary, prepared = inspect_with_input(str(path), SourceOptions())
    assert prepared is None
    assert summary.layers[0].kind == "Relu"


def test_images_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "mine.onnx")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*bad\.png"):
        inspect_with_input(str(path), SourceOptions(data=tmp_path / "bad.png"))

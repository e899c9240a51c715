"""A graph that is handed from stage to stage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.backends.ort import OrtRunner
from deploykit.core.artifacts import WEIGHTS_SUFFIX
from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, files, read_artifact, read_graph, read_model, write_graph
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "net (float[N,16] x) => (float[N,32] y) { [product] y = MatMul (x, w) }"
WEIGHTS = {"w": normal(16, 32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(graph(TEXT, WEIGHTS), tmp_path / "net.onnx")


def test_a_file_is_read_when_it_is_needed(path: Path) -> None:
    loaded = LoadedGraph(read_artifact(path))
    states = [loaded._model is not None]
    model = loaded.model
    states.append(loaded._model is not None)
    assert loaded.model is model
    loaded.release()
    states.append(loaded._model is not None)
    assert states == [False, True, False]
    assert loaded.model is not model


def test_one_reading_gives_description_and_model(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_artifact(path)
    loaded = read_graph(path)
    monkeypatch.setattr("deploykit.graph.loaded.read_model", None)
    assert loaded.artifact == expected
    assert [node.name for node in loaded.model.graph] == ["product"]


def test_a_written_model_is_kept(path: Path, tmp_path: Path) -> None:
    model = read_model(path)
    loaded = write_graph(model, tmp_path / "written.onnx", Precision.FP32, ("origin",))
    assert loaded.model is model
    assert loaded.artifact == read_artifact(tmp_path / "written.onnx")
    assert loaded.artifact.parents == ("origin",)


def test_a_model_in_two_files_is_not_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(files.write_model, limit=1024)
    monkeypatch.setattr("deploykit.graph.loaded.write_model", small)
    model, target = read_model(path), tmp_path / "written.onnx"
    loaded = write_graph(model, target, Precision.FP32)
    assert target.with_name(target.name + WEIGHTS_SUFFIX).exists()
    assert loaded._model is None
    np.testing.assert_array_equal(
        loaded.model.graph.initializers["w"].const_value.numpy(),  # type: ignore[union-attr]
        WEIGHTS["w"],
    )


def test_it_runs_as_its_file_does(path: Path) -> None:
    images = normal(3, 16, seed=1)
    with OrtRunner(read_graph(path).split()) as memory, OrtRunner(path) as file:
        got, expected = (runner.run({"x": images})["y"] for runner in (memory, file))
    np.testing.assert_array_equal(got, expected)


def test_a_file_that_is_gone_is_missed_at_the_next_use(path: Path) -> None:
    loaded = read_graph(path)
    path.unlink()
    assert len(loaded.model.graph) == 1
    loaded.release()
    with pytest.raises(ModelFileError, match="there is no file"):
        _ = loaded.model


def test_a_clone_shares_the_weights(path: Path) -> None:
    loaded = read_graph(path)
    clone = loaded.model.clone()
    first, second = (m.graph.initializers["w"].const_value for m in (loaded.model, clone))
    assert first is second


def test_the_model_in_memory_is_that_of_the_file(path: Path, tmp_path: Path) -> None:
    loaded = write_graph(read_model(path), tmp_path / "written.onnx", Precision.FP32)
    again = write_graph(loaded.model, tmp_path / "again.onnx", Precision.FP32)
    loaded.release()
    reread = write_graph(loaded.model, tmp_path / "reread.onnx", Precision.FP32)
    assert again.artifact.sha256 == reread.artifact.sha256 == loaded.artifact.sha256
    assert onnx.load(tmp_path / "again.onnx") == onnx.load(tmp_path / "reread.onnx")

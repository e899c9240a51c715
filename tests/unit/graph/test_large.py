from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.graph import files, read_artifact, read_model, write_model
from deploykit.graph.external_weights import ALIGNMENT_BYTES, serialise, split, split_own
from deploykit.graph.opset import raise_opset
from tests.graphs import expose_outputs, graph, run_ort, save
from tests.unit.graph.large import IMAGES, LIMIT, TEXT, WEIGHTS, network, two_files

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def expected() -> NDArray[np.float32]:
    logits: NDArray[np.float32] = run_ort(graph(TEXT, WEIGHTS), {"x": IMAGES})["y"]
    return logits


def logits_of(path: Path) -> NDArray[np.float32]:
    with OrtRunner(path, GraphOptions(threads=1, optimise=False)) as runner:
        found: NDArray[np.float32] = runner.run({"x": IMAGES})["y"].astype(np.float32)
    return found


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# Writing


def test_what_fits_is_one_file_of_the_same_bytes_as_ever(tmp_path: Path) -> None:
    model = network(tmp_path)
    one = write_model(model, tmp_path / "one.onnx", Precision.FP32)
    fits = write_model(model, tmp_path / "fits.onnx", Precision.FP32, limit=50_000)
    assert fits.path.read_bytes() == one.path.read_bytes()
    stored = onnx.load(fits.path, load_external_data=False).graph.initializer
    assert {tensor.data_location for tensor in stored} == {onnx.TensorProto.DEFAULT}
    assert names_in(tmp_path) == {"given.onnx", "one.onnx", "fits.onnx"}


def test_what_does_not_fit_is_two_files_that_compute_the_same(tmp_path: Path) -> None:
    written = two_files(tmp_path)
    assert names_in(tmp_path) == {"given.onnx", "model.onnx", "model.onnx.data"}
    assert written.path.stat().st_size < LIMIT
    np.testing.assert_array_equal(logits_of(written.path), expected())
    assert read_artifact(written.path) == written
    assert written.sha256 == sha256_of(written.path)


def test_weights_stand_in_graph_order_each_on_a_page(tmp_path: Path) -> None:
    written = two_files(tmp_path)
    model = onnx.load(written.path, load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
    }
    assert places == {
        "w": {"location": "model.onnx.data", "offset": "0", "length": "1728"},
        "b": {},
        "v": {"location": "model.onnx.data", "offset": str(ALIGNMENT_BYTES), "length": "20480"},
    }
    content = (tmp_path / "model.onnx.data").read_bytes()
    assert content[:1728] == WEIGHTS["w"].tobytes()
    assert content[ALIGNMENT_BYTES:] == WEIGHTS["v"].tobytes()


def test_the_same_graph_gives_the_same_two_files(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        written = two_files(folder)
        digests.append((written.sha256, sha256_of(folder / "model.onnx.data")))
    assert digests[0] == digests[1]


def test_a_smaller_model_leaves_no_weights_of_a_larger_one_behind(tmp_path: Path) -> None:
    written = two_files(tmp_path)
    write_model(read_model(written.path), written.path, Precision.FP32)
    assert names_in(tmp_path) == {"given.onnx", "model.onnx"}
    np.testing.assert_array_equal(logits_of(written.path), expected())


def test_a_model_is_written_over_the_files_that_it_is_mapped_from(tmp_path: Path) -> None:
    written = two_files(tmp_path)
    mapped = read_model(written.path, mapped_bytes=0)
    again = write_model(mapped, written.path, Precision.FP32, ("p",), limit=LIMIT)
    assert again.sha256 == written.sha256
    np.testing.assert_array_equal(logits_of(again.path), expected())


def test_two_files_that_the_checker_refuses_are_not_written(tmp_path: Path) -> None:
    written = two_files(tmp_path)
    model = read_model(written.path)
    model.graph[0].op_type = "Konv"
    with pytest.raises(ModelFileError, match=r"for model\.onnx is not valid ONNX\n.*Konv"):
        write_model(model, written.path, Precision.FP32, limit=LIMIT)
    assert names_in(tmp_path) == {"given.onnx", "model.onnx", "model.onnx.data"}
    assert read_artifact(written.path) == written


def test_a_graph_that_is_too_large_without_its_weights(tmp_path: Path) -> None:
    model = network(tmp_path)
    path = tmp_path / "m.onnx"
    words = r"m\.onnx would have 0\.0 GiB beside its weights, an ONNX file holds 0 GiB at most\n"
    with pytest.raises(ModelFileError, match=words):
        write_model(model, path, Precision.FP32, limit=100)
    assert names_in(tmp_path) == {"given.onnx"}
    with pytest.raises(ModelFileError, match="the candidate would have"):
        serialise(graph(TEXT, WEIGHTS), "the candidate", 100)


# What the hash covers


@pytest.mark.parametrize("at", [0, 1727, ALIGNMENT_BYTES, -1])
def test_weights_of_another_model_are_noticed(tmp_path: Path, at: int) -> None:
    written = two_files(tmp_path)
    beside = tmp_path / "model.onnx.data"
    content = bytearray(beside.read_bytes())
    content[at] ^= 1
    beside.write_bytes(content)
    with pytest.raises(
        ModelFileError,
        match=r"model\.onnx was written with other weights than model\.onnx\.data holds\n"
        r"their sha256 was [0-9a-f]{64}\ncopy both files again",
    ):
        read_artifact(written.path)


def test_the_hash_of_a_strangers_file_covers_what_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    digests = set()
    for scale in (1, 2):
        model = graph(TEXT, {**WEIGHTS, "v": WEIGHTS["v"] * np.float32(scale)})
        onnx.save(model, path, save_as_external_data=True, location="v.bin", size_threshold=1024)
        digests.add(read_artifact(path).sha256)
        (tmp_path / "v.bin").unlink()
    assert len(digests) == 2
    assert sha256_of(path) not in digests


# Reading


def owner_of(array: NDArray[np.generic]) -> object:
    base: object = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base


def test_large_weights_are_mapped_and_small_ones_copied(tmp_path: Path) -> None:
    written = two_files(tmp_path)
    for limit, kind in ((100_000, bytes), (0, mmap.mmap)):
        stored = read_model(written.path, mapped_bytes=limit).graph.initializers
        assert list(stored) == ["b", "w", "v"]
        for name, array in WEIGHTS.items():
            tensor = stored[name].const_value
            assert tensor is not None
            np.testing.assert_array_equal(tensor.numpy(), array)
        assert isinstance(owner_of(stored["v"].const_value.numpy()), kind)  # type: ignore[union-attr]  # looked at above


def placed(tensor: onnx.TensorProto, offset: int) -> onnx.TensorProto:
    """The tensor in the file ``both.bin``, at any offset."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "both.bin"), ("offset", str(offset))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_weights_are_mapped_from_odd_places_and_constants_are_copied(tmp_path: Path) -> None:
    (tmp_path / "both.bin").write_bytes(b"?" + WEIGHTS["v"].tobytes() + WEIGHTS["w"].tobytes())
    model = graph(TEXT, WEIGHTS)
    constant, _, matrix = model.graph.initializer
    placed(matrix, 1)
    node = onnx.helper.make_node("Constant", [], ["w"], value=placed(constant, 1 + 20480))
    model.graph.node.insert(0, node)
    model.graph.initializer.remove(constant)
    read = read_model(save(model, tmp_path / "m.onnx"), mapped_bytes=0)
    stored = read.graph.initializers["v"].const_value
    assert stored is not None
    assert isinstance(owner_of(stored.numpy()), mmap.mmap)
    (tmp_path / "both.bin").unlink()
    written = write_model(read, tmp_path / "alone.onnx", Precision.FP32)
    np.testing.assert_array_equal(logits_of(written.path), expected())
    with OrtRunner(split(read, "the graph"), GraphOptions(threads=1, optimise=False)) as runner:
        np.testing.assert_array_equal(runner.run({"x": IMAGES})["y"], expected())


def test_a_weight_that_is_shorter_than_its_shape(tmp_path: Path) -> None:
    model = graph(TEXT, WEIGHTS)
    model.graph.initializer[2].raw_data = WEIGHTS["v"].tobytes()[:-4]
    with pytest.raises(ModelFileError, match=r"m\.onnx is not a valid ONNX model\n.*v"):
        read_model(save(model, tmp_path / "m.onnx"))


def test_weights_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = two_files(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(ModelFileError, match=r"cannot read .*\.data: Cannot allocate memory"):
        read_model(written.path, mapped_bytes=0)


# Runners


def test_a_graph_for_a_runner_shares_the_weights_of_the_model(tmp_path: Path) -> None:
    model = network(tmp_path)
    shown = split(model, "the graph")
    assert list(shown.weights) == ["w", "v"]
    assert len(shown.content) < 1500
    for name, array in shown.weights.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        assert np.shares_memory(array, tensor.numpy())
    for optimise in (False, True):
        with OrtRunner(shown, GraphOptions(threads=1, optimise=optimise)) as runner:
            found = runner.run({"x": IMAGES})["y"].astype(np.float32)
        np.testing.assert_allclose(found, expected(), rtol=1e-5, atol=1e-5)


def test_a_graph_that_nobody_else_has_is_split_without_a_copy(tmp_path: Path) -> None:
    model = network(tmp_path)
    whole, clone = split(model, "the graph"), model.clone()
    shown = split_own(clone, "the graph")
    assert shown.content == whole.content
    assert all(np.shares_memory(shown.weights[name], whole.weights[name]) for name in ("w", "v"))
    again = split(model, "the graph")  # what the clone came from has its weights still
    assert all(np.array_equal(again.weights[name], WEIGHTS[name]) for name in ("w", "v"))


def test_a_mapped_graph_shows_its_activations(tmp_path: Path) -> None:
    shown, names = expose_outputs(read_model(two_files(tmp_path).path, mapped_bytes=0))
    assert names == ("c", "r", "f", "y")
    with OrtRunner(shown, GraphOptions(threads=1, optimise=False)) as runner:
        found = runner.run({"x": IMAGES})
    np.testing.assert_array_equal(found["y"], expected())
    np.testing.assert_array_equal(found["r"], np.maximum(found["c"], 0))


# Old opsets


def test_an_old_opset_is_raised_without_the_weights(tmp_path: Path) -> None:
    old = graph(TEXT, WEIGHTS)
    old.opset_import[0].version, old.ir_version = 11, 6
    model = read_model(save(old, tmp_path / "old.onnx"))
    raised = raise_opset(model, limit=LIMIT)
    assert raised.graph.opset_imports[""] == 20
    for name in ("w", "v"):
        assert raised.graph.initializers[name].const_value is not None
    written = write_model(raised, tmp_path / "new.onnx", Precision.FP32)
    np.testing.assert_array_equal(logits_of(written.path), expected())


# --- large, in one file


@pytest.fixture
def none_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHECKED_WHOLE_BYTES", 0)


def test_pieces_are_the_bytes_that_protobuf_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(tmp_path)
    whole = write_model(model, tmp_path / "whole.onnx", Precision.FP32, ("p",))
    monkeypatch.setattr(files, "CHECKED_WHOLE_BYTES", 0)
    pieces = write_model(model, tmp_path / "pieces.onnx", Precision.FP32, ("p",))
    assert pieces.path.read_bytes() == whole.path.read_bytes()
    assert pieces.sha256 == whole.sha256 == sha256_of(pieces.path)


@pytest.mark.usefixtures("none_is_small")
def test_a_large_graph_is_checked_without_its_weights(tmp_path: Path) -> None:
    model = network(tmp_path)
    list(model.graph)[-1].op_type = "Unknown"
    with pytest.raises(ModelFileError, match=r"graph for bad\.onnx is not valid ONNX\n.*Unknown"):
        write_model(model, tmp_path / "bad.onnx", Precision.FP32)
    assert not (tmp_path / "bad.onnx").exists()
    proto = graph(TEXT, WEIGHTS)
    proto.graph.node[0].op_type = "Unknown"
    with pytest.raises(ModelFileError, match=r"broken\.onnx is not a valid ONNX model\n.*Unknown"):
        read_model(save(proto, tmp_path / "broken.onnx"))


@pytest.mark.usefixtures("none_is_small")
@pytest.mark.parametrize("at", range(len(WEIGHTS)))
def test_weights_of_another_size_than_their_shape(tmp_path: Path, at: int) -> None:
    proto = graph(TEXT, WEIGHTS)
    proto.graph.initializer[at].raw_data = proto.graph.initializer[at].raw_data[:-4]
    with pytest.raises(ModelFileError, match=r"not a valid.*\n.*(raw_data size|cannot res)"):
        read_model(save(proto, tmp_path / "broken.onnx"))
    proto.graph.initializer[at].ClearField("raw_data")
    proto.graph.initializer[at].float_data.extend([1.0] * 7)
    with pytest.raises(ModelFileError, match=r"broken\.onnx is not a valid ONNX model"):
        read_model(save(proto, tmp_path / "broken.onnx"))

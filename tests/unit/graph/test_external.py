from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.graph import read_artifact, read_model, write_model
from tests.graphs import normal, run_ort, save
from tests.unit.graph.foreign import (
    WEIGHT,
    assert_refused,
    convolution,
    external,
    in_constant_node,
    in_function,
    in_initializer,
    in_subgraph,
    weight,
)

if TYPE_CHECKING:
    from collections.abc import Callable


PLACES = [in_initializer, in_constant_node, in_subgraph, in_function]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../secret", "a/../../secret", "", "a\0b"])
def test_data_outside_the_folder(
    tmp_path: Path, place: Callable[[onnx.TensorProto], onnx.ModelProto], location: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    path = save(place(external(weight(), location)), folder / "m.onnx")
    assert_refused(path, r"keeps 'w' in .*, outside its own folder\nthis is refused; put the")


def test_data_at_an_absolute_path_even_in_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "w.bin"
    data.write_bytes(WEIGHT.tobytes())
    path = save(in_initializer(external(weight(), str(data))), tmp_path / "m.onnx")
    assert_refused(path, "keeps 'w' in '/.*w.bin', outside its own folder")


def test_data_behind_a_link_that_leads_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    path = save(in_initializer(external(weight(), "w.bin")), folder / "m.onnx")
    assert_refused(path, "keeps 'w' in 'w.bin', outside its own folder")


def test_two_locations_of_which_one_leads_out(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    tensor = external(weight(), "/etc/passwd")
    tensor.external_data.add(key="location", value="w.bin")
    path = save(in_initializer(tensor), tmp_path / "m.onnx")
    assert_refused(path, "keeps 'w' in '/etc/passwd', outside its own folder")


def test_no_location_at_all(tmp_path: Path) -> None:
    tensor = external(weight(), "w.bin")
    del tensor.external_data[:]
    assert_refused(save(in_initializer(tensor), tmp_path / "m.onnx"), "keeps 'w' in ''")


@pytest.mark.parametrize("place", PLACES)
def test_data_that_is_missing(
    tmp_path: Path, place: Callable[[onnx.TensorProto], onnx.ModelProto]
) -> None:
    path = save(place(external(weight(), "w.bin")), tmp_path / "m.onnx")
    assert_refused(path, "needs 'w.bin' beside it, which is missing")


@pytest.mark.parametrize(
    ("keys", "present"),
    [
        ({}, 40),
        ({"offset": "8"}, 32),
        ({"offset": "999"}, 0),
        ({"length": "16"}, 16),
        ({"length": "-1"}, 0),
        ({"offset": "-8"}, 48),
    ],
)
def test_data_that_is_too_short(tmp_path: Path, keys: dict[str, str], present: int) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes()[:40])
    path = save(in_initializer(external(weight(), "w.bin", **keys)), tmp_path / "m.onnx")
    assert_refused(path, f"needs 48 bytes of 'w.bin' for 'w', there are {present}\ncopy both")


def test_a_shape_larger_than_any_memory(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    tensor = external(weight(), "w.bin")
    tensor.dims[0] = 2**60
    path = save(in_initializer(tensor), tmp_path / "m.onnx")
    assert_refused(path, "would make a value of 295,147,905,179,352,825,856 bytes")


def test_a_shape_larger_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    tensor = external(weight(), "w.bin")
    tensor.dims[0] = 2**20
    path = save(in_initializer(tensor), tmp_path / "m.onnx")
    assert_refused(path, "needs 12,582,912 bytes of 'w.bin'")


def test_data_without_a_usable_place(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = save(in_initializer(external(weight(), "w.bin", offset="x")), tmp_path / "m.onnx")
    assert_refused(path, "does not say where 'w' lies in 'w.bin': invalid literal")


def test_data_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = save(in_initializer(external(weight(), "w.bin")), tmp_path / "m.onnx")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelFileError, match=r"cannot read .*w\.bin: Permission denied"):
        read_model(path)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("offset", [0, 16])
def test_good_external_data_is_taken_in(
    tmp_path: Path, place: Callable[[onnx.TensorProto], onnx.ModelProto], offset: int
) -> None:
    data = tmp_path / "data" / "w.bin"
    data.parent.mkdir()
    data.write_bytes(bytes(offset) + WEIGHT.tobytes() + b"others")
    keys = {"offset": str(offset), "length": "48"} if offset else {"length": "48"}
    path = save(place(external(weight(), "data/w.bin", **keys)), tmp_path / "m.onnx")
    model = read_model(path)
    data.unlink()
    written = tmp_path / "alone.onnx"
    write_model(model, written, Precision.FP32)
    feeds = {"x": normal(2, 3, 8, 8, seed=1)}
    expected = run_ort(convolution(), feeds)["y"]
    if place is in_subgraph:
        feeds["c"] = np.array(1, bool)
    got = run_ort(onnx.load(written), feeds)["y"]
    np.testing.assert_array_equal(np.maximum(got, 0), expected)


# A link to the model


def linked(folder: Path, *, place: str = "real") -> Path:
    """``link/m.onnx``, which leads to ``real/m.onnx``, whose weights are ``w.bin`` in ``place``."""
    for name in {"real", "link", place}:
        (folder / name).mkdir()
    (folder / place / "w.bin").write_bytes(WEIGHT.tobytes())
    location = "w.bin" if place in {"real", "link"} else f"../{place}/w.bin"
    save(in_initializer(external(weight(), location)), folder / "real" / "m.onnx")
    (folder / "link" / "m.onnx").symlink_to("../real/m.onnx")
    return folder / "link" / "m.onnx"


@pytest.mark.parametrize("place", ["real", "link"])
def test_weights_beside_what_a_link_leads_to_or_beside_it(tmp_path: Path, place: str) -> None:
    path = linked(tmp_path, place=place)
    artifact = read_artifact(path)
    assert artifact.path == (tmp_path / "real" / "m.onnx" if place == "real" else path)
    write_model(read_model(path), tmp_path / "alone.onnx", Precision.FP32)
    feeds = {"x": normal(2, 3, 8, 8, seed=1)}
    got = run_ort(onnx.load(tmp_path / "alone.onnx"), feeds)["y"]
    np.testing.assert_array_equal(got, run_ort(convolution(), feeds)["y"])


def test_a_link_opens_no_other_folder(tmp_path: Path) -> None:
    assert_refused(linked(tmp_path, place="other"), r"keeps 'w' in .*, outside its own folder")


def test_a_link_whose_weights_lead_out(tmp_path: Path) -> None:
    path = linked(tmp_path)
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (tmp_path / "real" / "w.bin").unlink()
    (tmp_path / "real" / "w.bin").symlink_to(tmp_path / "secret")
    assert_refused(path, "needs 'w.bin' beside it, which is missing")


def test_a_link_without_its_weights(tmp_path: Path) -> None:
    path = linked(tmp_path)
    (tmp_path / "real" / "w.bin").unlink()
    assert_refused(path, "needs 'w.bin' beside it, which is missing")

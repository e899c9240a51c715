"""A classifier that looks at more than images, from the file to the loaded bundle."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import deploykit as api
from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import UsageError
from tests import own_files
from tests.cli import Called, deploykit
from tests.graphs import normal, run_ort

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_folder")

FLOAT = onnx.TensorProto.FLOAT
BLOOD = own_files.BLOOD
HAS_RTX = find_spec("tensorrt_rtx") is not None


def blood_alone() -> onnx.ModelProto:
    """The same without the ward: everything is float32."""
    source = own_files.patients()
    del source.graph.input[2]
    del source.graph.node[5]
    source.graph.node[5].input[2] = "h"
    return source


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as archive:
        return dict(archive)


def export(source: onnx.ModelProto, folder: Path, *more: object) -> Called:
    (folder / "mine.onnx").write_bytes(source.SerializeToString())
    given = () if "--backend" in more else ("--backend", "none")
    return deploykit(
        "export", folder / "mine.onnx", "-o", folder / "bundle", "--json", *given, *more
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, values for it, and a bundle in INT8."""
    place = tmp_path_factory.mktemp("several")
    values = own_files.write_values(place / "values.npz")
    (place / "mine.onnx").write_bytes(own_files.patients().SerializeToString())
    noise = ("random", "--calib-count", 40)
    table, given = place / "table.json", ("--side-inputs", values)
    called = deploykit("calibrate", place / "mine.onnx", "--data", *noise, "-o", table, *given)
    assert called.code == 0, called.err
    backend = ("tensorrt-rtx", "--compute-capability", "8.9") if HAS_RTX else ("none",)
    int8 = ("--int8", "--calib", *noise, "--calib-table", table)
    called = export(own_files.patients(), place, *int8, *given, "--backend", *backend)
    assert called.code == 0, called.err
    return place


def feeds(count: int) -> dict[str, Any]:
    rows = np.random.default_rng(11)
    return {
        "x": normal(count, 3, 8, 8, seed=12),
        "blood": rows.normal(size=(count, BLOOD)).astype(np.float32),
        "ward": rows.integers(0, 5, count),
    }


def test_the_images_come_first_and_the_rest_is_kept(folder: Path) -> None:
    bundle = Bundle.open(folder / "bundle")
    assert [spec.name for spec in bundle.manifest.onnx.inputs] == ["x", "blood", "ward"]
    assert bundle.manifest.model["side_inputs"] == "values.npz"
    kept, given = arrays(folder / "bundle" / "side_inputs.npz"), arrays(folder / "values.npz")
    np.testing.assert_array_equal(kept["ward"], given["ward"])
    assert deploykit("check", folder / "bundle").code == 0


def test_ranges_are_of_the_values_given(folder: Path) -> None:
    table = json.loads((folder / "bundle" / "calibration.json").read_text(encoding="utf-8"))
    largest = np.abs(arrays(folder / "values.npz")["blood"]).max()
    assert 0.5 * largest < table["amax"]["blood"]["max"] <= largest * 1.0001


def test_a_loaded_bundle_answers_as_the_original(folder: Path) -> None:
    given = feeds(3)
    wanted = run_ort(own_files.patients(), given)["y"]
    with api.load(folder / "bundle", device="cpu") as model:
        model.self_test()
        got = model.run(given)
        with pytest.raises(UsageError, match=r"'blood', 'ward' beside the images, which predict"):
            model.predict([np.zeros((8, 8, 3), np.uint8)])
        with pytest.raises(UsageError, match=r"one array was given, the model takes \['blood'"):
            model.run(given["x"])
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < 0.05


def test_another_engine_and_a_table_from_the_bundle(folder: Path) -> None:
    called = deploykit(
        "calibrate", folder / "bundle", "--data", "random", "--calib-count", 40,
        "-o", folder / "again.json", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err


def test_layers_are_compared_in_every_branch(folder: Path) -> None:
    called = deploykit("validate", folder / "bundle", "--layers", "--json")
    assert called.code == 0, called.err
    names = {value["name"] for value in called.data["layers"]["values"]}
    assert {"h", "e", "r"} <= names
    other = deploykit("validate", folder / "bundle", folder / "mine.onnx", "--json")
    assert other.code == 0, other.err


def test_another_network_is_not_compared(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(blood_alone().SerializeToString())
    called = deploykit("validate", folder / "mine.onnx", tmp_path / "other.onnx")
    assert called.code == 2
    assert "mine.onnx takes ['blood', 'ward'], " in called.err
    assert "other.onnx ['blood']\nexpected two artifacts of one network" in called.err


def test_what_would_be_int8(folder: Path) -> None:
    called = deploykit(
        "inspect", folder / "mine.onnx", "--int8", "--side-inputs", folder / "values.npz", "--json"
    )
    assert called.code == 0, called.err
    shown = deploykit("inspect", folder / "mine.onnx", "--batch", 2)
    assert shown.code == 0, shown.err


def test_eval_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, 1]))
    called = deploykit("eval", folder / "bundle", "--data", tmp_path / "set.npz")
    assert called.code == 2
    assert "takes blood float32 (n, 16), ward int64 (n,) beside the images" in called.err


@pytest.mark.skipif(not HAS_RTX, reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
def test_the_engine_has_a_profile_for_all_inputs(folder: Path) -> None:
    (engine,) = Bundle.open(folder / "bundle").manifest.engines
    assert engine.profile.max_batch == 32


def test_noise_for_floats_is_said(tmp_path: Path) -> None:
    called = export(blood_alone(), tmp_path, "--fp16")
    assert called.code == 0, called.err
    note = "'blood' beside the images: standard normal values were taken"
    assert any(line.startswith(note) for line in called.data["notes"])


def test_int8_on_noise_only_where_all_is_noise(tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, images=np.zeros((4, 8, 8, 3), np.uint8))
    called = export(blood_alone(), tmp_path, "--int8", "--calib", images)
    assert called.code == 2
    assert "ranges need real values of what mine takes beside the images: blood" in called.err
    assert not (tmp_path / "bundle").exists()


def test_a_fixed_batch_is_opened_for_all_inputs(tmp_path: Path) -> None:
    values = own_files.write_values(tmp_path / "values.npz")
    called = export(own_files.patients(1), tmp_path, "--side-inputs", values)
    assert called.code == 0, called.err
    assert any(step.startswith("opening the batch") for step in called.data["conversion"]["steps"])
    given = feeds(3)
    one_by_one = [
        run_ort(own_files.patients(1), {name: value[at : at + 1] for name, value in given.items()})[
            "y"
        ]
        for at in range(3)
    ]
    with api.load(tmp_path / "bundle", device="cpu") as model:
        np.testing.assert_allclose(model.run(given), np.concatenate(one_by_one), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "input 'ward' beside the images is int64 (n,): which values it takes, nobody"),
        (("--side-inputs", "none.npz"), 1, "cannot read none.npz: FileNotFoundError"),
    ],
)
def test_values_that_are_missing(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    called = export(own_files.patients(), tmp_path, *arguments)
    assert called.code == code
    assert words in called.err
    assert not (tmp_path / "bundle").exists()


def test_an_input_that_is_the_same_for_all_images(tmp_path: Path) -> None:
    source = blood_alone()
    source.graph.input[0].CopyFrom(own_files.tensor("blood", FLOAT, (1, BLOOD)))
    called = export(source, tmp_path)
    assert called.code == 1
    assert "input 'blood' (1, 16) beside the images (n, 3, 8, 8) has no batch" in called.err


def test_an_input_with_more_open_dimensions(tmp_path: Path) -> None:
    source = blood_alone()
    source.graph.input[0].CopyFrom(own_files.tensor("blood", FLOAT, ("n", "values")))
    called = export(source, tmp_path)
    assert called.code == 1
    assert "input 'blood' (n, values) has open dimensions beside the batch" in called.err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("plain", "mine.onnx takes images alone"),
        ("definition", "--side-inputs is for an .onnx that takes more than images, not for resnet"),
        ("bundle", "a bundle keeps those of its export"),
    ],
)
def test_values_that_nobody_asked_for(
    folder: Path, tmp_path: Path, target: str, words: str
) -> None:
    (tmp_path / "mine.onnx").write_bytes(own_files.old(17).SerializeToString())
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    targets = {
        "plain": tmp_path / "mine.onnx",
        "definition": "resnet18",
        "bundle": tmp_path / "bundle",
    }
    called = deploykit(
        "calibrate", targets[target], "--data", "random", "-o", tmp_path / "table.json",
        "--side-inputs", folder / "values.npz",
    )  # fmt: skip
    assert called.code == 2, called.err
    assert words in called.err

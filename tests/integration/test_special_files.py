"""Pipes, devices and sockets in place of files: every command refuses or skips them, at once."""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from PIL import Image

import deploykit as package
from deploykit import images
from deploykit.core.errors import DataError
from tests.bundles import SIZE, write_bundle, write_classifier
from tests.cli import deploykit
from tests.special_files import SPECIAL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


def photograph(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), colour).save(path)
    return path


@pytest.mark.parametrize("kind", SPECIAL)
def test_an_image_that_is_named_is_refused(tmp_path: Path, bundle: Path, kind: str) -> None:
    odd, good = tmp_path / "odd.png", photograph(tmp_path / "good.png")
    SPECIAL[kind](odd)
    called = deploykit("predict", bundle, odd, good, "--json")
    assert called.code == 1
    assert [each["image"] for each in called.data["predictions"]] == [str(good)]
    (refused,) = called.data["unreadable"]
    assert "not a regular file" in refused["reason"]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("place", [".", "red", "red/below"])
def test_those_in_folders_are_skipped_and_counted(
    tmp_path: Path, bundle: Path, kind: str, place: str
) -> None:
    data = tmp_path / "data"
    names = ("good.png",) if place == "." else ("red/a.png", "green/b.png", "blue/c.png")
    for name in names:
        photograph(data / name)
    (data / place).mkdir(exist_ok=True)
    SPECIAL[kind](data / place / "odd.png")
    found = images.open_images(data)
    assert isinstance(found, images.FileImages)
    assert len(found) == len(names)
    assert [path.name for path in found.skipped] == ["odd.png"]
    assert len(found.digest) == 64
    assert len(images.image_files(data)) == len(names)
    called = deploykit("predict", bundle, data, "--json")
    assert called.code == 0
    assert [str(data / place / "odd.png")] == [os.path.normpath(p) for p in called.data["skipped"]]


def test_eval_of_a_folder_with_a_pipe(tmp_path: Path, bundle: Path) -> None:
    for index, name in enumerate(("red/1.png", "green/2.png", "blue/3.png")):
        photograph(tmp_path / "data" / name, ("red", "lime", "blue")[index])
    os.mkfifo(tmp_path / "data" / "red" / "0.png")
    called = deploykit("eval", bundle, "--data", tmp_path / "data", "--json")
    assert called.code == 0
    assert called.data["count"] == 3
    assert len(called.data["skipped"]) == 1


OPTIONS = {
    "a label file": ("labels.txt", ("eval", "BUNDLE", "--data", "IMAGES", "--labels-file", "ODD")),
    "classes": ("classes.txt", ("eval", "BUNDLE", "--data", "FOLDERS", "--classes", "ODD")),
    "a list": ("list.csv", ("eval", "BUNDLE", "--data", "ODD")),
    "arrays": ("arrays.npz", ("eval", "BUNDLE", "--data", "ODD")),
    "one image": ("image.png", ("validate", "BUNDLE", "GRAPH", "--data", "ODD")),
    "names": ("names.txt", ("export", "GRAPH", "--labels", "ODD", "--backend", "none")),
    "side inputs": ("side.npz", ("export", "GRAPH", "--side-inputs", "ODD", "--backend", "none")),
    "a graph": ("odd.onnx", ("export", "ODD", "--backend", "none")),
    "another graph": ("odd.onnx", ("validate", "GRAPH", "ODD")),
    "weights": ("odd.safetensors", ("export", "resnet20", "--weights", "ODD")),
    "a checkpoint": ("odd.pth", ("export", "resnet20", "--weights", "ODD")),
    "array weights": ("odd.npz", ("export", "resnet20", "--weights", "ODD")),
    "shards": ("odd.safetensors.index.json", ("export", "resnet20", "--weights", "ODD")),
    "a definition": ("odd.py", ("export", "ODD:factory")),
    "calibration": ("odd.npz", ("calibrate", "GRAPH", "--data", "ODD")),
}


@pytest.mark.parametrize("kind", ["pipe", "zeros"])
@pytest.mark.parametrize("option", OPTIONS)
def test_files_that_options_name(tmp_path: Path, bundle: Path, kind: str, option: str) -> None:
    name, arguments = OPTIONS[option]
    (tmp_path / "odd").mkdir()
    odd = tmp_path / "odd" / name
    SPECIAL[kind](odd)
    photograph(tmp_path / "images" / "1.png")
    photograph(tmp_path / "folders" / "red" / "1.png")
    named = {
        "ODD": str(odd),
        "BUNDLE": str(bundle),
        "IMAGES": str(tmp_path / "images"),
        "FOLDERS": str(tmp_path / "folders"),
        "GRAPH": str(write_classifier(tmp_path / "mine.onnx")),
    }
    called = deploykit(*(named.get(each, each.replace("ODD", str(odd))) for each in arguments))
    assert called.code in {1, 2}
    assert name in called.err or "odd" in called.err


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_of_a_hugging_face_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    os.mkfifo(folder / name)
    called = deploykit("export", folder)
    assert called.code == 2


@pytest.mark.parametrize("beside", ["labels.txt"])
def test_names_beside_a_list(tmp_path: Path, beside: str) -> None:
    photograph(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("a.png,0\n")
    os.mkfifo(tmp_path / beside)
    assert images.open_images(tmp_path / "list.csv").classes is None
    (tmp_path / "list.csv").write_text("odd.png,0\n")
    os.mkfifo(tmp_path / "odd.png")
    with pytest.raises(DataError, match=r"line 1: there is no file 'odd\.png'"):
        images.open_images(tmp_path / "list.csv")


def test_external_weights_that_are_a_pipe(tmp_path: Path) -> None:
    graph = write_classifier(tmp_path / "mine.onnx")
    proto = onnx.load(graph)
    onnx.save(
        proto, tmp_path / "other.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    (tmp_path / "w").unlink()
    os.mkfifo(tmp_path / "w")
    called = deploykit("export", tmp_path / "other.onnx", "--backend", "none")
    assert called.code == 1
    assert "other.onnx needs 'w' beside it" in called.err


# --- the pixel limit of commands


def test_commands_take_another_pixel_limit(tmp_path: Path, bundle: Path) -> None:
    data = tmp_path / "data"
    for name in ("red/1.png", "green/2.png", "blue/3.png"):
        photograph(data / name)
    graph = write_classifier(tmp_path / "mine.onnx")
    pixels = SIZE * SIZE
    calls = {
        "predict": ("predict", bundle, data),
        "eval": ("eval", bundle, "--data", data),
        "calibrate": ("calibrate", graph, "--data", data, "-o", tmp_path / "table.json"),
        "export": ("export", graph, "--backend", "none", "--data", data, "-o", tmp_path / "made"),
    }
    for name, call in calls.items():
        few = deploykit(*call, "--max-pixels", pixels - 1)
        assert few.code == 1, name
        said = " ".join((few.out + few.err).split())
        assert f"{SIZE} x {SIZE} = {pixels} pixels, the limit is {pixels - 1}" in said, name
        enough = deploykit(*call, "--max-pixels", pixels)
        assert enough.code == 0, (name, enough.err)
        assert deploykit(*call, "--max-pixels", 0).code == 2, name


def test_the_python_call_takes_another_pixel_limit(bundle: Path) -> None:
    large = np.zeros((SIZE, SIZE, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(large).save(file, "PNG")
    with package.load(bundle, device="cpu") as model:
        assert len(model.predict([file.getvalue(), large])) == 2
        with pytest.raises(DataError, match=f"^image 0: .* = {SIZE * SIZE:,} pixels"):
            model.predict([file.getvalue()], max_pixels=SIZE * SIZE - 1)
        with pytest.raises(package.DeploykitError, match="max_pixels=0 lets no image through"):
            model.predict([large], max_pixels=0)

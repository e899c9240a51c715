"""`deploykit predict`, and `deploykit.load` of a bundle that `deploykit export` made."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import deploykit
from deploykit.bundle.manifest import Bundle
from deploykit.core import environment
from deploykit.core.errors import EngineIncompatibleError
from tests import cli
from tests.bundles import write_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.digits import Digits


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "warm").mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(folder / "warm" / "a.png")
    Image.new("RGB", (8, 8), "blue").save(folder / "b.bmp")
    (folder / "notes.txt").write_text("not an image")
    return folder


# The library, on a real bundle


def test_a_real_bundle_is_as_right_as_eval_says(fp16_bundle: Path, digits: Digits) -> None:
    with np.load(digits.test) as file:
        pixels, labels = file["images"], file["labels"]
    with deploykit.load(fp16_bundle, device="cpu") as model:
        found = model.predict(list(pixels), top_k=1)
        model.self_test()
    top1 = np.mean([top[0].index == label for top, label in zip(found, labels, strict=True)])
    expected = cli.deploykit("eval", fp16_bundle, "--data", digits.test, "--json").data["top1"]
    assert top1 == pytest.approx(expected)
    assert found[0][0].label == f"digit {found[0][0].index}"


def test_the_precision_and_the_names_are_those_of_the_bundle(fp16_bundle: Path) -> None:
    with deploykit.load(fp16_bundle, device="cpu") as model:
        assert (model.name, str(model.precision)) == ("resnet20-fp16", "fp16")
        assert model.inputs[0].shape[1:] == (3, 8, 8)
        assert model.outputs[0].shape[1:] == (10,)
        assert model.manifest.packages["deploykit"] == deploykit.__version__


def test_a_real_bundle_without_a_gpu(fp16_bundle: Path) -> None:
    if environment.gpus():
        pytest.skip("there is a GPU here")
    with pytest.raises(
        EngineIncompatibleError, match=r"\(no GPU\)\ntensorrt-rtx-.*.engine: no GPU on this machine"
    ):
        deploykit.load(fp16_bundle, device="cuda")
    with deploykit.load(fp16_bundle) as model:
        assert model.device == "cpu"
        assert "tensorrt-rtx" in model.choice


# The command


def test_files_and_folders_are_answered_in_order(bundle: Path, images: Path) -> None:
    first = images / "warm" / "a.png"
    called = cli.deploykit("predict", bundle, first, images, "--top-k", 2, "--json")
    assert called.code == 0, called.err
    assert called.err == ""
    data = called.data
    keys = {"bundle", "device", "choice", "weights", "head", "predictions", "failed"}
    assert data.keys() == keys | {"unreadable", "skipped", "notes", "doubts"}
    names = [answer["image"] for answer in data["predictions"]]
    assert names == [str(first), str(images / "b.bmp"), str(first)]
    (red, second), (blue, _), again = (answer["top"] for answer in data["predictions"])
    assert red == {"index": 0, "label": "red", "probability": red["probability"], "logit": 1.0}
    assert red["probability"] > second["probability"]
    assert blue["label"] == "blue"
    assert again == [red, second]
    assert (data["device"], data["unreadable"]) == ("cpu", [])


def test_the_table_has_image_class_and_probability(bundle: Path, images: Path) -> None:
    shown = cli.deploykit("predict", bundle, images, "--top-k", 1, "--device", "cpu").out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["image", "class", "probability"]
    assert lines[1][1:] == ["blue", "57.61%"]
    assert lines[2][0].endswith("a.png")
    assert shown.splitlines()[3] == "model.onnx on onnxruntime (cpu): asked for with device='cpu'"


def test_unreadable_images_are_named_and_the_others_answered(bundle: Path, images: Path) -> None:
    (images / "cut.png").write_bytes((images / "warm" / "a.png").read_bytes()[:40])
    arguments = ("predict", bundle, images, images / "gone.jpg")
    called = cli.deploykit(*arguments, "--json")
    assert called.code == 1
    assert [answer["top"][0]["label"] for answer in called.data["predictions"]] == ["blue", "red"]
    cut, gone = called.data["unreadable"]
    assert cut["image"].endswith("cut.png")
    assert "cannot read" in cut["reason"]
    assert gone["image"].endswith("gone.jpg")
    assert "FileNotFoundError" in gone["reason"]
    called = cli.deploykit(*arguments)
    assert called.code == 1
    assert called.out.count("problem: image") == 2
    assert "Traceback" not in called.out + called.err


def test_only_unreadable_images(bundle: Path, tmp_path: Path) -> None:
    called = cli.deploykit("predict", bundle, tmp_path / "gone.jpg")
    assert called.code == 1
    assert "problem: image 0: cannot read" in called.out


def test_labels_and_names_are_shown_as_they_are(tmp_path: Path, bundle: Path) -> None:
    """rich would take square brackets for markup."""
    image = tmp_path / "[red]a.png"
    Image.new("RGB", (8, 8), "red").save(image)
    assert "[red]a.png" in cli.deploykit("predict", bundle, image).out


def test_weights_of_a_factory_may_be_trained_or_not(tmp_path: Path, images: Path) -> None:
    weights = {"source": "as nets.py:net made them", "sha256": None, "trained": None}
    bundle = write_bundle(tmp_path / "own", weights=weights)
    called = cli.deploykit("predict", bundle, images)
    assert "weights: as nets.py:net made them; trained or not is unknown" in called.out


def test_untrained_weights_are_said_to_mean_nothing(tmp_path: Path, images: Path) -> None:
    weights = {"source": "untrained, seed 0", "sha256": None, "trained": False}
    bundle = write_bundle(tmp_path / "untrained", weights=weights)
    called = cli.deploykit("predict", bundle, images)
    assert called.code == 0
    assert "weights: untrained, seed 0; the answers mean nothing" in called.out
    data = cli.deploykit("predict", bundle, images, "--json").data
    assert data["weights"] == {"source": "untrained, seed 0", "trained": False}


def test_a_class_without_a_name_is_shown_by_its_number(tmp_path: Path, images: Path) -> None:
    bundle = write_bundle(tmp_path / "nameless")
    manifest = Bundle.open(bundle).manifest
    files = {name: digest for name, digest in manifest.files.items() if name != "labels.txt"}
    write_bundle(tmp_path / "nameless", files=files)
    top = cli.deploykit("predict", bundle, images, "--json").data["predictions"][0]["top"][0]
    assert (top["index"], top["label"]) == (2, None)
    assert " 2 " in cli.deploykit("predict", bundle, images, "--top-k", 1).out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--device", "cuda"), 1, "colours-fp32 has no engine"),
        (("--device", "tpu"), 2, "unknown device 'tpu'"),
        (("--top-k", 0), 2, "--top-k"),
    ],
)
def test_a_call_that_cannot_work(
    bundle: Path, images: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    called = cli.deploykit("predict", bundle, images, *arguments)
    assert called.code == code
    assert message in called.err
    assert called.out == ""


def test_no_images_and_an_empty_folder(bundle: Path, tmp_path: Path) -> None:
    assert cli.deploykit("predict", bundle).code == 2
    (tmp_path / "empty").mkdir()
    called = cli.deploykit("predict", bundle, tmp_path / "empty")
    assert called.code == 1
    assert "no images in" in called.err


def test_what_is_no_bundle(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "b.bmp", tmp_path / "b.bmp")
    called = cli.deploykit("predict", tmp_path / "b.bmp", images)
    assert called.code == 1
    assert "is a file, neither a bundle's folder nor an engine" in called.err

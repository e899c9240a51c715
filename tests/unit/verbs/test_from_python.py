"""The functions for programs, each as a user would call it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deploykit
from deploykit.core.errors import BundleError, DataError, UsageError
from deploykit.precision.budget import conversion
from deploykit.verbs import from_python
from tests.bundles import SIZE, write_bundle, write_classifier
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Four classes, images of 8 x 8."""
    return write_classifier(tmp_path / "mine.onnx")


def export(model: Any, folder: Path, **options: Any) -> deploykit.Bundle:
    chosen = {"backend": "none", "output": folder / "bundle", "quiet": True, **options}
    return deploykit.export(model, **chosen)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_from_a_module_to_answers(tmp_path: Path) -> None:
    """With torch's own answers as the oracle."""
    module = network().train()
    bundle = export(module, tmp_path, input_size=SIZE, labels=NAMES, mean=(0, 0, 0), std=(1, 1, 1))
    assert module.training
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = module.eval()(tensor)
    with deploykit.load(bundle, device="cpu") as model:
        found = model.run(tensor.numpy())
        alone, (listed,) = model.predict(pixels, top_k=4), model.predict([pixels], top_k=4)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert alone == listed
    order = expected[0].argsort().flip(0).tolist()
    assert [one.label for one in alone] == [NAMES[index] for index in order]


def test_a_loader_calibrates(original: Path, tmp_path: Path) -> None:
    tensors = torch.from_numpy(normal(40, 3, SIZE, SIZE)).clamp(-1.5, 2)
    loader = DataLoader(TensorDataset(tensors, torch.zeros(40)), batch_size=16)
    chosen = {"precision": "int8", "calib": loader, "calib_count": 36}
    with pytest.raises(UsageError, match="prepared already, and nobody said how\ngive mean and"):
        export(original, tmp_path, **chosen)
    look = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    bundle = export(original, tmp_path, **chosen, **look)
    assert bundle.manifest.calibration is not None
    assert bundle.manifest.calibration["images"] == 36
    assert bundle.manifest.calibration["source"] == "images given by a program"


def test_a_budget_is_judged_by_the_images_that_do_not_calibrate(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "POINTS", 2)
    pixels = np.random.default_rng(3).integers(0, 256, (110, SIZE, SIZE, 3), np.uint8)
    chosen = {"precision": "auto", "max_drop": "10%", "gpu": "L4", "calib": iter(pixels)}
    bundle = export(original, tmp_path, calib_count=40, **chosen)
    record = bundle.manifest.conversion["budget"]
    assert record["max_drop"] == 0.1
    assert {point["loss"]["images"] for point in record["points"] if point["loss"]} == {70}
    # (1 - 0.001)^n falls below 5 % at n = 2995.
    with pytest.raises(DataError, match="needs 2995 images to judge it, there are 70"):
        export(original, tmp_path, calib_count=40, **{**chosen, "calib": pixels, "max_drop": 0.001})


def test_a_batch_and_sizes(original: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"batch=\(1, 2\)\nexpected one size, or the smallest"):
        export(original, tmp_path, batch=(1, 2))
    with pytest.raises(UsageError, match="height"):
        export(original, tmp_path, height=9)


def test_what_was_noticed_is_said_unless_quiet(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(original, tmp_path, quiet=False)
    assert "note: preprocessing is assumed" in capsys.readouterr().err
    export(original, tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_another_model_is_not_replaced_without_a_word(original: Path, tmp_path: Path) -> None:
    export(original, tmp_path)
    with pytest.raises(BundleError, match="this export is of another model"):
        export(network(), tmp_path, input_size=SIZE)
    bundle = export(network(), tmp_path, input_size=SIZE, replace=True)
    assert bundle.manifest.model["name"] == "sequential"


def test_the_bundle_again(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    bundle = deploykit.open_bundle(folder)
    assert repr(bundle) == f"<Bundle {str(folder)!r}: {bundle.manifest.precision}, no engine>"
    assert f"<td>{folder}</td>" in bundle._repr_html_()
    report = deploykit.validate(bundle, bundle, quiet=True)
    assert report.passed
    assert "passed</caption>" in report._repr_html_()


def test_accuracy(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    pixels = np.full((6, SIZE, SIZE, 3), 20, np.uint8)
    for index, image in enumerate(pixels):
        image[:, :, index % 3] = 200
    labels = np.array([0, 1, 2, 0, 1, 0])  # the last one is blue
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    report = deploykit.evaluate(folder, tmp_path / "images.npz", quiet=True)
    assert report.evaluation.to_dict()["top1"] == pytest.approx(5 / 6)
    assert "<td>top-1</td>" in report._repr_html_()


def test_layers_of_a_module() -> None:
    found = deploykit.inspect(network(), input_size=SIZE)
    weights, outputs = 8 * 3 * 9, SIZE * SIZE
    assert found.multiply_adds == weights * outputs + 8 * 4
    assert "<td>all</td>" in found._repr_html_()


def test_a_table_of_ranges(original: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    found = deploykit.calibrate(original, pixels, output=tmp_path / "table.json", quiet=True)
    assert found.table.images == 40
    assert (tmp_path / "table.json").is_file()


@pytest.mark.usefixtures("known_peak")
def test_a_measurement(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = deploykit.bench(
        original, batch=[1], precision="fp32", backend="ort", quick=True, quiet=True
    )
    assert [(row.model, row.batch, row.backend) for row in report.rows] == [("mine", 1, "ort")]
    assert all(path.is_file() for path in report.files)
    assert "<td>mine</td><td>fp32</td><td>ort</td>" in report._repr_html_()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "precision": ({"precision": "int9"}, "unknown precision 'int9'\ndid you mean: int8"),
    "drop": ({"max_drop": 0.01}, 'max_drop is for precision="auto"\nadd that, or leave it out'),
    "gpu": ({"gpu": "L4"}, 'gpu is for precision="auto"'),
    "no drop": ({"precision": "auto"}, 'precision="auto" needs to know what may be lost: max_drop'),
    "all": ({"precision": "auto", "max_drop": 1.5}, "a loss of at most 1.5 cannot be promised"),
    "text": ({"precision": "auto", "max_drop": "much"}, "max_drop is 'much'"),
    "size": ({"input_size": 0}, "input_size=0\nexpected height and width in pixels: one number"),
    "sizes": ({"input_size": (32, 32)}, "input_size=(32, 32)\nexpected height and width"),
    "data": ({"data": np.zeros(3)}, "a path was expected, not ndarray\narrays and iterables are"),
    "name": ({"name": "it"}, "name='it' is for a module\nresnet50 has a name"),
    "no calib": ({"precision": "int8"}, "INT8 needs images to calibrate with"),
    "one image": ({"precision": "int8", "calib": b"jpeg"}, "the images are one bytes"),
    "count": ({"precision": "int8", "calib": [], "calib_count": 1}, "calib_count is 1\nexpected 2"),
    "mean": ({"mean": (1, 2)}, "mean=(1, 2)\nexpected one number, or three: (red, green, blue)"),
    "std": ({"std": "0.5"}, "std='0.5'\nexpected one number, or three"),
    "seed": ({"seed": "x"}, "seed='x'\nexpected a whole number from 0 up"),
    "half": ({"calib_count": 2.5}, "calib_count=2.5\nexpected whole numbers from 1 up"),
    "no batch": ({"batch": 0}, "batch=0\nexpected whole numbers from 1 up"),
    "two": ({"batch": (1, 8)}, "batch=(1, 8)\nexpected one size, or the smallest, preferred"),
    "labels": ({"labels": ["cat", ""]}, "labels are names of the classes, '' is none"),
    "no labels": ({"labels": []}, "labels are names of the classes, there is none"),
    "order": ({"channel_order": "rbg"}, "unknown channel order"),
    "batch": ({"batch": (8, 4, 1)}, "batch profile 8,4,1 is not in order"),
    "device": ({"device": "cpu", "backend": "none"}, "device cpu: engines are for GPUs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_call_shows_is_said_at_once(case: str, tmp_path: Path) -> None:
    options, said = REFUSED[case]
    with pytest.raises(deploykit.DeploykitError, match=re.escape(said.split("\n")[0])) as caught:
        export("resnet50", tmp_path, **options)
    assert said in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_a_module_brings_its_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights is imagenet, and is for a TARGET\na module"):
        export(network(), tmp_path, weights="imagenet")


def test_each_function_is_a_name_of_the_package() -> None:
    for name in ("bench", "calibrate", "evaluate", "export", "inspect", "open_bundle", "validate"):
        assert getattr(deploykit, name) is getattr(from_python, name)


def test_one_number_is_for_all_channels(original: Path, tmp_path: Path) -> None:
    found = export(original, tmp_path, mean=0.5, std=0.25).manifest.preprocessing
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


def test_labels_that_fp32_gets_wrong_do_not_judge(original: Path, tmp_path: Path) -> None:
    """No image can become wrong where none is right."""
    pixels = np.random.default_rng(9).integers(0, 256, (130, SIZE, SIZE, 3), np.uint8)
    fp32 = export(original, tmp_path)
    with deploykit.load(fp32, device="cpu") as model:
        told = np.array([top.index for (top,) in model.predict(pixels[40:], top_k=1)])
    path = tmp_path / "labelled.npz"
    common = {"precision": "auto", "max_drop": "5%", "gpu": "L4", "calib_count": 40}
    for labels, measure in ((told, "top1"), ((told + 1) % 4, "answers")):
        np.savez(path, images=pixels[40:], labels=labels)
        place = tmp_path / measure
        bundle = export(original, place, **common, calib=pixels[:40], data=path)
        points = bundle.manifest.conversion["budget"]["points"]
        assert {point["loss"]["measure"] for point in points if point["loss"]} == {measure}


def test_data_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data is None\nexpected the path of labelled images"):
        deploykit.evaluate(tmp_path, None)  # type: ignore[arg-type]  # the mistake


def test_nothing_to_measure() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        deploykit.bench()


@pytest.mark.parametrize("batch", [0, [-1], "1,8", True, (1, 2.5)])
def test_a_batch_is_of_whole_images(batch: Any, tmp_path: Path) -> None:
    for call in (
        lambda: deploykit.bench("resnet18", batch=batch),
        lambda: deploykit.inspect("resnet18", batch=batch),
        lambda: deploykit.evaluate(tmp_path, tmp_path, batch=batch),
        lambda: deploykit.validate(tmp_path, batch=batch),
    ):
        with pytest.raises(UsageError, match=r"batch=.*\nexpected whole numbers from 1 up"):
            call()


def test_an_empty_list_of_batches() -> None:
    with pytest.raises(UsageError, match="batch is empty\nexpected a number of images per query"):
        deploykit.bench("resnet18", batch=())


def test_numbers_of_numpy_are_numbers(original: Path, tmp_path: Path) -> None:
    bundle = export(original, tmp_path, precision="fp16", batch=np.int64(4))
    assert bundle.manifest.precision == "fp16"


def test_a_callers_autocast_changes_nothing(tmp_path: Path) -> None:
    plain = export(network(), tmp_path / "plain", input_size=SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = export(network(), tmp_path / "cast", input_size=SIZE)
    assert cast.manifest.onnx.sha256 == plain.manifest.onnx.sha256
    assert cast.manifest.validation == plain.manifest.validation


@pytest.mark.parametrize("names", [NAMES[:3], (*NAMES, "eel")])
def test_labels_are_counted_before_the_export(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_reached(*_: object) -> None:
        raise AssertionError("the export began")

    monkeypatch.setattr("deploykit.exporting.steps.make_reference", not_reached)
    said = f"^there are {len(names)} labels, the model has 4 classes\nexpected one name for each"
    with pytest.raises(DataError, match=said):
        export(network(), tmp_path, input_size=SIZE, labels=names)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("names", [("yes",), ("no", "yes"), NAMES])
def test_a_yes_or_no_has_one_name_or_two(names: tuple[str, ...], tmp_path: Path) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    if len(names) > 2:
        with pytest.raises(DataError, match="there are 4 labels, the model says yes or no"):
            export(module, tmp_path, input_size=SIZE, labels=names)
        return
    bundle = export(module, tmp_path, input_size=SIZE, labels=names)
    assert (bundle.folder / "labels.txt").read_text(encoding="utf-8").split() == list(names)


def test_a_name_stays_in_its_folder(tmp_path: Path) -> None:
    said = r"^name='\.\./up' is no name of a folder\n.* for another place: output=FOLDER"
    with pytest.raises(UsageError, match=said):
        export(network(), tmp_path, name="../up")


def test_notes_name_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    export(module, tmp_path, quiet=False)
    said = capsys.readouterr().err
    assert "an input of 224x224 is assumed; another: input_size=PX" in said
    assert "resize interpolation mean std channel_order" in said


def test_a_target_is_looked_for_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown architecture 'resnet5'"):
        deploykit.inspect("resnet5")
    with pytest.raises(DataError, match=r"no images at .*: it does not exist"):
        deploykit.calibrate("resnet18", tmp_path / "none")


def test_other_choices_of_an_evaluation(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    pixels = np.full((4, SIZE, SIZE, 3), 20, np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.array([0, 1, 2, 0]))
    report = deploykit.evaluate(
        folder, tmp_path / "images.npz", reference=folder, fast=True, quiet=True
    )
    assert report.evaluation.to_dict()["agreement"] == 1
    assert deploykit.validate(folder, folder, batch=3, fast=True, quiet=True).passed

"""`inspect --precision`, `--fp16` and `--int8` as a user calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.bundle.manifest import Bundle
from tests.bundles import write_bundle, write_classifier
from tests.cli import deploykit
from tests.graphs import save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "classifier.onnx")


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the calibration table is written beside it
        called = deploykit(
            "export", write_classifier(folder / "classifier.onnx"), "--int8", "--calib", "random",
            "--calib-count", 8, "--backend", "none", "-o", folder / "bundle",
        )  # fmt: skip
    assert called.code == 0, called.err
    return folder / "bundle"


def test_the_plan_of_a_file(classifier: Path) -> None:
    data = deploykit("inspect", classifier, "--int8", "--json").data
    plain = deploykit("inspect", classifier, "--json").data
    assert {key: data[key] for key in plain} == plain
    assert plain["input_range"]["images"] == 8
    assert plain["input_range"]["min"] < -1 < 1 < plain["input_range"]["max"]
    found = data["precision"]
    assert (found["precision"], found["planned"]) == ("int8", True)
    assert found["heavy_nodes"] == {"int8": 1, "fp8": 0, "fp16": 1, "bf16": 0, "fp32": 0}
    assert found["share"]["int8"] == pytest.approx(1 - 64 / plain["multiply_adds"])
    kinds = {node["op_type"]: node["precision"] for node in found["nodes"]}
    assert (kinds["Conv"], kinds["Gemm"]) == ("int8", "fp16")
    assert found["magnitudes"]["images"] == 8
    assert found["magnitudes"]["limit"] == 65504 / 4


def test_an_export_has_what_was_planned_for_its_fp32_graph(int8_bundle: Path) -> None:
    there = deploykit("inspect", int8_bundle, "--precision", "--json").data["precision"]
    kept = Bundle.open(int8_bundle).folder / "reference.onnx"
    planned = deploykit("inspect", kept, "--int8", "--json").data["precision"]
    assert there["planned"] is False
    for key in ("multiply_adds", "share", "casts", "qdq_pairs", "int8_weights"):
        assert there[key] == planned[key]
    reasons = [[node["reason"] for node in found["nodes"]] for found in (there, planned)]
    assert reasons[0] == reasons[1]
    assert "its weight (4, 16) is too small to gain from INT8" in reasons[0]


def test_precision_alone_plans_what_is_fp32(tmp_path: Path, classifier: Path) -> None:
    shown = deploykit("inspect", classifier, "--precision").out
    assert "planned: what an export in INT8 would make of it" in shown
    assert "note: it is FP32: this is what --int8 shows; for FP16: --fp16" in shown
    assert "magnitudes are of 8 photographs that come with deploykit" in shown
    bundle = write_bundle(tmp_path / "bundle")
    shown = deploykit("inspect", bundle, "--fp16").out
    assert "planned: what an export in FP16 would make of it" in shown
    assert f"deploykit export {bundle}/model.onnx --fp16" in " ".join(shown.split())


def test_values_out_of_range_stay_fp32_and_a_bundle_says_why(
    classifier: Path, tmp_path: Path
) -> None:
    model = onnx.load(classifier)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    values = onnx.numpy_helper.to_array(weight) * np.float32(1e5)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    large = save(model, tmp_path / "large.onnx")
    shown = deploykit("inspect", large, "--fp16").out
    assert "look here first: heaviest that are not FP16" in shown
    assert " reaches " in shown
    bundle = tmp_path / "bundle"
    called = deploykit("export", large, "--fp16", "--backend", "none", "-o", bundle)
    assert called.code == 0, called.err
    there = deploykit("inspect", bundle, "--precision", "--json").data["precision"]
    (conv,) = (node for node in there["nodes"] if node["op_type"] == "Conv")
    assert conv["precision"] == "fp32"
    assert conv["reason"] == Bundle.open(bundle).manifest.conversion["kept_fp32"][conv["name"]]


def test_untrained_weights_are_said_to_be(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", weights={"source": "seed 0", "trained": False})
    shown = deploykit("inspect", bundle, "--int8").out
    assert "the weights are untrained: trained ones may keep other nodes in FP32" in shown
    assert "nothing of it can be INT8: an export with --int8 refuses it" in shown
    assert f"what FP16 would be: deploykit inspect {bundle}/model.onnx --fp16" in shown
    assert "deploykit export" not in shown


NETWORK = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
"""


def test_a_definition_is_exported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deploykit.sources.torch_export.EXPORTERS", ("torchscript",)
    )  # takes a second
    (tmp_path / "nets.py").write_text(NETWORK, encoding="utf-8")
    target = f"{tmp_path}/nets.py:small"
    shown = deploykit("inspect", target, "--input-size", 8, "--int8", "--exclude", "0/*")
    assert shown.code == 0, shown.err
    assert "of 17.9 k multiply-adds" in shown.out
    assert "excluded by '0/*'" in shown.out
    assert "its weight (4, 576) is too small to gain from INT8" in shown.out
    assert "preprocessing is assumed" in shown.out


def test_an_open_size_must_be_said(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "open.onnx", "h, w")
    called = deploykit("inspect", path, "--precision")
    assert called.code == 2
    assert f"{path} takes images whose height and width may be anything" in called.err
    assert "--height 224 --width 224, for example, or --input-size 224" in called.err
    sizes = {(16, 16): ("--input-size", 16), (16, 24): ("--height", 16, "--width", "8,24,32")}
    for (height, width), options in sizes.items():
        for more in ((), ("--precision",), ("--fp16",)):
            data = deploykit("inspect", path, *more, *options, "--json").data
            assert data["multiply_adds"] == height * width * 16 * 27 + 64
            if more:
                found = data["precision"]["multiply_adds"].values()
                assert sum(found) == data["multiply_adds"]
    # An estimate knows the size by its name too.
    call = ("estimate", path, "--gpu", "L4", "--fp16", "--json")
    by_one = deploykit(*call, "--input-size", 16).data["rows"]
    assert deploykit(*call, "--height", 16, "--width", 16).data["rows"] == by_one


def test_sizes_of_what_has_none_to_say(tmp_path: Path, classifier: Path) -> None:
    path, size = write_classifier(tmp_path / "open.onnx", "h, w"), ("--height", 16, "--width", 16)
    for arguments, message in (
        ((path, "--height", 16), "--height is given without --width\ngive both, as 224 and 224"),
        ((path, *size, "--input-size", 16), "--input-size and --height with --width say the same"),
        ((classifier, *size), "leave out what is for definitions only: --height and --width"),
        (("resnet20", *size), "leave them out for resnet20; its size: --input-size PX"),
    ):
        for verb in (("inspect",), ("estimate", "--gpu", "L4")):
            called = deploykit(verb[0], *arguments, *verb[1:])
            assert (called.code, called.out) == (2, "")
            assert message in called.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--int8", "--fp16"), "--fp16 and --int8 exclude each other"),
        (
            ("--fp16", "--exclude", "conv*"),
            "--exclude keeps nodes out of INT8 and FP8: leave out --fp16",
        ),
        (("--all",), "--all changes nothing in the table of layers"),
        (("--weights", "w.npz"), "--weights changes nothing in the table of layers"),
        (("--side-inputs", "v.npz"), "--side-inputs changes nothing in the table of layers"),
        (("--int8", "--weights", "w.npz"), "brings its own weights, classes and size"),
        (("--precision", "--input-size", 32), "brings its own weights, classes and size"),
    ],
)
def test_options_without_a_meaning(
    classifier: Path, arguments: tuple[object, ...], message: str
) -> None:
    called = deploykit("inspect", classifier, *arguments)
    assert called.code == 2
    assert message in called.err


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (("--int8",), "--int8"),
        (("--fp16",), "--fp16"),
        (("--precision", "--exclude", "a"), "--exclude"),
    ],
)
def test_a_converted_bundle_has_no_plan(
    int8_bundle: Path, asked: tuple[str, ...], named: str
) -> None:
    called = deploykit("inspect", int8_bundle, *asked)
    assert called.code == 2
    assert f"{int8_bundle} is int8 already, and {named} is for a plan" in called.err
    assert f"deploykit inspect {int8_bundle}/reference.onnx --" in called.err
    assert f"what it has: deploykit inspect {int8_bundle} --precision" in called.err


def test_a_converted_file_has_no_plan(int8_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()  # an empty folder is refused before
    called = deploykit("inspect", int8_bundle / "model.onnx", "--precision", "--data", tmp_path)
    assert called.code == 2
    assert "is int8 already, and --data is for a plan of what is FP32" in called.err
    assert "reference.onnx" not in called.err


def test_a_changed_bundle_is_not_looked_at(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b"\n")
    called = deploykit("inspect", bundle, "--precision")
    assert called.code == 1
    assert "model.onnx" in called.err

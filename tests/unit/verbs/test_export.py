"""The rules of a call of `export`, of one target and of several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deploykit.backends import CompileOptions
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import DeploykitError, UsageError
from deploykit.core.precision import Precision
from deploykit.verbs.export import (
    ExportCall,
    PrecisionWish,
    QuantizingWish,
    calls_of,
    default_bundle,
    require_export,
)
from tests.bundles import write_bundle, write_classifier

FP16 = PrecisionWish((Precision.FP16,))


def call(**changes: Any) -> ExportCall:
    chosen = {"target": "", "precision": FP16, "compiling": CompileOptions(), **changes}
    return ExportCall(**chosen)


def test_one_target_keeps_its_options(tmp_path: Path) -> None:
    asked = call(labels=tmp_path, output=tmp_path / "here", weights="mine.pth")
    (found,) = calls_of(["resnet18"], asked)
    assert (found.target, found.output) == ("resnet18", tmp_path / "here")
    assert found.labels == tmp_path


def test_several_targets_lie_in_one_folder() -> None:
    targets = ["resnet18", "torchvision:swin_t", "nets/mine.py:small", "nets/mine.onnx"]
    found = calls_of(targets, call(output=Path("out"), weights="imagenet"))
    names = "resnet18", "torchvision-swin_t", "mine-small", "mine"
    assert [each.output for each in found] == [Path("out") / f"{name}-fp16" for name in names]
    assert [each.target for each in found] == targets
    (first, _) = calls_of(["a.onnx", "b.onnx"], call(precision=PrecisionWish(name="int8")))
    assert first.output == Path("engines/a-int8")


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (PrecisionWish(), "a-fp32"),
        (PrecisionWish((Precision.BF16,)), "a-bf16"),
        (PrecisionWish(name="auto", max_drop="1%"), "a-auto"),
    ],
)
def test_the_default_name_has_the_precision(wish: PrecisionWish, name: str) -> None:
    assert default_bundle("x/a.onnx", wish) == Path("engines") / name


FOR_ONE: dict[str, dict[str, Any]] = {
    "--weights mine.pth": {"weights": "mine.pth"},
    "--labels": {"labels": Path("names.txt")},
    "--num-classes": {"choices": DefinitionChoices(num_classes=10)},
    "--factory-args": {"choices": DefinitionChoices(arguments={"depth": 18})},
    "--head-output": {"choices": DefinitionChoices(head_output="1")},
    "--side-inputs": {"choices": DefinitionChoices(side_inputs=Path("side.npz"))},
    "--calib-table": {"calib_table": Path("table.json")},
}


@pytest.mark.parametrize("option", FOR_ONE)
def test_options_of_one_network_are_refused_for_several(option: str) -> None:
    said = f"^{option} is for one network, there are 2\nexport each alone, or name it for each"
    with pytest.raises(UsageError, match=said):
        calls_of(["resnet18", "resnet50"], call(**FOR_ONE[option]))


def test_two_bundles_of_one_name_are_refused() -> None:
    said = r"^a\.onnx and old/a\.onnx would both be the bundle engines/a-fp16\nexport one of them"
    with pytest.raises(UsageError, match=said):
        calls_of(["a.onnx", "old/a.onnx"], call())


def test_a_bundle_is_no_parent(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colours")
    with pytest.raises(
        UsageError, match="is a bundle, and with 2 targets -o is the folder for all"
    ):
        calls_of(["a.onnx", "b.onnx"], call(output=folder))


REFUSED: dict[str, tuple[PrecisionWish, str]] = {
    "two": (
        PrecisionWish((Precision.FP16, Precision.INT8)),
        "--fp16 and --int8 exclude each other: run export once for each",
    ),
    "by name": (PrecisionWish((Precision.FP16,), "bf16"), "--fp16 and --precision bf16 exclude"),
    "auto too": (
        PrecisionWish((Precision.FP16,), "auto", "1%"),
        "--fp16 and --precision auto exclude",
    ),
    "unknown": (PrecisionWish(name="fp17"), "unknown precision 'fp17'"),
    "no drop": (PrecisionWish(name="auto"), "needs to know what may be lost: --max-drop 1%"),
    "drop": (PrecisionWish(name="int8", max_drop="1%"), "--max-drop is for --precision auto"),
    "gpu": (PrecisionWish(gpu="L4"), "--gpu is for --precision auto\nadd that, or leave it out"),
    "share": (PrecisionWish(name="auto", max_drop="much"), "--max-drop is 'much'"),
    "which": (PrecisionWish(name="auto", max_drop="1%", gpu="L44"), "unknown GPU 'L44'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_precision_that_cannot_be(case: str) -> None:
    wish, said = REFUSED[case]
    with pytest.raises(DeploykitError, match=re.escape(said)):
        require_export(call(target="resnet18", precision=wish))


def test_calibration_goes_with_eight_bits(tmp_path: Path) -> None:
    target = str(write_classifier(tmp_path / "a.onnx"))
    with pytest.raises(UsageError, match="--calib is for --int8 and --fp8 only, not for fp16"):
        require_export(call(target=target, calib="random"))
    auto = PrecisionWish(name="auto", max_drop="1%")
    with pytest.raises(
        UsageError, match="auto measures the loss of each format on images: --calib"
    ):
        require_export(call(target=target, precision=auto))
    with pytest.raises(UsageError, match="INT8 needs images to calibrate with: --calib PATH"):
        require_export(call(target=target, precision=PrecisionWish(name="int8")))


@pytest.mark.parametrize("name", ["a/b", "", "..", ".hidden", "a b", "a\nb", "-o"])
def test_a_name_is_one_of_a_folder(name: str) -> None:
    said = re.escape(f"name={name!r} is no name of a folder\nexpected letters, digits, dots")
    with pytest.raises(UsageError, match=f"^{said}"):
        require_export(call(target=object(), name=name))


@pytest.mark.parametrize("name", ["resnet50-mine", "v1.2_b", "Ünder"])
def test_plain_names_are_taken(name: str) -> None:
    require_export(call(target=object(), name=name))


def test_one_image_is_held_out_and_one_calibrates() -> None:
    with pytest.raises(UsageError, match=r"^--calib-count is 1\nexpected 2 or more"):
        require_export(call(target="resnet18", calib_count=1))


@pytest.mark.parametrize(
    ("wish", "option"),
    [
        ({"quantizing": QuantizingWish(rest="bf16")}, "--rest"),
        ({"quantizing": QuantizingWish(method="max")}, "--method"),
        ({"quantizing": QuantizingWish(exclude=("fc*",))}, "--exclude"),
        ({"calib_table": Path("table.json")}, "--calib-table"),
    ],
)
def test_an_option_of_int8_without_int8(wish: Any, option: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^{option} is for --int8 and --fp8 only, not for fp16\nleave it out"
    ):
        require_export(call(target="resnet18", **wish))

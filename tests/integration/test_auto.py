"""`deploykit export --precision auto`, on a network that was really trained."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.graph.card import card_in
from deploykit.precision.budget import conversion
from tests.cli import Called, deploykit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.digits import Digits

JUDGES = 300
"""Of the 597 test images; the others are not used for any choice."""

BATCH = "1,4096,4096"
"""Images so small take a GPU no time but for the starts of kernels, which INT8 does not shorten."""

BITS = {"int8": 8, "fp8": 8, "fp16": 16, "fp32": 32}


@pytest.fixture(scope="session")
def halves(digits: Digits, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with ``judges.npz`` and ``others.npz``, both of the test images."""

    def make(folder: Path) -> None:
        folder.mkdir()
        with np.load(digits.test) as test:
            images, labels = test["images"], test["labels"]
        np.savez(folder / "judges.npz", images=images[:JUDGES], labels=labels[:JUDGES])
        np.savez(folder / "others.npz", images=images[JUDGES:], labels=labels[JUDGES:])

    return made_once("digits-halves", make)


def export(original: Path, digits: Digits, drop: str, *more: object) -> Called:
    called = deploykit(
        "export", original, "--precision", "auto", "--max-drop", drop, "--calib",
        digits.calibration, "--backend", "none", "--json", *more,
    )  # fmt: skip
    assert called.code == 0, called.err
    return called


@pytest.fixture(scope="session")
def loose(
    fp16_bundle: Path,
    digits: Digits,
    halves: Path,
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> Path:
    """A folder with a ``bundle`` that may lose 3 %, and its ``answer.json``. Read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conversion, "POINTS", 4)  # each is judged
            patch.chdir(folder)
            called = export(
                fp16_bundle / "reference.onnx", digits, "3%", "--gpu", "L4", "--data",
                halves / "judges.npz", "--calib-count", 80, "--batch", BATCH, "-o", "bundle",
            )  # fmt: skip
        (folder / "answer.json").write_text(called.out, encoding="utf-8")
        (folder / "said.txt").write_text(called.err, encoding="utf-8")

    return made_once("digits-auto", make)


def answer(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return found


def bits(record: dict[str, Any]) -> float:
    """Mean width of a group's operands in the chosen point."""
    formats = record["points"][record["chosen"]]["formats"]
    return sum(BITS[each] for each in formats) / len(formats)


def test_the_budget_holds_on_images_that_no_choice_saw(
    loose: Path, fp16_bundle: Path, halves: Path
) -> None:
    found = deploykit(
        "eval", loose / "bundle", "--data", halves / "others.npz", "--compare",
        fp16_bundle / "reference.onnx", "--json",
    ).data  # fmt: skip
    drop = found["comparison"]["only_other_right"] - found["comparison"]["only_this_right"]
    assert drop / found["count"] <= 0.03


def test_the_graph_is_of_the_precisions_that_the_manifest_says(loose: Path) -> None:
    manifest = Bundle.open(loose / "bundle").manifest
    record = manifest.conversion["budget"]
    point = record["points"][record["chosen"]]
    assert str(manifest.precision) == point["precision"] == "int8"
    assert manifest.name.endswith("-auto")
    model = onnx.load(loose / "bundle" / "model.onnx")
    heavy = {node.name for node in model.graph.node if node.op_type in {"Conv", "Gemm"}}
    made = {output: node for node in model.graph.node for output in node.output}
    narrow = {
        node.name
        for node in model.graph.node
        if node.name in heavy and _is_quantized(made, node.input[1])
    }
    chosen = {
        name: wanted
        for group, wanted in zip(record["groups"], point["formats"], strict=True)
        for name in group
    }
    assert chosen.keys() == heavy
    assert narrow == {name for name, wanted in chosen.items() if wanted == "int8"}
    assert manifest.conversion["layers"]["int8"] == len(narrow) >= 15


def _is_quantized(made: dict[str, Any], value: str) -> bool:
    while value in made and made[value].op_type == "Cast":
        value = made[value].input[0]
    return value in made and made[value].op_type == "DequantizeLinear"


def test_the_frontier_goes_from_fp32_to_the_fastest(loose: Path) -> None:
    record = answer(loose)["conversion"]["budget"]
    points = record["points"]
    assert 3 <= len(points) <= 4
    assert set(points[0]["formats"]) == {"fp32"}
    assert points[0]["upper"] == 0
    times = [point["ms"] for point in points]
    assert times == sorted(times, reverse=True)
    assert all(point["loss"]["images"] == JUDGES for point in points[1:])
    same = [point["upper"] for point in points[1:] if not point["loss"]["gained"]]
    assert all(upper >= 0.0099 for upper in same)  # 300 images show no less
    assert points[record["chosen"]]["upper"] <= 0.03
    assert record["gpu"] == "L4"


def test_what_the_images_can_show_is_said_first(loose: Path) -> None:
    said = (loose / "said.txt").read_text(encoding="utf-8")
    assert said.startswith("the loss is judged on 300 images: no changed answer among them still")
    assert "0.99% possible" in said


@pytest.fixture
def copied(loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the export with a loose budget left, in a current folder of its own."""
    folder = shutil.copytree(loose, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


def test_a_tight_budget_is_of_a_higher_precision_without_measuring_again(
    copied: Path, loose: Path, fp16_bundle: Path, digits: Digits, halves: Path
) -> None:
    manifest = copied / "bundle" / "manifest.json"
    bound = _let_the_fastest_lose(manifest)
    given = (
        fp16_bundle / "reference.onnx", digits, f"{bound / 2}", "--gpu", "L4", "--data",
        halves / "judges.npz", "--calib-count", 80, "--batch", BATCH, "-o", "bundle",
    )  # fmt: skip
    called = export(*given)
    record = called.data["conversion"]["budget"]
    assert any("are used again" in note for note in called.data["notes"])
    assert not any(stage["name"] == "judge" for stage in called.data["stages"])
    before = answer(loose)["conversion"]["budget"]
    assert record["chosen"] < before["chosen"]
    assert bits(record) > bits(before)
    made = record["points"][record["chosen"]]
    assert made["sha256"] == card_in(copied / "bundle" / "model.onnx").graph_sha256


def _let_the_fastest_lose(path: Path) -> float:
    """Put a loss of 20 images into the record of the chosen point; returns its new bound."""
    from dataclasses import replace

    from deploykit.bundle.manifest import manifest_text, read_manifest
    from deploykit.precision.budget.frontier import read_frontier

    manifest = read_manifest(path.read_text(encoding="utf-8"), path.parent)
    found = read_frontier(manifest.conversion["budget"])
    assert found is not None
    point = found.point
    assert point.loss is not None
    lost = replace(point, loss=replace(point.loss, lost=20.0))
    points = (*found.points[: found.chosen], lost, *found.points[found.chosen + 1 :])
    changed = replace(found, points=points)
    conversion = {**manifest.conversion, "budget": changed.to_dict()}
    path.write_text(manifest_text(replace(manifest, conversion=conversion)), encoding="utf-8")
    return lost.upper


def test_with_other_ranges_all_is_measured_anew(
    copied: Path,
    fp16_bundle: Path,
    digits: Digits,
    halves: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "POINTS", 2)
    called = export(
        fp16_bundle / "reference.onnx", digits, "1.001%", "--calib-count", 64, "--data",
        halves / "judges.npz", "-o", "bundle",
    )  # fmt: skip
    assert any(stage["name"] == "judge" for stage in called.data["stages"])
    assert any("times are predicted for A10" in note for note in called.data["notes"])
    assert any(note == "no FP8: compute capability 8.6 has none" for note in called.data["notes"])


CALLS: list[tuple[tuple[object, ...], str]] = [
    (("--precision", "auto"), "needs to know what may be lost: --max-drop 1%"),
    (("--precision", "auto", "--int8", "--max-drop", "1%"), "--int8 and --precision auto exclude"),
    (("--max-drop", "1%", "--fp16"), "--max-drop is for --precision auto"),
    (("--gpu", "L4"), "--gpu is for --precision auto"),
    (("--precision", "auto", "--max-drop", "much"), "expected a share above 0% and below 100%"),
    (("--precision", "auto", "--max-drop", "1%", "--gpu", "L5"), "unknown GPU 'L5'"),
    (("--precision", "auto", "--max-drop", "1%"), "measures the loss of each format on images"),
]


@pytest.mark.parametrize(("options", "said"), CALLS)
def test_what_cannot_be_is_refused_at_once(
    options: tuple[object, ...], said: str, fp16_bundle: Path, tmp_path: Path
) -> None:
    called = deploykit(
        "export", fp16_bundle / "reference.onnx", *options, "-o", tmp_path / "bundle"
    )
    assert called.code == 2
    assert said in called.err
    assert not (tmp_path / "bundle").exists()


def test_too_few_images_are_refused_before_the_work(
    fp16_bundle: Path, digits: Digits, tmp_path: Path
) -> None:
    called = deploykit(
        "export", fp16_bundle / "reference.onnx", "--precision", "auto", "--max-drop", "1%",
        "--calib", digits.calibration, "--calib-count", 100, "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert called.code == 1
    assert "needs 299 images to judge it, there are 156 of --calib beside the 100" in called.err
    assert "give 143 more" in called.err


def test_the_table_shows_the_frontier(loose: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from deploykit.cli._show import show_frontier

    out = Console(file=StringIO(), width=100)
    show_frontier(out, answer(loose)["conversion"]["budget"])
    text = out.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    assert "frontier on L4, batch 4096, budget 3.00%" in text
    assert "drop of top-1" in text
    assert text.count("chosen") == 1
    assert "another --max-drop" in text

"""`deploykit eval` on small trees in ImageNet's layouts, with a model whose answers are known.

The model's logits are the mean of each colour, so an image of pure red is of class 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.heads._accuracy import wilson_interval
from tests.bundles import PLAIN, SIZE, write_bundle, write_classifier
from tests.cli import Called, deploykit
from tests.graphs import graph, save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SYNSETS = ("n01440764", "n01443537", "n01484850")
MAPPING = "n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 great white shark\n"
SHOWN = {"red": (230, 20, 10), "green": (10, 220, 30), "blue": (15, 25, 240)}

TRUTH = [
    *(("red", 0),) * 8, *(("green", 0),) * 2,
    *(("green", 1),) * 9, *(("blue", 1),) * 1,
    *(("blue", 2),) * 4, *(("red", 2),) * 6,
]  # fmt: skip
"""What each image shows, and its label: the model is right with 8, 9 and 4 of 10."""

SWAPPED = """swapped (float[N, 3, 8, 8] input) => (float[N, 3] logits) {
mean = GlobalAveragePool(input)  colours = Flatten(mean)
logits = Gather <axis = 1> (colours, order)
}"""


def paint(file: Path, colour: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), SHOWN[colour]).save(file, "JPEG")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for at, (colour, label) in enumerate(TRUTH):
        paint(tmp_path / "train" / SYNSETS[label] / f"{SYNSETS[label]}_{at}.JPEG", colour)
    return tmp_path / "train"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for at, (colour, _) in enumerate(TRUTH, 1):
        paint(tmp_path / "val" / f"ILSVRC2012_val_{at:08}.JPEG", colour)
    return tmp_path / "val"


def solution(folder: Path) -> Path:
    """As Kaggle's: in no order, without suffixes, with boxes after the synset."""
    rows = [
        f"ILSVRC2012_val_{at:08},{SYNSETS[label]} 1 2 3 4 "
        for at, (_, label) in enumerate(TRUTH, 1)
    ]
    text = "\n".join(["ImageId,PredictionString", *sorted(rows, key=lambda row: row[::-1])])
    (folder / "LOC_val_solution.csv").write_text(text, encoding="utf-8")
    return folder / "LOC_val_solution.csv"


def swapped(path: Path, order: Sequence[int]) -> Path:
    return save(graph(SWAPPED, {"order": np.array(order, np.int64)}), path)


def assert_known(found: dict[str, Any]) -> None:
    assert found["count"] == 30
    assert found["top1"] == 21 / 30
    assert found["top1_interval"] == list(wilson_interval(21, 30))
    assert (found["top5"], found["top5_interval"]) == (None, None)
    assert found["agreement"] == 1.0


def assert_refused(called: Called, code: int, *messages: str) -> None:
    assert called.code == code
    assert called.out == ""
    assert all(message in called.err for message in messages), called.err


def test_a_folder_per_synset(bundle: Path, folders: Path) -> None:
    assert_known(deploykit("eval", bundle, "--data", folders, "--json").data)


def test_a_flat_folder_with_kaggles_solution(bundle: Path, flat: Path) -> None:
    file = solution(flat.parent)
    assert_known(deploykit("eval", bundle, "--data", flat, "--labels-file", file, "--json").data)


def test_a_flat_folder_with_a_number_per_line(bundle: Path, flat: Path, tmp_path: Path) -> None:
    file = tmp_path / "val.txt"
    file.write_text("\n".join(str(label) for _, label in TRUTH), encoding="utf-8")
    assert_known(deploykit("eval", bundle, "--data", flat, "--labels-file", file, "--json").data)


def test_a_part_of_the_synsets(bundle: Path, tmp_path: Path) -> None:
    paint(tmp_path / "part" / SYNSETS[1] / "a.JPEG", "green")
    paint(tmp_path / "part" / SYNSETS[2] / "b.JPEG", "blue")
    called = ("eval", bundle, "--data", tmp_path / "part", "--json")
    refused = deploykit(*called)
    assert refused.code == 1
    assert "has 2 class folders, the model has 3 classes" in refused.data["error"]["message"]
    assert "give --classes FILE" in refused.data["error"]["message"]
    (tmp_path / "list.txt").write_text(MAPPING, encoding="utf-8")
    assert deploykit(*called, "--classes", tmp_path / "list.txt").data["top1"] == 1.0
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING, encoding="utf-8")
    assert deploykit(*called).data["top1"] == 1.0


def test_tables_by_class(bundle: Path, folders: Path) -> None:
    asked = ("eval", bundle, "--data", folders, "--per-class", "--confusion", 2)
    found = deploykit(*asked, "--json").data
    rows = [(row["class"], row["name"], row["right"], row["count"]) for row in found["per_class"]]
    assert rows == [(2, "blue", 4, 10), (0, "red", 8, 10), (1, "green", 9, 10)]
    assert found["per_class"][0]["top1"] == 0.4
    assert found["per_class"][0]["top1_interval"] == list(wilson_interval(4, 10))
    assert found["confusions"] == [
        {"class": 2, "name": "blue", "predicted": 0, "predicted_name": "red", "count": 6},
        {"class": 0, "name": "red", "predicted": 1, "predicted_name": "green", "count": 2},
    ]
    shown = [line.split() for line in deploykit(*asked).out.splitlines()]
    assert ["class", "name", "images", "right", "top-1"] in shown
    first = "2 blue 10 4 40.00% (95 % interval 16.82% to 68.73%)"
    assert [" ".join(line) for line in shown if line[:2] == ["2", "blue"]] == [first]
    assert ["6", "2", "blue", "0", "red"] in shown
    assert ["2", "0", "red", "1", "green"] in shown
    assert ["1", "1", "green", "2", "blue"] not in shown


def test_tables_are_given_only_when_asked(bundle: Path, folders: Path) -> None:
    assert (
        not {"per_class", "confusions"}
        & deploykit("eval", bundle, "--data", folders, "--json").data.keys()
    )


def test_tables_of_a_model_that_is_always_right(bundle: Path, tmp_path: Path) -> None:
    for synset, colour in zip(SYNSETS, SHOWN, strict=True):
        paint(tmp_path / "right" / synset / "a.JPEG", colour)
    called = deploykit("eval", bundle, "--data", tmp_path / "right", "--confusion", 3)
    assert "no image was taken for another class" in called.out


def test_comparison_with_an_onnx_that_is_worse(bundle: Path, folders: Path, tmp_path: Path) -> None:
    """The other takes blue for red and red for blue: right with the 9 green and the 6 red ones."""
    other = swapped(tmp_path / "swapped.onnx", (2, 1, 0))
    asked = ("eval", bundle, "--data", folders, "--compare", other)
    found = deploykit(*asked, "--json").data
    compared = found["comparison"]
    counts = ("both_right", "only_this_right", "only_other_right", "both_wrong")
    # Green images: 9 right with both, 2 with none; blue of class 1: none; the rest swaps.
    assert [compared[key] for key in counts] == [9, 12, 6, 3]
    assert compared["other"]["top1"] == 15 / 30
    assert compared["p_value"] == pytest.approx(0.2379, abs=1e-4)
    assert compared["better"] is None
    assert found["agreement"] == 11 / 30
    shown = deploykit(*asked).out
    assert "36.67% of the images have the other's top-1" in shown
    words = " ".join(shown.split())
    assert (
        f"nothing speaks for a difference in top-1: 12 images are right with {bundle} only, 6 with "
        f"{other} only (McNemar's exact test, p = 0.24)" in words
    )


@pytest.mark.parametrize("turned", [False, True])
def test_the_sentence_names_the_better_one(
    bundle: Path, folders: Path, tmp_path: Path, *, turned: bool
) -> None:
    """The other, a bundle with a preprocessing of its own, sees no red: 8 images of class 0."""
    blind = write_bundle(tmp_path / "blind", preprocessing=replace(PLAIN, mean=(1.0, 0.0, 0.0)))
    this, other = (blind, bundle) if turned else (bundle, blind)
    asked = ("eval", this, "--data", folders, "--compare", other)
    compared = deploykit(*asked, "--json").data["comparison"]
    assert compared["better"] == ("other" if turned else "this")
    # What is red is green to it, so that the 6 red ones of class 2 are wrong with both.
    only = (compared["only_this_right"], compared["only_other_right"])
    assert only == ((0, 8) if turned else (8, 0))
    assert compared["p_value"] == 2 / 2**8
    words = " ".join(deploykit(*asked).out.split())
    assert (
        f"{bundle} is better than {blind} in top-1: 8 images are right with {bundle} only, 0 with "
        f"{blind} only (McNemar's exact test, p = 0.0078)" in words
    )


def test_reference_and_compare_are_one_question(bundle: Path, folders: Path) -> None:
    both = ("--reference", bundle, "--compare", bundle)
    called = deploykit("eval", bundle, "--data", folders, *both)
    assert_refused(called, 2, "--reference and --compare are two models", "give one of them")


def test_an_onnx_that_cannot_be_fed(bundle: Path, folders: Path, tmp_path: Path) -> None:
    text = "g (float[N, 3, 16, 8] input) => (float[N, 3] logits) { m = GlobalAveragePool(input) "
    other = save(graph(text + " logits = Flatten(m) }"), tmp_path / "large.onnx")
    called = deploykit("eval", bundle, "--data", folders, "--compare", other)
    assert_refused(called, 2, "large.onnx takes input float32 (N, 3, 16, 8), the bundle float32 "
                   "images (3, 8, 8)", "export it, and compare with its own bundle")  # fmt: skip


def test_a_model_of_other_classes_is_not_compared(
    bundle: Path, folders: Path, tmp_path: Path
) -> None:
    other = write_classifier(tmp_path / "four.onnx")
    called = deploykit("eval", bundle, "--data", folders, "--compare", other)
    assert_refused(called, 1, "the models tell 3 and 4 classes apart")


def test_a_changed_bundle_is_not_compared(bundle: Path, folders: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "changed")
    (other / "labels.txt").write_text("other\n", encoding="utf-8")
    called = deploykit("eval", bundle, "--data", folders, "--compare", other)
    assert_refused(called, 1, "changed: labels.txt")


def test_a_label_beyond_the_models_classes(bundle: Path, flat: Path, tmp_path: Path) -> None:
    file = tmp_path / "val.txt"
    file.write_text("\n".join(str(label + 1) for _, label in TRUTH), encoding="utf-8")
    called = deploykit("eval", bundle, "--data", flat, "--labels-file", file)
    assert_refused(called, 1, "val.txt, line 21: label 3", "expected 0 to 2, places in the sorted")


def test_a_flat_folder_alone_has_no_labels(bundle: Path, flat: Path) -> None:
    called = deploykit("eval", bundle, "--data", flat)
    assert_refused(called, 1, "these images have no labels", "a folder and a --labels-file")

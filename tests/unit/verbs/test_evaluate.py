"""`evaluate_bundle` on images whose class is their colour: counts, references, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.bundle import manifest
from deploykit.core.errors import (
    DataError,
    EngineIncompatibleError,
    IntegrityError,
    UsageError,
)
from deploykit.core.specs import TensorSpec
from deploykit.heads import head_of
from deploykit.heads._accuracy import ClassEvaluation
from deploykit.images import LabelledData
from deploykit.verbs import evaluate as evaluating
from deploykit.verbs.evaluate import AccuracyReport, evaluate_bundle
from tests.bundles import PLAIN, SIZE, engine_record, write_bundle, write_classifier
from tests.fakes.engine_fake import FakeMachine
from tests.graphs import graph, save

if TYPE_CHECKING:
    from pathlib import Path

LABELS = [0, 1, 2, 0, 1, 2, 0, 0]
SHOWN = [0, 1, 2, 0, 2, 2, 1, 0]
"""The colour of each image; two are not of their label."""


@pytest.fixture
def data(tmp_path: Path) -> LabelledData:
    pixels = np.full((len(SHOWN), SIZE, SIZE, 3), 20, np.uint8)
    for image, colour in zip(pixels, SHOWN, strict=True):
        image[:, :, colour] = 200
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.array(LABELS))
    return LabelledData(tmp_path / "images.npz")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


def turned(folder: Path) -> Path:
    """A file that takes red for green, green for blue and blue for red."""
    text = """g (float[N, 3, 8, 8] input) => (float[N, 3] logits) {
        mean = GlobalAveragePool (input)  flat = Flatten (mean)
        logits = Gather <axis = 1> (flat, order)
    }"""
    return save(graph(text, {"order": np.array([2, 0, 1])}), folder / "turned.onnx")


def counted(report: AccuracyReport) -> ClassEvaluation:
    assert isinstance(report.evaluation, ClassEvaluation)
    return report.evaluation


def test_a_bundle_that_is_replaced_once_it_is_open_changes_nothing(
    bundle: Path, data: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are counted for the bundle that was there, and under its labels."""

    def replaced(*arguments: Any) -> Any:
        (bundle / manifest.LABELS).write_text("cyan\nmagenta\nyellow\n", encoding="utf-8")
        (bundle / manifest.MANIFEST).unlink()
        return head_of(*arguments)

    monkeypatch.setattr(evaluating, "head_of", replaced)  # the first step with the open bundle
    report = evaluate_bundle(bundle, data)
    assert report.names == ("red", "green", "blue")
    assert report.graph == "model.onnx"
    assert counted(report).answers.top1.tolist() == SHOWN


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_right_answers_are_counted(bundle: Path, data: LabelledData, batch: int) -> None:
    found = counted(evaluate_bundle(bundle, data, batch=batch))
    assert found.count == 8
    assert found.accuracy.top1 == np.mean(np.array(SHOWN) == LABELS) == 0.75
    assert found.answers.top1.tolist() == SHOWN
    assert found.agreement == 1.0  # with itself


def test_classes_come_worst_first_with_their_names(bundle: Path, data: LabelledData) -> None:
    rows = evaluate_bundle(bundle, data).per_class()
    assert [(row["name"], row["count"], row["right"]) for row in rows] == [
        ("green", 2, 1), ("red", 4, 3), ("blue", 2, 2),
    ]  # fmt: skip
    low, high = rows[0]["top1_interval"]
    assert low < rows[0]["top1"] == 0.5 < high


def test_confusions_are_named(bundle: Path, data: LabelledData) -> None:
    report = evaluate_bundle(bundle, data)
    found = {(row["name"], row["predicted_name"], row["count"]) for row in report.confusions(5)}
    assert found == {("green", "blue", 1), ("red", "green", 1)}
    assert len(report.confusions(1)) == 1


def test_without_names_there_are_numbers(data: LabelledData, tmp_path: Path) -> None:
    from dataclasses import replace

    from deploykit.bundle.manifest import MANIFEST, Bundle, manifest_text

    folder = write_bundle(tmp_path / "nameless")
    manifest = Bundle.open(folder).manifest
    files = {name: value for name, value in manifest.files.items() if name != "labels.txt"}
    (folder / MANIFEST).write_text(manifest_text(replace(manifest, files=files)), encoding="utf-8")
    report = evaluate_bundle(folder, data)
    assert [row["name"] for row in report.per_class()] == [None] * 3
    assert [row["class"] for row in report.per_class()] == [1, 0, 2]


def test_agreement_with_another_model(bundle: Path, data: LabelledData, tmp_path: Path) -> None:
    found = counted(evaluate_bundle(bundle, data, reference=turned(tmp_path)))
    assert found.agreement == 0.0
    assert found.other is not None
    assert found.other.top1 == np.mean((np.array(SHOWN) + 1) % 3 == LABELS)


def test_a_comparison_with_another_bundle(bundle: Path, data: LabelledData, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "again")
    found = counted(evaluate_bundle(bundle, data, compare=other))
    assert found.other is not None
    assert found.other.top1 == found.accuracy.top1


def test_one_model_to_hold_it_against(bundle: Path, data: LabelledData) -> None:
    with pytest.raises(UsageError, match=r"^--reference and --compare are two models to hold"):
        evaluate_bundle(bundle, data, reference=bundle, compare=bundle)


def test_a_file_of_another_size_cannot_be_fed(
    bundle: Path, data: LabelledData, tmp_path: Path
) -> None:
    other = write_classifier(tmp_path / "large.onnx", image="16, 16")
    message = (
        r"^large\.onnx takes input float32 .*, the bundle float32 images \(3, 8, 8\)\nan \.onnx"
    )
    with pytest.raises(UsageError, match=message):
        evaluate_bundle(bundle, data, compare=other)


def test_a_bundle_that_takes_more_than_images(data: LabelledData, tmp_path: Path) -> None:
    from dataclasses import replace

    from deploykit.bundle.manifest import MANIFEST, Bundle, manifest_text

    folder = write_bundle(tmp_path / "more")
    manifest = Bundle.open(folder).manifest
    age = TensorSpec("age", "float32", ("N", 4))
    onnx = replace(manifest.onnx, inputs=(*manifest.onnx.inputs, age))
    (folder / MANIFEST).write_text(manifest_text(replace(manifest, onnx=onnx)), encoding="utf-8")
    message = r"^colours-fp32 takes age float32 \(N, 4\) beside the images, which eval does not"
    with pytest.raises(UsageError, match=message):
        evaluate_bundle(folder, data)


@pytest.mark.parametrize("which", ["bundle", "reference", "compare"])
def test_a_bundle_that_was_changed(
    bundle: Path, data: LabelledData, tmp_path: Path, which: str
) -> None:
    changed = write_bundle(tmp_path / "changed")
    with (changed / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(IntegrityError, match=r"model\.onnx has sha256"):
        evaluate_bundle(
            changed if which == "bundle" else bundle,
            data,
            reference=changed if which == "reference" else None,
            compare=changed if which == "compare" else None,
        )


def test_images_without_labels(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(DataError, match="these images have no labels"):
        evaluate_bundle(bundle, LabelledData(tmp_path / "bare.npz"))


# --- on a device


def test_the_engine_is_counted_and_not_the_graph(bundle: Path, data: LabelledData) -> None:
    """The fake engine takes four images at most, and the last batch is of two."""
    folder = write_bundle(bundle.with_name("with-engine"), engine_record())
    machine = FakeMachine()
    report = evaluate_bundle(folder, data, batch=6, device="cuda", machine=machine())
    assert counted(report).answers.top1.tolist() == SHOWN
    assert counted(report).agreement == 1.0  # with its FP32 graph, on the CPU
    assert machine.opened[0].batches == [4, 2, 2]
    assert machine.opened[0].closed
    assert (report.graph, report.device) == (engine_record().file, "cuda")
    assert report.choice.startswith(f"{engine_record().file} on Hopper")


def test_an_engine_is_held_against_another_bundles(tmp_path: Path, data: LabelledData) -> None:
    first, second = (write_bundle(tmp_path / name, engine_record()) for name in ("first", "second"))
    machine = FakeMachine()
    report = evaluate_bundle(first, data, compare=second, device="cuda", machine=machine())
    assert [engine.plan.parent for engine in machine.opened] == [first, second]
    assert counted(report).agreement == 1.0


def test_without_an_engine_nothing_is_counted(bundle: Path, data: LabelledData) -> None:
    with pytest.raises(EngineIncompatibleError, match="has no engine\nbuild one on the target"):
        evaluate_bundle(bundle, data, device="cuda", machine=FakeMachine()())


def photographs(folder: Path, *sizes: tuple[int, int]) -> LabelledData:
    for label, size in zip(("red", "green", "blue"), sizes, strict=True):
        place = folder / "data" / label
        place.mkdir(parents=True)
        Image.new("RGB", size, "red").save(place / "one.jpg")
    return LabelledData(folder / "data", max_pixels=100_000)


def test_a_note_says_what_was_decoded_at_a_part_of_its_size(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "resizing", preprocessing=replace(PLAIN, resize=SIZE))
    data = photographs(tmp_path, (400, 300), (40, 30), (20, 30))
    (note,) = evaluate_bundle(bundle, data).notes
    assert note == (
        "1 of 3 images was decoded at a half or a quarter of its width and height: a JPEG above "
        "the limit of 100,000 pixels; --max-pixels raises it"
    )


def test_all_images_that_cannot_be_read_are_counted(bundle: Path, tmp_path: Path) -> None:
    data = photographs(tmp_path, (4000, 3000), (40, 30), (2000, 3000))
    with pytest.raises(
        DataError,
        match=r"^2 of 3 images cannot be used: \S+blue/one.jpg, \S+red/one.jpg\n"
        r"the first one: \S+ has 2000 x 3000 = 6,000,000 pixels, the limit is 100,000\n"
        r"every image counts: repair or remove them; 2 have too many pixels: scale down, or "
        r"--max-pixels 12000000$",
    ):
        evaluate_bundle(bundle, data)


def test_one_image_that_cannot_be_read_has_its_own_words(bundle: Path, tmp_path: Path) -> None:
    data = photographs(tmp_path, (4000, 3000), (40, 30), (20, 30))
    with pytest.raises(
        DataError, match=r"red/one.jpg has 4000 x 3000 .*\nscale it down; or, if you"
    ):
        evaluate_bundle(bundle, data)

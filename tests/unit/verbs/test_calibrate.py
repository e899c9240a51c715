"""`calibrate_target`: which graph, which preprocessing and which images a table is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.precision import Precision
from deploykit.exporting.steps import ExportOptions, export_bundle
from deploykit.precision.calibration.data import CalibrationOptions
from deploykit.precision.calibration.table import CalibrationTable
from deploykit.sources.definition import SourceOptions
from deploykit.verbs.calibrate import calibrate_target
from tests.bundles import write_bundle, write_classifier


def options(folder: Path, *, must_fit: bool = False, count: int = 4) -> CalibrationOptions:
    return CalibrationOptions("random", count, table=folder / "table.json", must_fit=must_fit)


def test_a_file_is_calibrated_as_an_export_prepares_it(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    calibrated, journal = calibrate_target(str(original), options(tmp_path), SourceOptions())
    assert calibrated.path == tmp_path / "table.json"
    assert CalibrationTable.load(calibrated.path).digest == calibrated.table.digest
    assert calibrated.table.images == 4
    assert "input" in calibrated.table.amax
    assert [stage.name for stage in journal.times][-1] == "calibrate"
    assert any(note.startswith("preprocessing is assumed") for note in journal.notes)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_the_fp32_graph_of_a_bundle_is_calibrated(tmp_path: Path, precision: Precision) -> None:
    """The table fits a later export of the file that the bundle was made of."""
    original = str(write_classifier(tmp_path / "mine.onnx"))
    bundle = tmp_path / "bundle"
    export_bundle(original, ExportOptions(precision, backend="none", output=bundle))
    of_bundle, _ = calibrate_target(str(bundle), options(tmp_path), SourceOptions())
    of_file, _ = calibrate_target(original, options(tmp_path), SourceOptions())
    assert of_bundle.story == "made now, there was none"
    assert of_file.story.startswith("used again")


def test_a_table_that_fits_is_used_again(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    first, _ = calibrate_target(str(original), options(tmp_path), SourceOptions())
    again, _ = calibrate_target(str(original), options(tmp_path), SourceOptions())
    assert first.story == "made now, there was none"
    assert again.story.startswith("used again")
    assert again.table.digest == first.table.digest


def test_a_table_that_must_fit_and_does_not(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    calibrate_target(str(original), options(tmp_path), SourceOptions())
    with pytest.raises(DataError, match=r"^the calibration table .* does not fit: the"):
        calibrate_target(str(original), options(tmp_path, must_fit=True, count=5), SourceOptions())


def test_what_the_user_says_of_the_pixels_is_part_of_the_key(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    told = SourceOptions(
        choices=DefinitionChoices(
            preprocessing=PreprocessingChoices(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        )
    )
    calibrated, _ = calibrate_target(str(original), options(tmp_path), told)
    assert calibrated.table.key.preprocessing["mean"] == (0.0, 0.0, 0.0)
    # Noise of 8 x 8 pixels, scaled to 9 and so a little smoothed; a white pixel is 1.
    assert 0.85 < calibrated.table.amax["input"]["max"] <= 1.0


def photographs(folder: Path, count: int) -> str:
    """JPEGs of 400 x 300 pixels of noise, whose ranges a reduction changes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (300, 400, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return str(folder)


@pytest.mark.parametrize("limits", [(119_999, 7_500), (None, 119_999), (7_500, None)])
def test_a_table_is_of_the_limit_that_its_pixels_were_made_by(
    tmp_path: Path, limits: tuple[int | None, int | None]
) -> None:
    original, data = str(write_classifier(tmp_path / "mine.onnx")), photographs(tmp_path / "in", 4)
    made = []
    for limit in (*limits, limits[1]):
        asked = CalibrationOptions(data, 4, table=tmp_path / "t.json", max_pixels=limit)
        calibrated, journal = calibrate_target(original, asked, SourceOptions())
        made.append(calibrated)
        notes = [note for note in journal.notes if "decoded at" in note]
        expected = "4 of 4 calibration images were decoded at a half or a quarter of their width"
        assert [note[: len(expected)] for note in notes] == ([] if limit is None else [expected])
    assert made[1].story == "made anew: the settings differ: max_pixels"
    assert made[2].story.startswith("used again")
    assert made[0].table.amax != made[1].table.amax


def test_the_images_that_an_export_compares_on_are_noted_too(tmp_path: Path) -> None:
    original, data = str(write_classifier(tmp_path / "mine.onnx")), photographs(tmp_path / "in", 3)
    options = ExportOptions(
        Precision.FP32,
        backend="none",
        output=tmp_path / "bundle",
        source=SourceOptions(data=Path(data), max_pixels=100_000),
    )
    notes = export_bundle(original, options).notes
    assert any(
        note.startswith("3 of 3 images of the comparison were decoded at a half") for note in notes
    )


def test_images_above_the_limit_are_counted_and_the_remedy_named(tmp_path: Path) -> None:
    original, data = str(write_classifier(tmp_path / "mine.onnx")), photographs(tmp_path / "in", 6)
    for number in (1, 2, 4, 5):
        Image.new("RGB", (5000, 1000 + number)).save(tmp_path / "in" / f"{number}.jpg")
    asked = CalibrationOptions(data, 6, table=tmp_path / "t.json", max_pixels=100_000)
    with pytest.raises(DataError) as caught:
        calibrate_target(original, asked, SourceOptions())
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("4 of 6 images cannot be used: ")
    assert "the limit is 100,000" in lines[1]
    assert lines[2] == (
        "at most 1 % may be corrupt: repair or remove them; 4 have too many pixels: scale down, "
        "or --max-pixels 5025000"
    )


@pytest.mark.parametrize("target", ["bundle", "file"])
def test_options_of_definitions_are_refused(tmp_path: Path, target: str) -> None:
    place = (
        write_bundle(tmp_path / "colours")
        if target == "bundle"
        else write_classifier(tmp_path / "mine.onnx")
    )
    told = SourceOptions(weights="w.pth")
    with pytest.raises(UsageError, match=r"brings its own weights, classes and size"):
        calibrate_target(str(place), options(tmp_path), told)


def test_an_unknown_definition(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'resnet5O'"):
        calibrate_target("resnet5O", options(tmp_path), SourceOptions())


def test_images_that_are_not_there(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    missing = CalibrationOptions(str(tmp_path / "none"), table=tmp_path / "table.json")
    with pytest.raises(DataError, match=r"none"):
        calibrate_target(str(original), missing, SourceOptions())
    assert not (tmp_path / "table.json").exists()


def test_a_table_holds_what_onnxruntime_computes(tmp_path: Path) -> None:
    """The pixels are between the darkest and the brightest that the preprocessing can give."""
    original = write_classifier(tmp_path / "mine.onnx")
    calibrated, _ = calibrate_target(str(original), options(tmp_path, count=8), SourceOptions())
    mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    limits = np.abs([(0 - mean) / deviation, (1 - mean) / deviation])
    assert calibrated.table.amax["input"]["max"] <= np.max(limits) + 1e-5
    assert calibrated.table.amax["input"]["max"] > 0.9 * np.max(limits)

"""The export of a small ``.onnx``: what is refused, what is written, what a failure leaves."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from deploykit.bundle.manifest import Bundle
from deploykit.core.errors import (
    BuildError,
    DataError,
    UnknownNameError,
    UsageError,
    ValidationError,
)
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.exporting.steps import ExportOptions, export_bundle
from deploykit.precision.calibration.data import CalibrationOptions
from deploykit.precision.quantization.choice import Int8Choices
from deploykit.precision.quantization.request import QuantizationRequest
from tests.bundles import write_bundle, write_classifier
from tests.fakes.tensorrt_fake import FakeTensorrt, Script, Severity
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.exporting.steps import ExportReport

CLASSES = 4


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Two layers, 4 classes, images of 8 x 8."""
    return write_classifier(tmp_path / "mine.onnx")


def export(original: Path, **options: Any) -> ExportReport:
    """Without an engine, to ``bundle`` beside the file; ``options`` change that."""
    chosen = {"backend": "none", "output": original.parent / "out" / "bundle", **options}
    return export_bundle(str(original), ExportOptions(**chosen))


def int8(folder: Path, count: int = 8) -> QuantizationRequest:
    """Noise to calibrate with, and nothing to be tried."""
    calibration = CalibrationOptions("random", count=count, table=folder / "table.json")
    int8_choices = Int8Choices("max", "int8", "int8", "int8", "off")
    return QuantizationRequest(calibration, int8_choices, rest=Precision.FP32)


def left_in(folder: Path) -> list[str]:
    """Files and folders that are no locks."""
    return [p.name for p in folder.iterdir() if p.suffix != ".lock"] if folder.is_dir() else []


def logits_of(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images})[0])


# --- what is refused


def test_int8_needs_images() -> None:
    with pytest.raises(UsageError, match=r"^INT8 needs images to calibrate with: --calib PATH\n"):
        ExportOptions(precision=Precision.INT8)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_images_are_for_int8_only(precision: Precision, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=rf"^--calib is for --int8 and --fp8 only, not for {precision}$"
    ):
        ExportOptions(precision=precision, quantization=int8(tmp_path))


def test_a_bundle_is_no_target(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colours")
    with pytest.raises(UsageError, match=r"colours is a bundle already\nexport takes a definition"):
        export(bundle)


def test_labels_must_be_readable(original: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^cannot read .*none\.txt: No such file"):
        export(original, labels=tmp_path / "none.txt")
    (tmp_path / "odd.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"^cannot read .*odd\.txt: line 1 is not UTF-8"):
        export(original, labels=tmp_path / "odd.txt")
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("names", [CLASSES - 1, CLASSES + 1])
def test_one_label_for_each_class(original: Path, tmp_path: Path, names: int) -> None:
    (tmp_path / "labels.txt").write_text("\n".join("abcde"[:names]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"^there are {names} labels, the model has 4 classes\n"):
        export(original, labels=tmp_path / "labels.txt")
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["a\nb", "a\r", "a\u2028b", "\x1b[2J", "\x00"])
def test_a_class_name_is_one_line(original: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"^the class name .* has a line break or another control"):
        export(original, labels=("x", name, "y", "z"))
    assert left_in(tmp_path / "out") == []


def test_an_unknown_backend_is_found_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"tensorflow"):
        export(tmp_path / "none.onnx", backend="tensorflow")


def test_a_definition_has_a_size_of_its_own(tmp_path: Path) -> None:
    profile = ShapeProfile(height=SizeRange(32, 32, 64))
    options = ExportOptions(backend="none", profile=profile, output=tmp_path / "out")
    with pytest.raises(UsageError, match=r"^--height 32,32,64 for resnet20: its height is fixed"):
        export_bundle("resnet20", options)


# --- what is written


def test_an_fp32_bundle_has_the_graph_and_its_sample(original: Path) -> None:
    report = export(original)
    bundle = report.bundle
    assert sorted(left_in(bundle.folder)) == ["golden.npz", "manifest.json", "model.onnx"]
    assert bundle.manifest.precision is Precision.FP32
    assert bundle.manifest.name == "mine-fp32"
    assert bundle.manifest.weights["source"] == "mine.onnx"
    assert bundle.labels is None
    images = normal(3, 3, 8, 8)
    found = logits_of(bundle.folder / "model.onnx", images)
    np.testing.assert_allclose(found, logits_of(original, images), atol=1e-5)


def test_the_manifest_has_the_hash_of_every_other_file(original: Path) -> None:
    folder = export(original, precision=Precision.FP16).bundle.folder
    files = Bundle.open(folder).manifest.files
    assert sorted([*files, "manifest.json"]) == sorted(left_in(folder))
    for name, digest in files.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_the_sample_holds_what_the_original_computes(original: Path) -> None:
    folder = export(original).bundle.folder
    with np.load(folder / "golden.npz") as golden:
        images, logits = golden["input"], golden["logits"]
    np.testing.assert_allclose(logits, logits_of(original, images), atol=1e-6)


def test_labels_are_kept_one_on_a_line(original: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\nd", encoding="utf-8")
    bundle = export(original, labels=tmp_path / "names.txt").bundle
    assert (bundle.folder / "labels.txt").read_text(encoding="utf-8") == "a\nb\nc\nd\n"
    assert bundle.labels == ("a", "b", "c", "d")


def test_fp16_keeps_its_reference_and_is_compared_with_it(original: Path) -> None:
    report = export(original, precision=Precision.FP16)
    folder, manifest = report.bundle.folder, report.bundle.manifest
    assert (folder / "reference.onnx").is_file()
    assert manifest.onnx.parents[0] == manifest.files["reference.onnx"]
    assert [each.precision for each in report.validation] == [Precision.FP32, Precision.FP16]
    assert [each["passed"] for each in manifest.validation] == [True, True]
    stored = [t.data_type for t in onnx.load(folder / "model.onnx").graph.initializer]
    assert onnx.TensorProto.FLOAT16 in stored
    images = normal(3, 3, 8, 8)
    wanted = logits_of(original, images)
    found = logits_of(folder / "model.onnx", images)
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted).max())


def test_int8_keeps_its_table_and_counts_what_stays_fp32(original: Path, tmp_path: Path) -> None:
    report = export(original, precision=Precision.INT8, quantization=int8(tmp_path))
    manifest = report.bundle.manifest
    assert {"calibration.json", "reference.onnx"} <= set(left_in(report.bundle.folder))
    assert manifest.conversion["layers"] == {"int8": 1, "fp16": 0, "fp32": 1}
    assert manifest.conversion["kept_heavy"] == 1  # the last layer has 4 classes
    assert manifest.calibration is not None
    assert manifest.calibration["method"] == "max"
    table = hashlib.sha256((tmp_path / "table.json").read_bytes()).hexdigest()
    assert manifest.files["calibration.json"] == table
    assert "calibrated on noise" in "\n".join(report.notes)


def test_notes_say_what_was_assumed_and_what_is_left_to_do(original: Path) -> None:
    notes = export(original).notes
    assert notes[-1] == "no engine was built; later: deploykit build BUNDLE"
    assert any(note.startswith("preprocessing is assumed: resize 9") for note in notes)


def test_stages_are_timed_in_order(original: Path) -> None:
    report = export(original, precision=Precision.FP16)
    names = [stage.name for stage in report.stages]
    assert names[:2] == ["read", "validate fp32"]
    assert names[-3:] == ["convert to fp16", "validate fp16", "write for CPUs"]
    assert all(stage.seconds >= 0 for stage in report.stages)


def test_plain_data_repeats_the_manifest(original: Path) -> None:
    report = export(original)
    data, manifest = report.to_dict(), report.bundle.manifest
    assert data["bundle"] == str(report.bundle.folder)
    assert data["precision"] == "fp32"
    assert data["engines"] == []
    assert data["calibration"] is None
    assert data["notes"] == list(report.notes)
    assert data["weights"] == manifest.weights
    assert data["conversion"] == manifest.conversion
    assert [each["passed"] for each in data["validation"]] == [True]
    assert [each["name"] for each in data["stages"]] == [stage.name for stage in report.stages]


def test_the_bundle_has_the_name_of_the_file_and_the_precision(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(original.parent)
    report = export(original, output=None)
    assert report.bundle.folder.as_posix() == "engines/mine-fp32"


# --- what a failure leaves


def broken(original: Path) -> Path:
    """The same network, with a weight that is not a number."""
    model = onnx.load(original)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, original)
    return original


def test_a_failed_validation_leaves_nothing(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"the original file itself gives NaN"):
        export(broken(original))
    assert left_in(tmp_path / "out") == []


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Script:
    """TensorRT for RTX as it is imported; it refuses every network."""
    script = Script(plan=None, said=((Severity.ERROR, "no kernel for this layer"),))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorrt(script))
    return script


def test_a_failed_build_leaves_nothing(original: Path, tmp_path: Path, compiler: Script) -> None:
    with pytest.raises(BuildError, match="no kernel for this layer"):
        export(original, backend="tensorrt-rtx")
    assert compiler.flags is not None  # it was asked
    assert left_in(tmp_path / "out") == []


def test_a_failure_keeps_the_bundle_that_was_there(original: Path, compiler: Script) -> None:
    before = export(original).bundle
    files = {path.name: path.read_bytes() for path in before.folder.iterdir()}
    with pytest.raises(BuildError, match="no kernel for this layer"):
        export(original, backend="tensorrt-rtx")
    assert {path.name: path.read_bytes() for path in before.folder.iterdir()} == files
    assert compiler.flags is not None

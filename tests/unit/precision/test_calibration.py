"""`calibrate_graph`: when a table is made, when it is used again, and what is said of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit import graph
from deploykit.comparison.reference import Runners
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.specs import Preprocessing
from deploykit.graph import LoadedGraph
from deploykit.graph.qdq import QdqPolicy, plan_qdq
from deploykit.images import ArrayImages
from deploykit.images.side_inputs import SideInputs
from deploykit.precision.calibration.data import CalibrationOptions
from deploykit.precision.calibration.graphs import calibrate_graph
from deploykit.precision.calibration.table import CalibrationTable
from tests.bundles import write_classifier
from tests.graphs import normal, run_ort

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.precision.calibration.graphs import Calibrated

PLAIN = Preprocessing(crop=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def artifact(tmp_path: Path) -> OnnxArtifact:
    """As an export prepares it: every node has a name."""
    model = graph.read_model(write_classifier(tmp_path / "mine.onnx"))
    graph.tidy(model, rename=False)
    return graph.write_model(model, tmp_path / "tidy.onnx", Precision.FP32)


def photographs(count: int = 5, brightest: int = 255) -> ArrayImages:
    random = np.random.default_rng(brightest)
    return ArrayImages(random.integers(0, brightest + 1, (count, 8, 8, 3), np.uint8))


def calibrated(
    artifact: OnnxArtifact, options: CalibrationOptions, runners: Runners | None = None
) -> tuple[Calibrated, list[str]]:
    journal = Journal(SilentProgress())
    found = calibrate_graph(
        LoadedGraph(artifact), "mine", PLAIN, options, journal, runners or Runners()
    )
    return found, journal.notes


def options(tmp_path: Path, **changes: Any) -> CalibrationOptions:
    return CalibrationOptions(**{"data": photographs(), "table": tmp_path / "t.json", **changes})


def test_the_range_of_the_input_is_the_brightest_pixel(
    artifact: OnnxArtifact, tmp_path: Path
) -> None:
    found, _ = calibrated(artifact, options(tmp_path, data=photographs(5, 100)))
    assert found.table.amax["input"]["max"] == pytest.approx(100 / 255, abs=1e-6)
    assert found.table.images == 5
    assert len(found.data.held_out) == 1


def test_every_value_that_a_policy_could_quantize_has_a_range(
    artifact: OnnxArtifact, tmp_path: Path
) -> None:
    """The last layer has 4 classes and stays FP32, but a policy may ask for it."""
    found, _ = calibrated(artifact, options(tmp_path))
    model = graph.read_model(artifact.path)
    everything = QdqPolicy(min_channels=1, min_features=1)
    assert plan_qdq(model, QdqPolicy()).tensors == ("input",)
    assert {"input"} < set(found.table.amax) == set(plan_qdq(model, everything).tensors)
    assert found.to_dict()["tensors"] == len(found.table.amax)


def test_a_table_is_made_once(artifact: OnnxArtifact, tmp_path: Path) -> None:
    first, notes = calibrated(artifact, options(tmp_path))
    assert first.story == "made now, there was none"
    assert f"calibration table {tmp_path / 't.json'}: made now, there was none" in notes
    before = (tmp_path / "t.json").read_bytes()
    again, _ = calibrated(artifact, options(tmp_path))
    assert again.story == "used again: same model, images, preprocessing and settings"
    assert (tmp_path / "t.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "story"),
    [
        ({"data": photographs(5, 99)}, "made anew: the images are others"),
        ({"count": 4}, "made anew: the"),
        ({"seed": 1}, "made anew: the"),
    ],
)
def test_what_differs_is_said(
    artifact: OnnxArtifact, tmp_path: Path, changes: dict[str, Any], story: str
) -> None:
    calibrated(artifact, options(tmp_path))
    found, _ = calibrated(artifact, options(tmp_path, **changes))
    assert found.story.startswith(story)


def test_a_table_of_an_older_deploykit_is_made_anew(artifact: OnnxArtifact, tmp_path: Path) -> None:
    calibrated(artifact, options(tmp_path))
    body = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    (tmp_path / "t.json").write_text(json.dumps(body | {"schema_version": 1}), encoding="utf-8")
    found, _ = calibrated(artifact, options(tmp_path))
    assert found.story.startswith("made anew: ")
    assert "has schema version 1, this deploykit reads" in found.story
    assert CalibrationTable.load(tmp_path / "t.json").digest == found.table.digest


def test_a_file_that_is_no_table_is_not_replaced(artifact: OnnxArtifact, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"t\.json exists and is not a calibration table, so it is"):
        calibrated(artifact, options(tmp_path))
    assert (tmp_path / "t.json").read_text(encoding="utf-8") == "{"


def test_a_table_that_must_fit_is_not_made(artifact: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.json"):
        calibrated(artifact, options(tmp_path, must_fit=True))
    assert not (tmp_path / "t.json").exists()


def test_a_table_that_must_fit_and_does_not(artifact: OnnxArtifact, tmp_path: Path) -> None:
    calibrated(artifact, options(tmp_path))
    with pytest.raises(
        DataError, match=r"^the calibration table .*t\.json does not fit: the images are others\n"
    ):
        calibrated(artifact, options(tmp_path, data=photographs(5, 99), must_fit=True))


def test_a_table_that_must_fit_of_another_model(artifact: OnnxArtifact, tmp_path: Path) -> None:
    calibrated(artifact, options(tmp_path))
    path = tmp_path / "other.onnx"
    path.write_bytes(artifact.path.read_bytes().replace(b"logits", b"answer"))
    other = graph.read_artifact(path)
    with pytest.raises(DataError, match=r"^this calibration table belongs to another model\n"):
        calibrated(other, options(tmp_path, must_fit=True))


def test_a_table_that_lacks_a_value(artifact: OnnxArtifact, tmp_path: Path) -> None:
    found, _ = calibrated(artifact, options(tmp_path))
    amax = {name: ranges for name, ranges in found.table.amax.items() if name != "input"}
    replace(found.table, amax=amax, trial_amax={}).save(tmp_path / "t.json")
    again, _ = calibrated(artifact, options(tmp_path))
    assert again.story == "made anew: it has no range for input"


@pytest.mark.parametrize(
    ("project", "place"),
    [("", "mine.calibration.json"), ("[tool.deploykit]", "calib/mine.json")],
)
def test_without_a_path_a_table_lies_where_the_project_keeps_it(
    artifact: OnnxArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    project: str,
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
    found, _ = calibrated(artifact, options(tmp_path, table=None))
    assert found.path.as_posix() == place
    assert json.loads((tmp_path / place).read_text(encoding="utf-8"))["images"] == 5


def test_few_images_are_warned_of(artifact: OnnxArtifact, tmp_path: Path) -> None:
    _, notes = calibrated(artifact, options(tmp_path))
    assert notes[0].startswith("only 5 calibration images: the ranges depend on chance")


def test_noise_is_said_to_mean_nothing(artifact: OnnxArtifact, tmp_path: Path) -> None:
    found, notes = calibrated(artifact, options(tmp_path, data="random", count=40))
    assert notes[-1] == "calibrated on noise: for sizes and speed only, its answers mean nothing"
    assert found.source == "random noise"
    assert found.to_dict()["source"] == "random noise"
    assert not any("only 40" in note for note in notes)


def test_images_of_a_program(artifact: OnnxArtifact, tmp_path: Path) -> None:
    found, _ = calibrated(artifact, options(tmp_path))
    assert found.source == "images given by a program"


def test_noise_beside_the_images_gives_no_ranges(artifact: OnnxArtifact, tmp_path: Path) -> None:
    runners = Runners(SideInputs({"age": normal(4, 2)}))
    with pytest.raises(
        UsageError,
        match=r"^ranges need real values of what mine takes beside the images: age\ngive",
    ):
        calibrated(artifact, options(tmp_path), runners)


def test_ranges_are_those_of_onnxruntime(artifact: OnnxArtifact, tmp_path: Path) -> None:
    """The largest absolute value of what the convolution reads and of what it makes."""
    import onnx

    source = photographs()
    found, _ = calibrated(artifact, options(tmp_path, data=source))
    model = onnx.load(artifact.path)
    names = [name for name in found.table.amax if name != "input"]
    known = {output.name for output in model.graph.output}
    for name in names:
        if name not in known:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    pixels = np.stack([np.asarray(source.load(index)) for index in range(5)])
    images = (pixels / 255).astype(np.float32).transpose(0, 3, 1, 2)
    values = run_ort(model, {"input": images})
    for name in names:
        assert found.table.amax[name]["max"] == pytest.approx(np.abs(values[name]).max(), rel=1e-4)


# --- a table that a few of its images refute


def wrong(
    table: CalibrationTable, name: str, *, method: str = "", times: float
) -> CalibrationTable:
    """One tensor's ranges by all methods, or by one, in both kinds, with the right digest."""

    def changed(ranges: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        found = {tensor: dict(each) for tensor, each in ranges.items()}
        for key, amax in found[name].items():
            if method in ("", key):
                found[name][key] = amax * times
        return found

    return replace(table, amax=changed(table.amax), trial_amax=changed(table.trial_amax))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"times": 1e30}, r"its images reach .* at input, entropy gives .*e\+(29|30)"),
        ({"times": 1e-30}, r"its images reach .* at input, it gives .*e-(30|31) as the maximum"),
        ({"times": 0.25}, r"its images reach 1 at input, it gives 0.25 as the maximum"),
        ({"times": 1e9, "method": "mse"}, r"its images reach .* at input, mse gives .*e\+0[89]"),
        ({"times": 1e-9, "method": "mse"}, r"its images reach .* at input, mse gives .*e-(09|10)"),
    ],
)
def test_ranges_that_its_own_images_refute(
    artifact: OnnxArtifact, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    found, _ = calibrated(artifact, options(tmp_path))
    wrong(found.table, "input", **change).save(tmp_path / "t.json")
    with pytest.raises(DataError, match=rf"table .*t\.json does not fit: {said}\ngive what it was"):
        calibrated(artifact, options(tmp_path, must_fit=True))
    again, notes = calibrated(artifact, options(tmp_path))
    assert re.search(rf"t\.json: made anew: {said}$", notes[-1])
    assert CalibrationTable.load(tmp_path / "t.json").amax == found.table.amax
    assert again.table.amax == found.table.amax


@pytest.mark.parametrize("times", [0.9, 1.1, 100.0])
def test_what_a_few_images_cannot_refute(
    artifact: OnnxArtifact, tmp_path: Path, times: float
) -> None:
    found, _ = calibrated(artifact, options(tmp_path))
    wrong(found.table, "input", times=times).save(tmp_path / "t.json")
    again, _ = calibrated(artifact, options(tmp_path, must_fit=True))
    assert again.story == "used again: same model, images, preprocessing and settings"


def test_black_images_refute_nothing(artifact: OnnxArtifact, tmp_path: Path) -> None:
    """All of them zeros: their range is 1, as that of a tensor of which nothing is known."""
    black = ArrayImages(np.zeros((5, 8, 8, 3), np.uint8))
    found, _ = calibrated(artifact, options(tmp_path, data=black))
    assert found.table.amax["input"]["max"] == 1.0
    again, _ = calibrated(artifact, options(tmp_path, data=black, must_fit=True))
    assert again.table.amax == found.table.amax


def test_a_table_without_a_digest_is_used_with_a_note(
    artifact: OnnxArtifact, tmp_path: Path
) -> None:
    calibrated(artifact, options(tmp_path))
    body = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    del body["table_sha256"]
    (tmp_path / "t.json").write_text(json.dumps(body), encoding="utf-8")
    for must_fit in (True, False):
        found, notes = calibrated(artifact, options(tmp_path, must_fit=must_fit))
        assert found.story.endswith("; an older deploykit made it, without a digest: changes of it "
                                    "would not be found")  # fmt: skip
        assert notes[-1] == f"calibration table {tmp_path / 't.json'}: {found.story}"


def test_a_changed_table_is_made_anew_or_refused(artifact: OnnxArtifact, tmp_path: Path) -> None:
    found, _ = calibrated(artifact, options(tmp_path))
    text = (tmp_path / "t.json").read_text(encoding="utf-8")
    maximum = json.dumps(found.table.amax["input"]["max"])
    (tmp_path / "t.json").write_text(text.replace(maximum, "0.7"), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"^t\.json was changed after it was written\nit gives sha2"
    ):
        calibrated(artifact, options(tmp_path, must_fit=True))
    again, _ = calibrated(artifact, options(tmp_path))
    assert again.story == "made anew: t.json was changed after it was written"
    assert again.table.amax == found.table.amax

"""A user's classifier with open height and width, from the file to the loaded bundle."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import deploykit as api
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.heads.multiclass import BatchComparison
from tests.bundles import write_classifier
from tests.cli import deploykit
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli import Called

SIZES = ("--height", "16,24,40", "--width", "12,24,32")
PROFILE = ShapeProfile(1, 2, 4, SizeRange(16, 24, 40), SizeRange(12, 24, 32))
HAS_RTX = find_spec("tensorrt_rtx") is not None


def export(path: Path, *more: object) -> Called:
    return deploykit("export", path, "--backend", "none", "-o", path.with_suffix(""), *more)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("open") / "open.onnx", "height, width")


@pytest.fixture(scope="module")
def bundle(original: Path) -> Path:
    """FP16; with an engine where TensorRT for RTX is installed."""
    backend = ("tensorrt-rtx", "--compute-capability", "8.9") if HAS_RTX else ("none",)
    called = export(original, "--fp16", "--batch", "1,2,4", *SIZES, "--backend", *backend, "--json")
    assert called.code == 0, called.err
    compared = "24 x 24, 16 x 12, 40 x 32, 16 x 32, 40 x 12"
    assert (
        f"open: height and width; compared with the original at {compared}" in called.data["notes"]
    )
    assert [len(one["batches"]) for one in called.data["validation"]] == [7, 7]
    return original.with_suffix("")


def test_the_bundle_keeps_the_sizes_open(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.onnx.inputs[0].shape[2:] == ("height", "width")
    assert manifest.model["image_size"] == list(manifest.preprocessing.crop) == [24, 24]
    assert (manifest.model["height"], manifest.model["width"]) == ([16, 24, 40], [12, 24, 32])
    assert np.load(bundle / "golden.npz")["input"].shape == (2, 3, 24, 24)


@pytest.mark.skipif(not HAS_RTX, reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
def test_the_engine_takes_the_profile_and_a_later_one_the_same(bundle: Path) -> None:
    assert [one.profile for one in Bundle.open(bundle).manifest.engines] == [PROFILE]
    called = deploykit(
        "build", bundle, "--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--batch",
        "1,2,4", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    body = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    assert body["engines"][-1]["profile"] == {
        "min_batch": 1, "opt_batch": 2, "max_batch": 4,
        "height": [16, 24, 40], "width": [12, 24, 32],
    }  # fmt: skip
    shown = deploykit("build", bundle, "--backend", "tensorrt-rtx", "--height", "8,24,24")
    assert "8 to 24, tuned for 24" in shown.out
    assert "12 to 32, tuned for 24" in shown.out


def test_every_size_is_what_the_original_makes_of_it(bundle: Path, original: Path) -> None:
    model = original.read_bytes()
    with api.load(bundle, device="cpu") as classifier:
        found = classifier.self_test()
        assert isinstance(found, BatchComparison)
        assert found.agreement == 1.0
        for size in ((1, 16, 12), (3, 40, 32), (2, 24, 24)):
            batch = normal(size[0], 3, *size[1:])
            expected = run_ort(model, {"input": batch})["logits"]
            np.testing.assert_allclose(classifier.run(batch), expected, rtol=0.02, atol=0.02)
        # From 8 on where another test has added an engine.
        with pytest.raises(UsageError, match=r"the height 7 is not among the bundle's \d+ to 40"):
            classifier.run(normal(2, 3, 7, 99))
        photograph = np.full((50, 60, 3), 128, np.uint8)
        assert len(classifier.predict([photograph], top_k=2)[0]) == 2


def test_commands_that_read_the_bundle(bundle: Path, original: Path, tmp_path: Path) -> None:
    assert deploykit("check", bundle, "--json").data["ok"]
    assert deploykit("inspect", bundle, "--json").data["multiply_adds"] > 0
    compared = deploykit("validate", original, bundle, "--json")
    assert compared.code == 0, compared.err
    named = write_classifier(tmp_path / "named.onnx", "a, b")  # the same weights
    assert deploykit("validate", named, bundle).code == 0
    fixed = write_classifier(tmp_path / "fixed.onnx", "24, 24")
    assert "expected two artifacts of one network" in deploykit("validate", fixed, bundle).err
    for command in (("validate", named, original), ("calibrate", named, "--data", tmp_path)):
        called = deploykit(*command)
        assert called.code == 2
        assert "its sizes must be known here: --height MIN,OPT,MAX --width" in called.err
    planned = deploykit("inspect", named, "--int8", "--input-size", 24, "--json")
    assert planned.code == 0, planned.err


def test_int8_is_calibrated_at_the_preferred_size(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the table is kept there
    called = export(
        original, "--int8", "--calib", "random", "--calib-count", 8, *SIZES, "--method", "max",
        "--sensitive-layers", "int8", "-o", tmp_path / "b", "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    said = "INT8 ranges are of images of 24 x 24; least cosine with the original file at other siz"
    (note,) = [note for note in called.data["notes"] if note.startswith(said)]
    figures = [float(each.split(": ")[1]) for each in note.split("sizes: ")[1].split(", ")]
    assert len(figures) == 4
    assert min(figures) > 0.9
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.preprocessing.crop == (24, 24)
    assert manifest.onnx.inputs[0].shape[2:] == ("height", "width")
    with api.load(tmp_path / "b", device="cpu") as classifier:
        assert classifier.run(normal(1, 3, 40, 13)).shape == (1, 4)


def test_two_open_files_are_compared_at_the_sizes_that_are_given(
    original: Path, tmp_path: Path
) -> None:
    """The copy's last weight is wrong by a tenth, which onnxruntime alone sees at each size."""
    model = onnx.load(original)
    (last,) = (one for one in model.graph.initializer if one.name == "v")
    weights = onnx.numpy_helper.to_array(last).copy()
    weights[0] *= 1.1
    last.CopyFrom(onnx.numpy_helper.from_array(weights, "v"))
    onnx.save(model, tmp_path / "copy.onnx")
    same = deploykit("validate", original, original, *SIZES, "--layers", "--json")
    assert same.code == 0, same.err
    batches = same.data["validation"]["batches"]
    assert [one["batch"] for one in batches] == [1, 2, 5, 2, 2, 2, 2]
    assert same.data["layers"]["images"] == 8
    called = deploykit("validate", tmp_path / "copy.onnx", original, *SIZES, "--json")
    assert called.code == 1
    assert all(one["max_abs"] > 1e-3 for one in called.data["validation"]["batches"])


def test_a_bundle_is_compared_at_other_sizes_too(bundle: Path, original: Path) -> None:
    data = deploykit("validate", bundle, original, "--height", 40, "--width", 32, "--json").data
    assert [one["batch"] for one in data["validation"]["batches"]] == [1, 2, 5]


def test_a_table_of_an_open_file_fits_its_export(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    noise = ("--calib-count", 8, *SIZES)
    made = deploykit("calibrate", original, "--data", "random", *noise, "-o", "t.npz", "--json")
    assert made.code == 0, made.err
    used = export(
        original, "--int8", "--calib", "random", *noise, "--calib-table", "t.npz", "--method",
        "max", "--sensitive-layers", "int8", "-o", tmp_path / "b", "--json",
    )  # fmt: skip
    assert used.code == 0, used.err
    assert Bundle.open(tmp_path / "b").manifest.calibration is not None


def test_sizes_of_what_has_one(bundle: Path, tmp_path: Path) -> None:
    fixed = write_classifier(tmp_path / "fixed.onnx", "24, 24")
    for target, said in (
        (bundle, "is a bundle: it is calibrated at the size that it prepares"),
        (fixed, "its height is fixed to 24"),
        ("resnet20", "--height 16,24,40 for resnet20: its height is fixed to 32"),
    ):
        called = deploykit("calibrate", target, "--data", "random", *SIZES)
        assert called.code == 2
        assert said in " ".join(called.err.split())
    called = deploykit("validate", fixed, fixed, *SIZES)
    assert called.code == 2
    assert "its height is fixed to 24" in called.err


REFUSED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "nothing given": ("h, w", (), "whose height and width may be anything"),
    "one given": ("h, w", ("--height", "8"), "whose width may be anything"),
    "fixed": ("24, 24", SIZES, "its height is fixed to 24"),
    "squares": ("s, s", SIZES, "calls its height and its width 's': it takes squares only"),
    "no range": ("h, w", ("--height", "1,2", "--width", "8"), "cannot read --height '1,2'"),
    "out of order": ("h, w", ("--height", "3,2,1", "--width", "8"), "are not in order"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sizes_that_do_not_go_with_the_model(tmp_path: Path, case: str) -> None:
    image, options, said = REFUSED[case]
    called = export(write_classifier(tmp_path / "m.onnx", image), "--fp16", *options)
    assert called.code == 2
    assert said in " ".join(called.err.split())
    assert not (tmp_path / "m").exists()


def test_a_definition_has_a_fixed_size(tmp_path: Path) -> None:
    called = deploykit("export", "resnet20", "-o", tmp_path / "b", "--backend", "none", *SIZES)
    assert called.code == 2
    assert "--height 16,24,40 for resnet20: its height is fixed to 32" in called.err


def test_a_size_that_the_network_itself_does_not_take(tmp_path: Path) -> None:
    path = save(
        graph(
            """g (float[N,3,h,w] input) => (float[N,4] logits) {
                f = Flatten (input)
                logits = Gemm (f, v)
            }""",
            {"v": normal(3 * 24 * 24, 4, scale=0.01)},
        ),
        tmp_path / "frozen.onnx",
    )
    called = export(path, *SIZES)
    assert called.code == 1
    assert "frozen.onnx failed to run on (2, 3, 16, 12)" in called.err
    assert export(path, "--height", 24, "--width", 24).code == 0

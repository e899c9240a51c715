"""`deploykit export --int8` and `deploykit calibrate`, on a network that was really trained."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.graph.card import card_in
from deploykit.images import GivenImages
from deploykit.models import get
from deploykit.precision.calibration.data import CalibrationOptions
from deploykit.precision.calibration.table import CalibrationTable
from deploykit.sources.definition import SourceOptions
from deploykit.verbs.calibrate import calibrate_target
from tests.bundles import write_classifier
from tests.cli import Called, deploykit, options_of
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.digits import Digits

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables are kept in the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(original: Path, *more: object, calib: object) -> Called:
    """From an ONNX file: the same path as from a definition, without the time of torch's export."""
    return deploykit(
        "export", original, "--int8", "--calib", calib, "--backend", "none", "-o", "bundle",
        "--json", *more,
    )  # fmt: skip


@pytest.fixture
def fp32(fp16_bundle: Path) -> Path:
    return fp16_bundle / "reference.onnx"


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two layers, for tests of tables and messages: an export takes a third of ``fp32``'s."""
    return write_classifier(tmp_path_factory.mktemp("small") / "small.onnx", channels=32)


UNTRIED = (
    "--residual", "int8", "--first-layer", "int8", "--sensitive-layers", "int8",
    "--method", "max", "--bias-correction", "off",
)  # fmt: skip
"""For tests of something else: nothing is compared, which takes most of the time."""


@pytest.fixture(scope="session")
def chosen(
    fp16_bundle: Path, digits: Digits, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """A folder with a ``bundle`` for which all was tried out, and its ``answer``. Read only."""

    def make(folder: Path) -> None:
        called = deploykit(
            "export", fp16_bundle / "reference.onnx", "--int8", "--calib", digits.calibration,
            "--backend", "none", "-o", folder / "bundle", "--json",
        )  # fmt: skip
        assert called.code == 0, called.err
        (folder / "answer.json").write_text(called.out, encoding="utf-8")

    return made_once("digits-int8", make)


def test_accuracy_and_agreement_hold(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = deploykit(
        "export", fp32, *options_of(get("resnet20").preprocessing, 8), "--labels", digits.labels,
        "--int8", "--calib", digits.calibration, "-o", "bundle", "--json",
        "--first-layer", "int8", "--sensitive-layers", "int8",
    )  # fmt: skip
    assert called.code == 0, called.err
    found = deploykit("eval", "bundle", "--data", digits.test, "--json").data
    assert found["agreement"] >= 0.98
    assert found["top1"] == pytest.approx(digits.accuracy, abs=0.01)
    manifest = Bundle.open(working_folder / "bundle").manifest
    (engine,) = manifest.engines
    assert engine.precision_census["CONVOLUTION INT8"] == 19
    assert any("execution not proven" in warning for warning in engine.warnings)
    assert called.data["conversion"]["layers"] == {"int8": 19, "fp16": 1, "fp32": 0}
    assert deploykit("check", "bundle", "--json").data["ok"] is True


def test_auto_takes_what_leaves_the_least_noise(chosen: Path) -> None:
    calibration = json.loads((chosen / "answer.json").read_text(encoding="utf-8"))["calibration"]
    trials = calibration["trials"]
    methods = {trial["candidate"]: trial["sqnr_db"] for trial in trials[:4]}
    assert methods.keys() == {"max", "percentile", "entropy", "mse"}
    assert calibration["method"] == max(methods, key=lambda method: methods[method])
    assert trials[4]["candidate"] == f"{calibration['method']}, skips kept"
    gain = trials[4]["sqnr_db"] - methods[calibration["method"]]
    assert calibration["policy"]["residual"] == ("keep" if gain >= 1.5 else "int8")
    assert trials[-1]["candidate"].endswith("biases corrected")
    sensitive = next(trial for trial in trials if "sensitive" in trial["candidate"])
    ratios = {trial["candidate"]: trial["sqnr_db"] for trial in trials}
    gain = sensitive["sqnr_db"] - ratios[sensitive["candidate"].rpartition(", ")[0]]
    assert bool(calibration["policy"]["sensitive"]) == (gain >= 1.0)
    assert calibration["images"] == 256  # the final ranges come from the held-out images as well


def test_what_the_user_fixed_is_not_tried(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = quantize(
        fp32, "--method", "entropy", "--residual", "int8", "--first-layer", "keep",
        "--sensitive-layers", "int8", "--bias-correction", "off", calib=digits.calibration,
    )  # fmt: skip
    calibration = called.data["calibration"]
    assert [trial["candidate"] for trial in calibration["trials"]] == ["entropy"]
    assert calibration["policy"]["residual"] == "int8"
    assert calibration["policy"]["first_layer"] == "keep"
    assert called.data["conversion"]["corrected_biases"] == 0


def test_biases_are_corrected_when_asked(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = quantize(fp32, *UNTRIED, "--bias-correction", "on", calib=digits.calibration)
    assert called.data["conversion"]["corrected_biases"] >= 18


DOWNSAMPLING_BLOCK = """net (float[N,3,8,8] input) => (float[N,10] logits) {
    [stem] a = Conv <pads = [1,1,1,1]> (input, stem_w)
    [relu] b = Relu (a)
    [inner] c = Conv <pads = [1,1,1,1]> (b, inner_w, inner_b)
    [relu_inner] d = Relu (c)
    [last] e = Conv (d, last_w)
    [down] f = Conv (b, down_w)
    [add] g = Add (e, f)
    [relu_out] h = Relu (g)
    [pool] p = GlobalAveragePool (h)
    [flat] q = Flatten (p)
    [head] logits = Gemm <transB = 1> (q, head_w)
}"""


def block_with_a_sensitive_end(path: Path) -> Path:
    """INT8 rounds all useful weights of ``last`` to 0, beside large ones for a channel of zeros."""
    last = normal(32, 32, 1, 1, seed=3, scale=0.2)
    last[:, 0] = 100.0
    bias = np.zeros(32, np.float32)
    bias[0] = -1000.0
    weights = {
        "stem_w": normal(32, 3, 3, 3, seed=1, scale=0.2),
        "inner_w": normal(32, 32, 3, 3, seed=2, scale=0.06),
        "inner_b": bias,
        "last_w": last,
        "down_w": normal(32, 32, 1, 1, seed=4, scale=0.1),
        "head_w": normal(10, 32, seed=5),
    }
    return save(graph(DOWNSAMPLING_BLOCK, weights), path)


def test_a_kept_layer_may_change_the_skip_operand(digits: Digits, working_folder: Path) -> None:
    """Without ``last`` in INT8 the addition is fused with ``down``, and reads ``last`` as INT8."""
    model = block_with_a_sensitive_end(working_folder / "block.onnx")
    told = "--sensitive-layers", "keep", "--residual", "int8", "--method", "max"
    called = quantize(model, *told, calib=digits.calibration)
    assert called.code == 0, called.err
    assert called.data["calibration"]["policy"]["sensitive"] == ["last"]
    table = CalibrationTable.load(working_folder / "block.calibration.json")
    assert {"e", "f"} <= table.amax.keys()


def test_a_table_without_a_possible_skip_operand_is_made_anew(
    digits: Digits, working_folder: Path
) -> None:
    model = block_with_a_sensitive_end(working_folder / "block.onnx")
    made = deploykit(
        "calibrate", model, "--data", digits.calibration, "-o", "block.calibration.json"
    )
    assert made.code == 0, made.err
    path = working_folder / "block.calibration.json"
    body = json.loads(path.read_text())
    del body["amax"]["e"], body["trial_amax"]["e"], body["table_sha256"]
    path.write_text(json.dumps(body))
    told = "--sensitive-layers", "int8", "--method", "max"
    refused = quantize(model, *told, "--calib-table", path, calib=digits.calibration)
    assert refused.code == 1
    assert "does not fit: it has no range for e\n" in refused.err
    called = quantize(model, *told, calib=digits.calibration)
    assert called.data["calibration"]["story"] == "made anew: it has no range for e"
    assert "e" in CalibrationTable.load(path).amax


def test_output_shows_layers_ratios_and_methods(
    fp32: Path, digits: Digits, working_folder: Path
) -> None:
    called = deploykit(
        "export", fp32, "--int8", "--calib", digits.calibration, "--backend", "none", "-o", "b",
        "--first-layer", "int8", "--sensitive-layers", "int8", "--verbose",
    )  # fmt: skip
    assert "convolutions and matrix products: 19 INT8, 1 FP16, 0 FP32" in called.out
    for text in ("SQNR (dB)", "on held-out images", "mean KL", "not INT8", "because"):
        assert text in called.out
    _, _, ratios = called.out.partition("lowest ratios")
    shown = [line.split()[-1] for line in ratios.split("lowest ratios")[0].splitlines()[2:12]]
    assert [float(ratio) for ratio in shown] == sorted(map(float, shown))


def test_table_is_used_again_and_made_anew_with_the_reason(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    def story(*more: object, calib: Path = digits.calibration) -> str:
        called = quantize(small, *UNTRIED, *more, calib=calib)
        assert called.code == 0, called.err
        return str(called.data["calibration"]["story"])

    assert story() == "made now, there was none"
    assert story().startswith("used again")
    assert "the settings differ" in story("--calib-count", 100)
    assert "the images are others" in story(calib=digits.test)


def test_table_that_must_fit_is_refused_by_another_model_and_other_images(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    made = deploykit("calibrate", small, "--data", digits.calibration, "-o", "table.json")
    assert made.code == 0, made.err
    before = (working_folder / "table.json").read_bytes()
    fixed = ("--calib-table", "table.json", *UNTRIED)
    used = quantize(small, *fixed, calib=digits.calibration)
    assert used.data["calibration"]["story"].startswith("used again")
    other = quantize(small, *fixed, calib=digits.test)
    assert other.code == 1
    assert "the calibration table table.json does not fit: the images are others" in other.err
    model = write_classifier(working_folder / "other.onnx", batch="16", channels=32)
    refused = quantize(model, *fixed, "--batch", 16, "--replace", calib=digits.calibration)
    assert refused.code == 1
    assert "this calibration table belongs to another model" in refused.err
    missing = quantize(small, "--calib-table", "none.json", calib=digits.calibration)
    assert missing.code == 1
    assert "there is no calibration table none.json" in missing.err
    assert (working_folder / "table.json").read_bytes() == before


def test_table_of_calibrate_serves_the_export(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    (working_folder / "own.onnx").write_bytes(small.read_bytes())
    made = deploykit("calibrate", "own.onnx", "--data", digits.calibration, "--json")
    assert made.code == 0, made.err
    assert made.data["path"] == "own.calibration.json"
    called = quantize(working_folder / "own.onnx", *UNTRIED, calib=digits.calibration)
    assert called.data["calibration"]["story"].startswith("used again")
    assert called.data["calibration"]["digest"] == made.data["digest"]


def test_table_of_calibrate_serves_an_export_to_another_folder(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    (working_folder / "own.onnx").write_bytes(small.read_bytes())
    made = deploykit("calibrate", "own.onnx", "--data", digits.calibration)
    assert made.code == 0, made.err
    place = working_folder / "engines" / "own-int8"
    called = quantize(working_folder / "own.onnx", "-o", place, *UNTRIED, calib=digits.calibration)
    assert called.data["calibration"]["story"].startswith("used again")
    assert [path.name for path in place.parent.iterdir()] == ["own-int8"]


def test_a_users_folder_named_calib_gets_no_table(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    """The table of an export lies beside its bundle, that of a bundle too, and both are used."""
    images, engines = working_folder / "calib", working_folder / "engines"
    images.mkdir()
    (images / "digits.npz").write_bytes(digits.calibration.read_bytes())
    (working_folder / "own.onnx").write_bytes(small.read_bytes())
    exported = deploykit("export", "own.onnx", "--backend", "none", "-o", engines / "own-fp32")
    assert exported.code == 0, exported.err
    told = ("--data", images / "digits.npz", "--json")
    made = deploykit("calibrate", engines / "own-fp32", *told)
    assert made.data["path"] == str(engines / "own.calibration.json")
    called = quantize(working_folder / "own.onnx", "-o", engines / "own-int8", *UNTRIED,
                      calib=images / "digits.npz")  # fmt: skip
    assert called.data["calibration"]["story"].startswith("used again")
    assert [path.name for path in images.iterdir()] == ["digits.npz"]
    (engines / "own.calibration.json").unlink()
    for story in ("made now, there was none", "used again: "):
        called = quantize(working_folder / "own.onnx", "-o", engines / "own-int8", *UNTRIED,
                          calib=images / "digits.npz")  # fmt: skip
        assert called.data["calibration"]["story"].startswith(story)
    assert {path.name for path in engines.iterdir()} == {
        "own-fp32", "own-int8", "own.calibration.json",
    }  # fmt: skip
    assert {path.name for path in working_folder.iterdir()} == {"calib", "engines", "own.onnx"}


def test_a_project_keeps_its_tables_in_calib(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    (working_folder / "pyproject.toml").write_text("[tool.deploykit]\n", encoding="utf-8")
    (working_folder / "own.onnx").write_bytes(small.read_bytes())
    made = deploykit("calibrate", "own.onnx", "--data", digits.calibration, "--json")
    assert made.data["path"] == "calib/own.json"
    called = quantize(working_folder / "own.onnx", "-o", "engines/own", *UNTRIED,
                      calib=digits.calibration)  # fmt: skip
    assert called.data["calibration"]["story"].startswith("used again")
    assert [path.name for path in (working_folder / "engines").iterdir()] == ["own"]


def test_a_file_that_is_no_table_is_not_replaced(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    (working_folder / "own.onnx").write_bytes(small.read_bytes())
    (working_folder / "own.calibration.json").write_text("mine", encoding="utf-8")
    said = "exists and is not a calibration table, so it is not replaced"
    called = deploykit("calibrate", "own.onnx", "--data", digits.calibration)
    assert called.code == 1
    assert f"own.calibration.json {said}" in called.err
    refused = quantize(working_folder / "own.onnx", *UNTRIED, calib=digits.calibration)
    assert refused.code == 1
    assert f"own.calibration.json {said}" in refused.err
    named = deploykit("calibrate", "own.onnx", "--data", digits.calibration, "-o", "own.onnx")
    assert named.code == 1
    assert f"own.onnx {said}" in named.err
    assert (working_folder / "own.onnx").read_bytes() == small.read_bytes()
    assert (working_folder / "own.calibration.json").read_text(encoding="utf-8") == "mine"


def test_images_of_a_program_give_the_ranges_of_the_same_file(
    small: Path, digits: Digits, working_folder: Path
) -> None:
    with np.load(digits.calibration) as data:
        given = GivenImages(iter(data["images"]))
    options = CalibrationOptions(given, count=40, table=working_folder / "given.json")
    calibrated, _ = calibrate_target(str(small), options, SourceOptions())
    assert calibrated.to_dict()["source"] == "images given by a program"
    made = deploykit("calibrate", small, "--data", digits.calibration, "--calib-count", 40,
                     "-o", "file.json")  # fmt: skip
    assert made.code == 0, made.err
    assert CalibrationTable.load(working_folder / "file.json").amax == calibrated.table.amax


def test_calibrate_imports_no_torch(small: Path, digits: Digits, working_folder: Path) -> None:
    code = (
        "import sys\nfrom deploykit.cli import main\n"
        f"main(['calibrate', {str(small)!r}, '--data', {str(digits.calibration)!r}, '--json'],"
        " standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_calibrate_shows_every_range(small: Path, digits: Digits, working_folder: Path) -> None:
    shown = deploykit("calibrate", small, "--data", digits.calibration, "-o", "table.json", "-v")
    assert shown.code == 0, shown.err
    table = CalibrationTable.load(working_folder / "table.json")
    assert all(tensor in shown.out for tensor in table.amax)
    assert all(0 < ranges["percentile"] <= ranges["max"] for ranges in table.amax.values())


def test_bundle_keeps_its_table(chosen: Path) -> None:
    kept = CalibrationTable.load(chosen / "bundle" / "calibration.json")
    manifest = Bundle.open(chosen / "bundle").manifest
    assert manifest.calibration is not None
    assert manifest.calibration["digest"] == kept.digest
    assert kept.key.model_sha256 == manifest.onnx.parents[0]


def test_rest_may_be_fp32(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = quantize(fp32, "--rest", "fp32", *UNTRIED, calib=digits.calibration)
    assert called.data["conversion"]["layers"] == {"int8": 19, "fp16": 0, "fp32": 1}


def test_nodes_can_be_kept_out(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = quantize(fp32, "--exclude", "layer3.*", *UNTRIED, "--first-layer", "keep",
                      calib=digits.calibration)  # fmt: skip
    assert called.data["conversion"]["layers"]["int8"] == 12
    assert "layer3.*" in called.data["conversion"]["kept"]["layer3.0.conv1/Conv"]


def test_int8_without_images_is_refused(fp32: Path, working_folder: Path) -> None:
    called = deploykit("export", fp32, "--int8")
    assert called.code == 2
    assert "INT8 needs images to calibrate with: --calib PATH" in called.err
    assert "--calib random" in called.err


def test_images_without_int8_are_refused(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = deploykit("export", fp32, "--fp16", "--calib", digits.calibration)
    assert called.code == 2
    assert "--calib is for --int8 and --fp8 only" in called.err


def test_noise_is_used_only_by_name_and_the_manifest_says_so(
    small: Path, working_folder: Path
) -> None:
    called = quantize(small, "--calib-count", 64, *UNTRIED, calib="random")
    assert called.code == 0, called.err
    manifest = json.loads((working_folder / "bundle" / "manifest.json").read_text())
    assert manifest["calibration"]["source"] == "random noise"
    assert any("noise" in note for note in called.data["notes"])


def test_few_images_warn(small: Path, digits: Digits, working_folder: Path) -> None:
    called = quantize(small, "--calib-count", 20, *UNTRIED, calib=digits.calibration)
    assert any("only 20 calibration images" in note for note in called.data["notes"])


def test_unknown_method(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = quantize(fp32, "--method", "entrpy", calib=digits.calibration)
    assert called.code == 2
    assert "did you mean: entropy?" in called.err


@pytest.mark.parametrize("command", ["export", "calibrate"])
def test_quantized_model_is_refused(
    chosen: Path, digits: Digits, working_folder: Path, command: str
) -> None:
    model = chosen / "bundle" / "model.onnx"
    if command == "export":
        called = deploykit("export", model, "--int8", "--calib", digits.calibration)
    else:
        called = deploykit("calibrate", model, "--data", digits.calibration)
    assert called.code == 1
    assert "model.onnx is already int8" in called.err


def test_missing_images(fp32: Path, working_folder: Path) -> None:
    called = quantize(fp32, calib=working_folder / "nowhere")
    assert called.code == 1
    assert "nowhere" in called.err
    assert not (working_folder / "bundle").exists()


def test_a_bundle_has_weights_of_its_own(fp32: Path, digits: Digits, working_folder: Path) -> None:
    called = deploykit("calibrate", fp32, "--data", digits.calibration, "--weights", "imagenet")
    assert called.code == 2
    assert "brings its own weights, classes and size" in called.err


def test_a_definition_is_calibrated_for_its_export(working_folder: Path) -> None:
    (working_folder / "nets.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)\n"
        "    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), *last)\n",
        encoding="utf-8",
    )
    told = "nets.py:net", "--input-size", 32
    made = deploykit("calibrate", *told, "--data", "random", "--calib-count", 4)
    assert made.code == 0, made.err
    exported = deploykit("export", *told, "--backend", "none", "-o", "bundle")
    assert exported.code == 0, exported.err
    table = CalibrationTable.load(working_folder / "nets-net.calibration.json")
    table.require_model(str(card_in(working_folder / "bundle" / "model.onnx").graph_sha256))


def test_black_images_give_no_zero_scale(working_folder: Path) -> None:
    """Read as they are, they leave zeros in every tensor before the first bias."""
    np.savez(working_folder / "black.npz", images=np.zeros((64, 8, 8, 3), np.uint8))
    model = block_with_a_sensitive_end(working_folder / "block.onnx")
    as_they_are = ("--mean", "0,0,0", "--std", "1,1,1")
    called = quantize(model, *as_they_are, calib=working_folder / "black.npz")
    assert called.code == 0, called.err
    table = CalibrationTable.load(working_folder / "bundle" / "calibration.json")
    assert {"input", "b"} <= table.amax.keys()
    assert all(amax > 0 for ranges in table.amax.values() for amax in ranges.values())


def test_a_cifar_network_keeps_its_accuracy_in_int8(
    cifar_bundle: Path, shared_data: Path, working_folder: Path
) -> None:
    with np.load(shared_data / "cifar10_calib512.npz") as data:
        np.savez("calib.npz", images=data["images"][:128])  # 64 of them to compare the choices by
    exported = quantize(
        cifar_bundle / "reference.onnx", *options_of(get("resnet20").preprocessing, 32),
        "--calib-count", 64, calib="calib.npz",
    )  # fmt: skip
    assert exported.code == 0, exported.err
    images = shared_data / "cifar10_test1000.npz"
    found = deploykit("eval", "bundle", "--data", first(images, 500), "--json").data
    assert found["agreement"] >= 0.992
    assert found["top1"] >= 0.910 - 0.0041  # torch has 0.910 on these images


def first(path: Path, count: int) -> str:
    """A file with the first images of ``path``, in the current folder."""
    with np.load(path) as data:
        few = {name: data[name][:count] for name in ("images", "labels")}
        np.savez("few.npz", classes=data["classes"], **few)
    return "few.npz"


def fixed_batch(fp32: Path, batch: int, target: Path) -> Path:
    model = onnx.load(str(fp32))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for reshape in (node for node in model.graph.node if node.op_type == "Reshape"):
        shape = next(item for item in model.graph.initializer if item.name == reshape.input[1])
        shape.CopyFrom(onnx.numpy_helper.from_array(np.array([batch, -1]), shape.name))
    del model.graph.value_info[:]
    onnx.save(model, str(target))
    return target


def test_too_few_held_out_images_for_a_fixed_batch(
    fp32: Path, digits: Digits, working_folder: Path
) -> None:
    model = fixed_batch(fp32, 16, working_folder / "fixed.onnx")
    called = quantize(model, "--calib-count", 40, "--batch", 16, calib=digits.calibration)
    assert called.code == 1
    assert "too few for the model's batch of 16" in called.err
    assert "at least 80" in called.err
    assert not (working_folder / "bundle").exists()


def test_fixed_batch_is_quantized(fp32: Path, digits: Digits, working_folder: Path) -> None:
    model = fixed_batch(fp32, 16, working_folder / "fixed.onnx")
    called = quantize(model, "--batch", 16, *UNTRIED, "--bias-correction", "auto",
                      calib=digits.calibration)  # fmt: skip
    assert called.code == 0, called.err
    assert {batch["batch"] for batch in called.data["validation"][1]["batches"]} == {16}


def test_the_images_of_data_are_compared_too(small: Path, working_folder: Path) -> None:
    """Ranges of dark images clip all others, which held-out dark ones do not show."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    for name, images in (("bright", pixels), ("dark", pixels // 40)):
        np.savez(working_folder / f"{name}.npz", images=images)
    plain = ("--mean", "0,0,0", "--std", "1,1,1", "--data", "bright.npz")
    called = quantize(small, *plain, calib="dark.npz")
    assert called.code == 1
    assert (
        "the int8 graph on the given data does not compute what the original file computes"
        in called.err
    )
    assert "its ranges are of other images: calibrate on such as these, --calib" in called.err
    assert not (working_folder / "bundle").exists()
    called = quantize(small, *plain, calib="bright.npz")
    assert called.code == 0, called.err
    compared = [each["candidate"] for each in called.data["validation"]]
    assert compared[-2:] == ["the int8 graph", "the int8 graph on the given data"]

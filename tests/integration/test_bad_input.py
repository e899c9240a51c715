"""What a user may get wrong: one clear message, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.bundle.manifest import Bundle
from tests.bundles import write_classifier
from tests.cli import Called, deploykit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.digits import Digits

SMALL = ("resnet20", "--input-size", 8)


def leftovers(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    return list(folder.iterdir())


def export(tmp_path: Path, *arguments: object) -> Called:
    return deploykit("export", *arguments, "-o", tmp_path / "engines" / "bundle")


def assert_refused(called: Called, code: int, *messages: str) -> None:
    assert called.code == code, called.err
    for message in messages:
        assert message in called.err
    assert "Traceback" not in called.err
    assert called.out == ""


def test_unknown_architecture_shows_close_matches(tmp_path: Path) -> None:
    called = export(tmp_path, "resnet5O")
    assert_refused(called, 2, "unknown architecture 'resnet5O'", "did you mean:", "resnet50")


def test_unknown_command_shows_close_matches() -> None:
    assert_refused(deploykit("exprot"), 2, "unknown command 'exprot'", "did you mean: export?")


def test_unknown_backend(tmp_path: Path) -> None:
    called = export(tmp_path, *SMALL, "--backend", "tensorrt-rxt")
    assert_refused(called, 2, "unknown compiler 'tensorrt-rxt'", "did you mean: tensorrt-rtx")


def test_json_tells_an_error_as_one_object(tmp_path: Path) -> None:
    called = export(tmp_path, "resnet5O", "--json")
    assert called.code == 2
    assert called.data["error"]["kind"] == "UnknownNameError"
    assert "unknown architecture" in called.data["error"]["message"]


def test_debug_lets_the_traceback_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown architecture"):
        export(tmp_path, "resnet5O", "--debug")


def test_both_precisions_at_once(tmp_path: Path) -> None:
    assert_refused(export(tmp_path, *SMALL, "--fp16", "--fp32"), 2, "exclude each other")


@pytest.mark.parametrize("profile", ["8,1,32", "0", "1,2", "one", "-1,2,3"])
def test_batch_profile_out_of_order(tmp_path: Path, profile: str) -> None:
    called = export(tmp_path, *SMALL, f"--batch={profile}")
    assert_refused(called, 2, "batch profile", "for example --batch 1,8,32")


def test_weights_of_another_architecture(digits: Digits, tmp_path: Path) -> None:
    called = export(tmp_path, "resnet32", "--weights", digits.weights)
    assert_refused(called, 1, "missing", "layer1.3.conv1.weight")
    assert leftovers(tmp_path / "engines") == []


def test_weights_of_another_number_of_classes(digits: Digits, tmp_path: Path) -> None:
    called = export(tmp_path, *SMALL, "--num-classes", 7, "--weights", digits.weights)
    assert_refused(called, 1, "linear.weight", "(10, 64)", "(7, 64)")


def test_nan_in_the_weights(digits: Digits, tmp_path: Path) -> None:
    with np.load(digits.weights) as file:
        weights = dict(file)
    weights["conv1.weight"] = weights["conv1.weight"] * np.nan
    np.savez(tmp_path / "nan.npz", **weights)
    called = export(tmp_path, *SMALL, "--weights", tmp_path / "nan.npz")
    assert_refused(called, 1, "conv1.weight")
    assert "NaN" in called.err
    assert leftovers(tmp_path / "engines") == []


def test_truncated_onnx(fp16_bundle: Path, tmp_path: Path) -> None:
    content = (fp16_bundle / "reference.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    called = export(tmp_path, tmp_path / "cut.onnx")
    assert_refused(called, 1, "cut.onnx is truncated or not an ONNX file")
    assert leftovers(tmp_path / "engines") == []


def test_text_that_calls_itself_onnx(tmp_path: Path) -> None:
    (tmp_path / "note.onnx").write_text("not a model\n")
    called = export(tmp_path, tmp_path / "note.onnx")
    assert_refused(called, 1, "note.onnx", "ONNX")


def test_onnx_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(export(tmp_path, tmp_path / "no.onnx"), 1, "there is no file")


def test_onnx_that_is_already_fp16(fp16_bundle: Path, tmp_path: Path) -> None:
    called = export(tmp_path, fp16_bundle / "model.onnx", "--fp16")
    assert_refused(called, 1, "model.onnx is already fp16", "give it the FP32 model")


def test_external_data_that_leaves_the_folder(tmp_path: Path) -> None:
    model = classifier()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    called = export(tmp_path, tmp_path / "evil.onnx")
    assert_refused(called, 1, "'../../etc/passwd', outside its own folder", "this is refused")


def classifier() -> onnx.ModelProto:
    """1x1 convolution, ReLU, global average pooling."""
    weight = helper.make_tensor(
        "weight", TensorProto.FLOAT, (10, 3, 1, 1), np.ones((10, 3, 1, 1), np.float32).tobytes(),
        raw=True,
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="middle"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Flatten", ["c"], ["logits"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 10))],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_operator_that_the_compiler_lacks(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
    onnx.save(with_determinant(), tmp_path / "odd.onnx")
    called = export(tmp_path, tmp_path / "odd.onnx")
    assert_refused(called, 1, "middle")
    assert leftovers(tmp_path / "engines") == []


def with_determinant() -> onnx.ModelProto:
    """Det is standard ONNX, runs on onnxruntime, and no TensorRT compiler has it."""
    nodes = [
        helper.make_node("Det", ["input"], ["a"], name="middle"),
        helper.make_node("Flatten", ["a"], ["logits"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 3))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file where a folder should be")
    called = export(tmp_path, *SMALL)
    assert_refused(called, 1, "cannot write", "choose another place with -o")


def test_place_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "engines" / "bundle").mkdir(parents=True)
    (tmp_path / "engines" / "bundle" / "thesis.tex").write_text("years of work")
    called = export(tmp_path, *SMALL)
    assert_refused(called, 1, "exists and is not a bundle")
    assert (tmp_path / "engines" / "bundle" / "thesis.tex").read_text() == "years of work"


def test_full_disk(fp16_bundle: Path, tmp_path: Path) -> None:
    """The kernel refuses files over 100 kB, which is what a full disk looks like to a write."""

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    folder = tmp_path / "engines" / "bundle"
    original = str(fp16_bundle / "reference.onnx")
    command = [sys.executable, "-m", "deploykit", "export", original, "--backend", "none"]
    command += ["-o", str(folder)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert f"cannot write {folder}: File too large" in done.stderr
    assert leftovers(tmp_path / "engines") == []


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    original = write_classifier(tmp_path / "mine.onnx")
    called = export(tmp_path, original, "--backend", "none", "--labels", tmp_path / "labels.txt")
    assert_refused(called, 1, "there are 2 labels, the model has 4 classes")
    assert leftovers(tmp_path / "engines") == []


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    called = export(tmp_path, *SMALL, "--labels", tmp_path / "labels.txt")
    assert_refused(called, 1, "labels.txt: No such file or directory")


def test_options_of_architectures_with_a_file(fp16_bundle: Path, tmp_path: Path) -> None:
    called = export(tmp_path, fp16_bundle / "reference.onnx", "--num-classes", 5)
    assert_refused(called, 2, "leave out what is for definitions only: --num-classes")
    called = export(tmp_path, fp16_bundle / "reference.onnx", "--input-size", 64)
    assert_refused(called, 2, "where it leaves its size open: --height and --width")


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "engine"])
def test_one_changed_byte_is_found(fp16_copy: Path, name: str) -> None:
    path = next(fp16_copy.glob("*.engine")) if name == "engine" else fp16_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    called = deploykit("check", fp16_copy, "--json")
    assert called.code == 1
    assert called.data["ok"] is False
    expected = Bundle.open(fp16_copy).expected_files()[path.name]
    (problem,) = called.data["problems"]
    assert path.name in problem
    assert expected in problem
    refused = deploykit("build", fp16_copy)
    assert_refused(refused, 1, path.name, expected)


def test_manifest_edited_by_hand(fp16_copy: Path) -> None:
    path = fp16_copy / "manifest.json"
    path.write_text(path.read_text().replace('"precision": "fp16"', '"precision": "fp32"'))
    assert_refused(deploykit("build", fp16_copy), 1, "was changed after it was written")
    called = deploykit("check", fp16_copy, "--json")
    assert called.code == 1
    assert "was changed after it was written" in called.data["problems"][0]


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert_refused(deploykit("check", tmp_path), 1, "is not a bundle", "manifest.json")


def test_bundle_of_a_newer_deploykit(fp16_copy: Path) -> None:
    path = fp16_copy / "manifest.json"
    newer = json.loads(path.read_text()) | {"schema_version": 99}
    path.write_text(json.dumps(newer))
    called = deploykit("check", fp16_copy)
    assert_refused(called, 1, "has schema version 99", "reads 1", "install a later version")


def test_nothing_to_build(fp16_bundle: Path) -> None:
    called = deploykit("build", fp16_bundle, "--backend", "none")
    assert_refused(called, 2, "nothing to build with --backend none")


def test_no_compiler_installed(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['tensorrt_rtx'] = sys.modules['tensorrt'] = None\n"
    code = f"{hidden}from deploykit.cli import main; main()"
    command = [sys.executable, "-c", code, "export", *map(str, SMALL), "-o", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no engine compiler" in done.stderr
    assert "pip install tensorrt-rtx-cu13" in done.stderr
    assert "--backend none" in done.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("arguments", [("export", *SMALL), ("calibrate", "m.onnx", "--data", "d")])
def test_base_installation_names_what_is_missing(
    tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    (tmp_path / "m.onnx").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "one.png").touch()
    hidden = "import sys\nfor name in ('torch', 'onnx', 'onnx_ir'): sys.modules[name] = None\n"
    code = f"{hidden}from deploykit.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "which is not installed\ninstall it: pip install torch torchvision onnx" in done.stderr


def test_images_that_are_not_there(tmp_path: Path) -> None:
    called = export(tmp_path, *SMALL, "--data", tmp_path / "none")
    assert_refused(called, 1, str(tmp_path / "none"))
    assert leftovers(tmp_path / "engines") == []


def test_eval_without_labels(fp16_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    called = deploykit("eval", fp16_bundle, "--data", tmp_path / "images.npz")
    assert_refused(called, 1, "these images have no labels")


def test_inspect_of_nothing_known() -> None:
    assert_refused(deploykit("inspect", "alexnt"), 2, "did you mean: alexnet")


def test_onnx_that_takes_no_image(tmp_path: Path) -> None:
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2
    model.graph.initializer[0].dims[1] = 2
    model.graph.initializer[0].raw_data = np.ones((10, 2, 1, 1), np.float32).tobytes()
    onnx.save(model, tmp_path / "two.onnx")
    called = export(tmp_path, tmp_path / "two.onnx")
    assert_refused(called, 1, "two.onnx takes input float32 (n, 2, 8, 8)", "(batch, 3, H, W)")


def test_onnx_that_gives_nan_fails_with_strict_json(tmp_path: Path) -> None:
    model = classifier()
    onnx.save(model, tmp_path / "sound.onnx")
    model.graph.initializer[0].raw_data = np.full((10, 3, 1, 1), np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "nan.onnx")
    called = export(tmp_path, tmp_path / "nan.onnx", "--json")
    assert called.code == 1
    said = called.data["error"]["message"]
    assert said.startswith("the original file itself gives NaN or infinity for 8 of 8 images")
    compared = deploykit("validate", tmp_path / "nan.onnx", tmp_path / "sound.onnx", "--json")
    assert compared.code == 1
    assert "NaN" not in compared.out.replace("are NaN or infinite", "")
    assert compared.data["validation"]["batches"][0]["max_abs"] is None


def test_own_file_without_a_dynamic_batch_is_judged_at_its_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")
    model = classifier()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    called = export(tmp_path, tmp_path / "fixed.onnx", "--fp16", "--batch", "4", "--json")
    assert called.code == 0, called.err
    assert [batch["batch"] for batch in called.data["validation"][1]["batches"]] == [4, 4]
    assert called.data["engines"][0]["profile"]["max_batch"] == 4


@pytest.mark.parametrize("name", ["mine", "a.b", "réseau"])
def test_a_refusal_of_int8_names_the_users_network(name: str, tmp_path: Path) -> None:
    """And no file of a temporary folder, which the user never saw."""
    path = write_classifier(tmp_path / f"{name}.onnx", channels=4)
    called = deploykit("export", path, "--int8", "--calib", "random", "--backend", "none")
    assert called.code == 1
    assert f"nothing in {name} can be INT8\n" in called.err
    assert "reference.onnx" not in called.err

"""`deploykit export` as a user runs it, on a network that was really trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from deploykit.bundle.manifest import Bundle
from deploykit.models import get
from deploykit.verbs.check import check
from tests.bundles import write_classifier
from tests.cli import deploykit, options_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.digits import Digits

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: tensorrt-rtx-cu13")


def test_writes_a_whole_bundle(fp16_bundle: Path) -> None:
    files = sorted(path.name for path in fp16_bundle.iterdir())
    (engine,) = Bundle.open(fp16_bundle).manifest.engines
    assert files == sorted(
        [
            engine.file, "golden.npz", "labels.txt", "manifest.json", "model.cpu.onnx",
            "model.onnx", "reference.onnx",
        ]
    )  # fmt: skip
    assert Bundle.open(fp16_bundle).changed_files() == []
    assert Bundle.open(fp16_bundle).labels == tuple(f"digit {digit}" for digit in range(10))


def test_proves_the_precision_of_every_convolution(fp16_bundle: Path) -> None:
    (engine,) = Bundle.open(fp16_bundle).manifest.engines
    heavy = {
        kind: count
        for kind, count in engine.precision_census.items()
        if kind.startswith(("CONVOLUTION", "MATRIX_MULTIPLY"))
    }
    assert heavy == {"CONVOLUTION HALF": 19, "MATRIX_MULTIPLY HALF": 1}


def test_graph_keeps_fp32_inputs_and_outputs(fp16_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(fp16_bundle / "model.onnx"))
    assert [node.type for node in session.get_inputs()] == ["tensor(float)"]
    assert [node.type for node in session.get_outputs()] == ["tensor(float)"]


def test_manifest_tells_the_whole_history(fp16_bundle: Path, digits: Digits) -> None:
    manifest = json.loads((fp16_bundle / "manifest.json").read_text())
    assert manifest["onnx"]["parents"] == [manifest["files"]["reference.onnx"]]
    assert manifest["weights"]["source"] == digits.weights.name
    assert manifest["weights"]["trained"] is True
    assert [report["passed"] for report in manifest["validation"]] == [True, True]
    assert [batch["batch"] for batch in manifest["validation"][1]["batches"]] == [1, 2, 5]
    assert manifest["packages"]["numpy"] == np.__version__


def test_names_no_local_path(fp16_bundle: Path) -> None:
    for name in ("manifest.json", "model.onnx", "reference.onnx"):
        content = (fp16_bundle / name).read_bytes()
        assert os.fsencode(sys.prefix) not in content
        assert b"site-packages" not in content


def test_accuracy_holds_through_both_precisions(
    fp16_bundle: Path, digits: Digits, tmp_path: Path
) -> None:
    called = deploykit(
        "export", fp16_bundle / "reference.onnx", *options_of(get("resnet20").preprocessing, 8),
        "--backend", "none", "-o", tmp_path / "fp32",
    )  # fmt: skip
    assert called.code == 0, called.err
    in_fp32 = deploykit("eval", tmp_path / "fp32", "--data", digits.test, "--json").data
    in_fp16 = deploykit("eval", fp16_bundle, "--data", digits.test, "--json").data
    assert digits.accuracy > 0.9
    assert in_fp32["top1"] == pytest.approx(digits.accuracy)
    assert in_fp32["count"] == in_fp16["count"] == 597
    assert in_fp16["agreement"] >= 0.99
    assert in_fp16["top1"] == pytest.approx(digits.accuracy, abs=0.01)


def test_same_command_twice_gives_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    command = ("export", f"{tmp_path / 'small.py'}:net", "--input-size", 8, "--fp16")
    for name in ("first", "second"):
        called = deploykit(*command, "-o", tmp_path / name)
        assert called.code == 0, called.err
    first, second = (Bundle.open(tmp_path / name) for name in ("first", "second"))
    assert first.expected_files() == second.expected_files()
    assert len(first.manifest.engines) == 1


def test_json_is_one_object_with_the_promised_keys(tmp_path: Path) -> None:
    original = write_classifier(tmp_path / "mine.onnx")
    called = deploykit("export", original, "--json", "-o", tmp_path / "bundle")
    assert called.data.keys() >= {"bundle", "precision", "stages", "validation", "engines"}
    assert called.data["precision"] == "fp32"
    assert {"name", "seconds"} == called.data["stages"][0].keys()


def test_own_onnx_file_keeps_its_numbers(fp16_bundle: Path, tmp_path: Path) -> None:
    original = fp16_bundle / "reference.onnx"
    called = deploykit("export", original, "--fp16", "-o", tmp_path / "own", "--json")
    assert called.code == 0, called.err
    assert any("preprocessing is assumed" in note for note in called.data["notes"])
    batch = np.random.default_rng(0).standard_normal((3, 3, 8, 8), np.float32)
    outputs = [
        onnxruntime.InferenceSession(str(path)).run(None, {"input": batch})[0]
        for path in (original, tmp_path / "own" / "model.onnx")
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.02 * np.abs(outputs[0]).max())


def test_failed_validation_shows_the_figures_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.core.precision import FACTS, Limits

    strict = Limits(-1.0, 1.0, -1.0, 1.0, "nothing passes")
    for name, facts in FACTS.items():
        monkeypatch.setitem(FACTS, name, replace(facts, limits=strict))
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    called = deploykit(
        "export", f"{tmp_path / 'small.py'}:net", "--input-size", 8,
        "-o", tmp_path / "out" / "bundle",
    )  # fmt: skip
    assert called.code == 1
    assert "the fp32 graph does not compute what torch eager computes" in called.err
    assert "max abs" in called.err
    assert not list((tmp_path / "out").iterdir())


SMALL = """from collections import OrderedDict
from torch import nn

def net():
    layers = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "linear": nn.Linear(3, 5)}
    return nn.Sequential(OrderedDict(layers))
"""


def test_wrong_graph_of_the_first_exporter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.sources import torch_export

    right = torch_export._trace_program

    def wrong(*arguments: object) -> object:
        model = right(*arguments)  # type: ignore[arg-type]  # handed on as they came
        bias = next(v for v in model.graph.initializers.values() if "linear.bias" in str(v.name))
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + 1, name=bias.name)
        return model

    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(torch_export, "_trace_program", wrong)
    called = deploykit(
        "export", f"{tmp_path / 'small.py'}:net", "--input-size", 8, "--json", "--backend", "none",
        "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert called.data["conversion"]["exporter"] == "torchscript"
    assert any(note.startswith("torch.export was not used") for note in called.data["notes"])


def _start(original: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """An export of an ``.onnx``: it writes and moves files as every other, and imports no torch."""
    command = [sys.executable, "-m", "deploykit", "export", str(original), "--fp16"]
    return subprocess.Popen(
        [*command, *more, "-o", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_killed_export_leaves_nothing_and_the_next_one_is_clean(
    fp16_bundle: Path, tmp_path: Path
) -> None:
    folder, original = tmp_path / "engines" / "digits", fp16_bundle / "reference.onnx"
    process = _start(original, folder)
    while not list(folder.parent.glob(".digits.*.part/reference.onnx")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not folder.exists()
    called = deploykit("export", original, "--fp16", "-o", folder)
    assert called.code == 0, called.err
    assert check(folder).ok
    assert not list(folder.parent.glob("*.part"))
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]


def test_two_exports_at_once_leave_one_whole_bundle(fp16_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "digits"
    fp32, no_engine = fp16_bundle / "reference.onnx", ("--backend", "none")
    processes = [_start(fp32, folder, *no_engine) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert check(folder).ok
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]


def test_interrupted_export_leaves_nothing(fp16_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "digits"
    process = _start(fp16_bundle / "reference.onnx", folder)
    while not list(folder.parent.glob(".digits.*.part")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1
    assert b"Aborted" in error
    assert b"Traceback" not in error
    assert not list(folder.parent.iterdir())

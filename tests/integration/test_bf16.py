"""`--bf16` as a user meets it: exported, checked, inspected, and proven by the compiler."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import deploykit as library
from tests import own_files
from tests.cli import deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "mine.onnx").write_bytes(own_files.old(13).SerializeToString())
    called = deploykit(
        "export", tmp_path / "mine.onnx", "--bf16", "--backend", "none", "-o", tmp_path / "made"
    )
    assert called.code == 0, called.err
    return tmp_path / "made"


def test_a_bundle_runs_in_its_form_for_cpus(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["precision"] == "bf16"
    assert manifest["conversion"]["kept_heavy"] == 0
    assert {"model.onnx", "model.cpu.onnx", "reference.onnx"} <= manifest["files"].keys()
    assert deploykit("check", exported, "--json").data["ok"] is True
    for fast in (False, True):  # nothing but an engine computes the file itself
        with library.load(exported, device="cpu", fast=fast) as model:
            assert model.precision == "bf16"
            assert model.self_test().min_cosine > 0.999
    answer = deploykit("validate", exported, "--json")
    assert answer.data["validation"]["passed"] is True
    layers = deploykit("validate", exported, "--layers", "--json")
    assert layers.code == 0, layers.err
    found = layers.data["layers"]
    assert found["matched"] == found["of_reference"] > 3
    # Rounding of eight binary digits is seen at each: 55 dB, not the 140 of FP32.
    assert all(20 < value["sqnr_db"] < 80 for value in found["values"][1:])


def test_inspect_says_what_it_has_and_what_it_would_be(exported: Path) -> None:
    has = deploykit("inspect", exported, "--precision", "--json").data["precision"]
    plan = deploykit("inspect", exported / "reference.onnx", "--bf16", "--json")
    assert plan.code == 0, plan.err
    planned = plan.data["precision"]
    assert has["multiply_adds"] == planned["multiply_adds"]
    assert has["share"]["bf16"] == 1.0
    assert planned["magnitudes"]["limit"] is None
    text = deploykit("inspect", exported / "reference.onnx", "--bf16").out
    assert "stays FP32" not in text
    assert "BF16" in text


def test_no_gpu_before_ampere_has_it(exported: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    called = deploykit(
        "build", exported, "--backend", "tensorrt-rtx", "--compute-capability", "7.5"
    )
    assert called.code != 0
    assert "GPUs of compute capability 7.5 have no bf16 arithmetic\nexpected 8.0" in called.err


def test_the_compiler_proves_it(exported: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    called = deploykit("build", exported, "--backend", "tensorrt-rtx", "--json")
    assert called.code == 0, called.err
    (engine,) = json.loads((exported / "manifest.json").read_text())["engines"]
    assert engine["precision"] == "bf16"
    heavy = [key for key in engine["precision_census"] if key.split()[0] == "CONVOLUTION"]
    assert heavy == ["CONVOLUTION BF16"]
    assert engine["warnings"] == []


def test_a_benchmark_on_cpus_has_no_kernels_for_it(exported: Path, tmp_path: Path) -> None:
    called = deploykit(
        "bench", exported, "--bf16", "--backend", "ort", "--batch", "1",
        "--work", tmp_path / "work",
    )  # fmt: skip
    assert called.code != 0
    assert "ort cannot measure" in called.err
    assert "a converted file has the precision it has" in called.err


def test_what_compilers_do_not_compile_in_bf16_stays_fp32(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = graph(
        """net (float[batch,3,8,8] x) => (float[batch,4] y) {
            c = Conv <pads = [1,1,1,1]> (x, w)
            [swish] h = HardSwish (c)
            d = Conv (h, v)
            [mish] m = Mish (d)
            [up] u = ConvTranspose <strides = [2,2]> (m, t)
            [pool] l = LpPool <kernel_shape = [2,2], strides = [2,2]> (u)
            [whole] p = GlobalLpPool (l)
            f = Flatten (p)
            [norm] n = LpNormalization <axis = 1> (f)
            y = Gemm <transB = 1> (n, fc)
        }""",
        {
            "w": normal(8, 3, 3, 3),
            "v": normal(8, 8, 3, 3, seed=1),
            "t": normal(8, 8, 2, 2, seed=3),
            "fc": normal(4, 8, seed=2),
        },
    )
    save(model, tmp_path / "net.onnx")
    called = deploykit("export", tmp_path / "net.onnx", "--bf16", "-o", tmp_path / "made", "--json")
    assert called.code == 0, called.err
    kept = called.data["conversion"]["kept_fp32"]
    names = "swish", "mish", "up", "pool", "whole", "norm"
    assert kept == dict.fromkeys(names, "TensorRT does not compile it in BF16")
    (engine,) = called.data["engines"]
    assert engine["precision_census"]["CONVOLUTION BF16"] == 2
    assert engine["precision_census"]["DECONVOLUTION FLOAT"] == 1

"""`--fp8` as a user meets it: exported, judged, inspected, and proven by the compiler."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import deploykit as library
from tests.cli import deploykit
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path


def network(opset: int = 20) -> onnx.ModelProto:
    """A stem of three channels, a block that FP8 is for, and a small classifier."""
    model = graph(
        """net (float[batch,3,24,24] image) => (float[batch,5] logits) {
            [stem] s = Conv <pads = [1,1,1,1], strides = [2,2]> (image, w1)
            r = Relu (s)
            [one] a = Conv <pads = [1,1,1,1]> (r, w2)
            b = Relu (a)
            [two] c = Conv <pads = [1,1,1,1]> (b, w3)
            [add] d = Add (c, r)
            e = Relu (d)
            m = GlobalAveragePool (e)
            f = Flatten (m)
            [fc] logits = Gemm <transB = 1> (f, w4)
        }""",
        {
            "w1": normal(32, 3, 3, 3, scale=0.3),
            "w2": normal(32, 32, 3, 3, seed=1, scale=0.08),
            "w3": normal(32, 32, 3, 3, seed=2, scale=0.08),
            "w4": normal(5, 32, seed=3),
        },
    )
    model.opset_import[0].version = opset
    return model


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where tables are kept
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    save(network(), tmp_path / "mine.onnx")
    return tmp_path


def export(folder: Path, *arguments: object) -> list[object]:
    return [
        "export", folder / "mine.onnx", "--fp8", "--calib", folder / "images.npz",
        "--backend", "none", "-o", folder / "made", *arguments,
    ]  # fmt: skip


def test_a_bundle_and_its_judge(made: Path) -> None:
    called = deploykit(*export(made, "--json"))
    assert called.code == 0, called.err
    conversion, calibration = called.data["conversion"], called.data["calibration"]
    assert conversion["layers"] == {"fp8": 2, "fp16": 2, "fp32": 0}
    assert conversion["kept"]["stem"] == "3 to 32 channels are too few for FP8"
    assert calibration["method"] == "max"
    assert calibration["trials"][0]["candidate"] == "max"
    kept = {trial["candidate"] for trial in calibration["trials"]}
    assert "max, skips kept" in kept
    assert not any("percentile" in candidate for candidate in kept)
    bundle = made / "made"
    assert deploykit("check", bundle, "--json").data["ok"] is True
    for fast in (False, True):
        with library.load(bundle, device="cpu", fast=fast) as model:
            assert model.precision == "fp8"
            model.self_test()
    stored = onnx.load(bundle / "model.onnx").graph
    types = [t.data_type for t in stored.initializer]
    assert types.count(onnx.TensorProto.FLOAT8E4M3FN) >= 2
    heavy = {node.name: node for node in stored.node if node.op_type in {"Conv", "Gemm"}}
    assert set(heavy) == {"stem", "one", "two", "fc"}
    layers = deploykit("validate", bundle, "--layers", "--json")
    assert layers.code == 0, layers.err


def test_the_same_ranges_serve_int8(made: Path) -> None:
    first = deploykit(*export(made, "--json"))
    assert "made now" in first.data["calibration"]["story"]
    again = deploykit(
        "export", made / "mine.onnx", "--int8", "--calib", made / "images.npz",
        "--backend", "none", "-o", made / "int8", "--json",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert again.data["calibration"]["story"].startswith("used again")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--method", "entropy"), "--method entropy finds ranges for INT8's even steps"),
        (("--method", "mse"), "possible for --fp8: max, percentile"),
        (("--exclude", "o*", "--exclude", "t*"), "nothing in mine can be FP8"),
    ],
)
def test_what_fp8_has_not(given: tuple[str, ...], words: str, made: Path) -> None:
    called = deploykit(*export(made, *given))
    assert called.code != 0
    assert words in called.err


def test_layers_skips_and_biases_are_tried_as_for_int8(made: Path) -> None:
    options = ("--sensitive-layers", "keep", "--residual", "keep", "--bias-correction", "on")
    called = deploykit(*export(made, *options, "--json"))
    assert called.code == 0, called.err
    calibration = called.data["calibration"]
    assert calibration["policy"]["residual"] == "keep"
    assert calibration["trials"][-1]["candidate"].endswith("biases corrected")
    assert called.data["conversion"]["corrected_biases"] == 2
    assert called.data["conversion"]["kept"]["add"] == "residual additions are kept"
    text = deploykit(*export(made, *options, "-v")).out
    assert "2 biases corrected, 0 weights rounded together" in " ".join(text.split())


def test_without_images_it_says_what_to_give(made: Path) -> None:
    called = deploykit("export", made / "mine.onnx", "--fp8", "-o", made / "made")
    assert called.code != 0
    assert "FP8 needs images to calibrate with: --calib PATH" in called.err


def test_a_graph_of_opset_18_is_raised(made: Path) -> None:
    save(network(18), made / "mine.onnx")
    called = deploykit(*export(made, "--method", "percentile", "--json"))
    assert called.code == 0, called.err
    assert called.data["calibration"]["method"] == "percentile"
    assert onnx.load(made / "made" / "model.onnx").opset_import[0].version == 20


def test_inspect(made: Path) -> None:
    assert deploykit(*export(made)).code == 0
    has = deploykit("inspect", made / "made", "--precision", "--json").data["precision"]
    plan = deploykit("inspect", made / "mine.onnx", "--fp8", "--json").data["precision"]
    for key in ("multiply_adds", "share", "qdq_pairs", "fp8_weights", "int8_weights"):
        assert has[key] == plan[key], key
    # Two of 32 to 32 channels on 12 x 12 pixels, of 9 taps.
    assert has["multiply_adds"]["fp8"] == 2 * 32 * 32 * 9 * 12 * 12
    assert (has["fp8_weights"], has["int8_weights"], has["qdq_pairs"]) == (2, 0, 2)
    assert "only GPUs of compute capability 8.9 and later have FP8" in plan["notes"]
    text = deploykit("inspect", made / "mine.onnx", "--fp8").out
    assert "2 FP8 weights" in text
    assert "3 to 32 channels are too few for FP8" in text
    without = deploykit(
        "inspect", made / "mine.onnx", "--fp8", "--exclude", "o*", "--exclude", "t*"
    )
    assert "nothing of it can be FP8: an export with --fp8 refuses it" in without.out


def test_the_compiler_proves_it_where_there_is_fp8(made: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert deploykit(*export(made)).code == 0
    bundle = made / "made"
    called = deploykit("build", bundle, "--backend", "tensorrt-rtx", "--json")
    assert called.code == 0, called.err
    (engine,) = json.loads((bundle / "manifest.json").read_text())["engines"]
    assert engine["precision"] == "fp8"
    assert engine["precision_census"]["CONVOLUTION FP8"] == 2
    assert engine["precision_census"]["CONVOLUTION HALF"] == 1
    capabilities = [tuple(map(int, each.split("."))) for each in engine["compute_capabilities"]]
    assert min(capabilities) == (8, 9)
    refused = deploykit("build", bundle, "--backend", "tensorrt-rtx", "--compute-capability", "8.6")
    assert refused.code != 0
    assert "GPUs of compute capability 8.6 have no fp8 arithmetic\nexpected 8.9" in refused.err


def test_the_compiler_itself_refuses_older_gpus(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it cannot be compiled for 8.6 is the proof that FP8 is in the kernels."""
    pytest.importorskip("tensorrt_rtx")
    from deploykit.backends import CompileOptions
    from deploykit.backends.trt import targets
    from deploykit.backends.trt.builder import compile_onnx
    from deploykit.backends.trt.compiler import load_compiler
    from deploykit.core.errors import BuildError, UsageError

    assert deploykit(*export(made)).code == 0
    model, compiler = made / "made" / "model.onnx", load_compiler("tensorrt-rtx")
    compiled = compile_onnx(compiler, model, CompileOptions(compute_capabilities=("8.9", "12.0")))
    assert compiled.warnings == ()
    older = CompileOptions(compute_capabilities=("8.6",))
    with pytest.raises(UsageError, match=r"FP8, which GPUs of compute capability 8\.6 do not have"):
        compile_onnx(compiler, model, older)
    # Without our own look at the network the compiler is asked.
    monkeypatch.setattr(targets, "narrowest", lambda _network: ("", (0, 0)))
    with pytest.raises(BuildError, match="HW-specific datatypes: fp8"):
        compile_onnx(compiler, model, older)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_rest_may_be_bf16(precision: str, made: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    place = made / "rest"
    called = deploykit(
        "export", made / "mine.onnx", f"--{precision}", "--rest", "bf16",
        "--calib", made / "images.npz", "-o", place, "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    assert called.data["conversion"]["layers"]["bf16"] >= 1
    (engine,) = called.data["engines"]
    types = {key.split()[1] for key in engine["precision_census"]}
    assert types == {precision.upper(), "BF16"}
    assert json.loads((place / "manifest.json").read_text())["onnx"]["has_bf16"] is True
    # No CPU has kernels for it, so that --fast changes nothing.
    for fast in (False, True):
        with library.load(place, device="cpu", fast=fast) as model:
            assert model.self_test().min_cosine > 0.99
    for words in (("--layers",), ("--fast",)):
        compared = deploykit("validate", place, *words, "--json")
        assert compared.code == 0, compared.err
    shares = deploykit("inspect", place, "--precision", "--json").data["precision"]["share"]
    assert shares["bf16"] > 0
    refused = deploykit("build", place, "--backend", "tensorrt-rtx", "--compute-capability", "7.5")
    assert refused.code == 2
    lacking = "fp8" if precision == "fp8" else "bf16"
    assert f"GPUs of compute capability 7.5 have no {lacking} arithmetic" in refused.err

"""INT8 and FP8 of a small network of tokens: written-out LayerNorm and GELU, channels far apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from PIL import Image

from deploykit.bundle.manifest import MANIFEST, REFERENCE
from deploykit.precision.quantization.choice import WEIGHTS_GAIN_DB
from tests.cli import deploykit
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 24
NETWORK = """<ir_version: 8, opset_import: ["" : 14]>
g (float[n,3,32,32] images) => (float[n,10] logits) <int64[3] tokens> {
patches = Conv <kernel_shape = [8,8], strides = [8,8]> (images, w0)
flat = Reshape (patches, tokens) x = Transpose <perm = [0,2,1]> (flat)
m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) s = Pow (d, two) v = ReduceMean <axes = [-1]> (s)
e = Add (v, epsilon) r = Sqrt (e) q = Div (d, r) z = Mul (q, gain) h = Add (z, bias)
up = MatMul (h, w1) u = Add (up, b1) i = Div (u, root) f = Erf (i) o = Add (f, one) p = Mul (u, o)
a = Mul (p, half) down = MatMul (a, w2) y = Add (down, x)
mean = ReduceMean <axes = [1], keepdims = 0> (y) logits = Gemm (mean, w3) }"""


def constants() -> dict[str, np.ndarray]:
    gain = np.ones(WIDTH, np.float32)
    gain[[2, 9]] = 50, 30
    scalars = {"two": 2, "epsilon": 1e-5, "root": 2**0.5, "one": 1, "half": 0.5}
    return {
        "w0": normal(WIDTH, 3, 8, 8, seed=1) / 8,
        "tokens": np.array([0, WIDTH, -1]),
        "gain": gain,
        "bias": normal(WIDTH, seed=2),
        "w1": normal(WIDTH, 48, seed=3) / 5 / gain[:, None],
        "b1": normal(48, seed=4),
        "w2": normal(48, WIDTH, seed=5) / 7,
        "w3": normal(WIDTH, 10, seed=6),
        **{name: np.array(value, np.float32) for name, value in scalars.items()},
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    proto = onnx.parser.parse_model(NETWORK)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(data, name) for name, data in constants().items()
    )
    onnx.save(proto, folder / "tokens.onnx")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(60):
        pixels = random.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / "images" / f"{number}.png")
    return folder / "tokens.onnx"


def export(original: Path, name: str, *more: str) -> dict[str, Any]:
    folder = original.with_name(name)
    called = deploykit(
        "export", original, "--int8", "--calib", original.with_name("images"), "--backend", "none",
        "--first-layer", "int8", "--residual", "int8", "--sensitive-layers", "int8",
        "-o", folder, "--json", *more,
    )  # fmt: skip
    assert called.code == 0, called.err
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


def test_channels_are_equalised_and_the_noise_falls(original: Path) -> None:
    manifest = export(original, "auto")
    calibration = manifest["calibration"]
    assert set(calibration["equalised"].values()) <= {0.35, 0.5, 0.65, 0.8}
    assert "h" in calibration["equalised"]
    noise = {trial["candidate"]: trial["sqnr_db"] for trial in calibration["trials"]}
    plain = max(ratio for name, ratio in noise.items() if "," not in name)
    assert max(r for name, r in noise.items() if name.endswith(", equalised")) > plain + 3
    fused = onnx.load(original.with_name("auto") / REFERENCE)
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("LayerNormalization") == kinds.count("Gelu") == 1
    assert "Erf" not in kinds


def test_it_can_be_left_out(original: Path) -> None:
    manifest = export(original, "off", "--equalisation", "off")
    assert manifest["calibration"]["equalised"] == {}
    assert not any("equalised" in t["candidate"] for t in manifest["calibration"]["trials"])


def test_the_layers_of_an_equalised_bundle_compare_with_fp32(original: Path) -> None:
    folder = original.with_name("auto")
    called = deploykit("validate", original, folder, "--layers", "--json")
    assert called.code == 0, called.err


@pytest.mark.parametrize(("rounding", "is_tried"), [("auto", True), ("nearest", False)])
def test_fp8_tries_weights_that_are_rounded_together(
    original: Path, rounding: str, is_tried: bool
) -> None:
    folder = original.with_name(f"fp8-{rounding}")
    called = deploykit(
        "export", original, "--fp8", "--calib", original.with_name("images"), "--backend", "none",
        "--sensitive-layers", "int8", "--weight-rounding", rounding, "-o", folder, "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    trials = {t["candidate"]: t["sqnr_db"] for t in called.data["calibration"]["trials"]}
    tried = [name for name in trials if name.endswith("weights rounded together")]
    assert bool(tried) is is_tried
    gained = (
        is_tried
        and trials[tried[0]] - max(ratio for name, ratio in trials.items() if name not in tried)
        >= WEIGHTS_GAIN_DB
    )
    assert bool(called.data["conversion"]["weights_rounded_together"]) is gained

"""Networks with masks of -infinity, as a user exports them, beside onnxruntime on the original."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from PIL import Image

import deploykit as library
from tests.cli import deploykit
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, TOKENS = 32, 16
ATTENTION = """g (float[n,3,32,32] images) => (float[n,10] logits) {{
    patches = Conv <kernel_shape = [8,8], strides = [8,8]> (images, w0)
    flat = Reshape (patches, tokens)
    x = Transpose <perm = [0,2,1]> (flat)
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    keys = Transpose <perm = [0,2,1]> (k)
    products = MatMul (q, keys)
    scores = Mul (products, scale)
    {mask}
    p = Softmax (masked)
    a = MatMul (p, v)
    o = MatMul (a, wo)
    y = Add (o, x)
    mean = ReduceMean <keepdims = 0> (y, axis)
    logits = Gemm (mean, w3)
}}"""
ABOVE = np.triu(np.ones((TOKENS, TOKENS), bool), 1)
MASKS = {
    "where": "masked = Where (above, ninf, scores)",
    "added": "r = Reshape (mask, square) u = Unsqueeze (r, first) masked = Add (scores, u)",
    "whole rows": "masked = Where (rows, ninf, scores)",
}
GUARD = "s = Softmax (masked) c = IsNaN (s) p = Where (c, nought, s)"


def causal(mask: str) -> onnx.ModelProto:
    """A block of causal attention; PyTorch replaces the NaN of whole rows that are masked."""
    constants = {
        "w0": normal(WIDTH, 3, 8, 8, seed=1) / 8,
        "tokens": np.array([0, WIDTH, -1]),
        "wq": normal(WIDTH, WIDTH, seed=2) / 6,
        "wk": normal(WIDTH, WIDTH, seed=3) / 6,
        "wv": normal(WIDTH, WIDTH, seed=4) / 6,
        "wo": normal(WIDTH, WIDTH, seed=5) / 6,
        "w3": normal(WIDTH, 10, seed=6),
        "scale": np.array(WIDTH**-0.5, np.float32),
        "axis": np.array([1]),
        "above": ABOVE,
        "ninf": np.array(-np.inf, np.float32),
        "mask": np.where(ABOVE, -np.inf, 0).astype(np.float32).reshape(-1),
        "square": np.array([TOKENS, TOKENS]),
        "first": np.array([0]),
        "rows": ~ABOVE.T,
        "nought": np.array(0, np.float32),
    }
    text = ATTENTION.format(mask=MASKS[mask])
    if mask == "whole rows":
        text = text.replace("p = Softmax (masked)", GUARD)
    read = {name for node in graph(text).graph.node for name in node.input}
    return graph(text, {name: data for name, data in constants.items() if name in read})


def pooled() -> onnx.ModelProto:
    """Two convolutions with a padded pooling between them, as other frameworks write it."""
    return graph(
        """g (float[n,3,32,32] images) => (float[n,10] logits) {
            c = Conv <pads = [1,1,1,1]> (images, w0)
            p = Pad (c, pads, ninf)
            q = MaxPool <kernel_shape = [3,3], strides = [2,2]> (p)
            d = Conv <pads = [1,1,1,1]> (q, w1)
            r = Relu (d)
            m = GlobalAveragePool (r)
            f = Flatten (m)
            logits = Gemm (f, w3)
        }""",
        {
            "w0": normal(WIDTH, 3, 3, 3, seed=1) / 5,
            "w1": normal(WIDTH, WIDTH, 3, 3, seed=2) / 17,
            "w3": normal(WIDTH, 10, seed=6),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "ninf": np.array(-np.inf, np.float32),
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images to calibrate with."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(24):
        blocks = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((32, 32), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def exported(source: onnx.ModelProto, precision: str, folder: Path) -> Path:
    path, made = save(source, folder / "mine.onnx"), folder / precision
    given = ["--calib", folder / "images"] if precision in {"int8", "fp8"} else []
    called = deploykit("export", path, f"--{precision}", *given, "--backend", "none", "-o", made)
    assert called.code == 0, called.err
    return made


LEAST_COSINE = {"fp16": 0.99999, "bf16": 0.9999, "int8": 0.99, "fp8": 0.98}
CASES = [
    *(("where", precision) for precision in LEAST_COSINE),
    ("added", "fp16"),
    ("added", "int8"),
    ("whole rows", "fp16"),
    ("whole rows", "int8"),
    ("pooled", "fp16"),
    ("pooled", "int8"),
]


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_it_answers_as_the_original_does(network: str, precision: str, folder: Path) -> None:
    source = pooled() if network == "pooled" else causal(network)
    made = exported(source, precision, folder)
    with np.load(made / "golden.npz") as golden:
        images = golden["input"]
    expected = run_ort(source, {"images": images})["logits"]
    with library.load(made, device="cpu") as model:
        got = model.run(images)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((got * expected).sum(axis=1) / norms).min() >= LEAST_COSINE[precision]
    written = {file: onnx.load(made / file) for file in ("model.onnx", "model.cpu.onnx")}
    for model_proto in written.values():
        assert any(holds_minus_infinity(each) for each in model_proto.graph.initializer)
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["conversion"]["kept_heavy"] == 0
    layers = deploykit("validate", made, "--layers", "--json")
    assert layers.code == 0, layers.err
    assert layers.data["layers"]["faults"] == []
    masked = {value["name"]: value for value in layers.data["layers"]["values"]}
    name = "p" if network == "pooled" else "masked"
    assert any(value["infinite_alike"] > 0 for key, value in masked.items() if key.startswith(name))


def holds_minus_infinity(tensor: onnx.TensorProto) -> bool:
    data: Any = onnx.numpy_helper.to_array(tensor)
    is_float = data.dtype.kind in "fV" and data.dtype.itemsize > 1
    return is_float and bool(np.isneginf(data.astype(np.float32)).any())


def test_a_row_that_is_masked_as_a_whole_is_refused(folder: Path) -> None:
    source = causal("where")
    for tensor in source.graph.initializer:
        if tensor.name == "above":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones_like(ABOVE), "above"))
    path = save(source, folder / "mine.onnx")
    called = deploykit("export", path, "--fp16", "--backend", "none", "-o", folder / "made")
    assert called.code == 1
    assert "the original file itself gives NaN or infinity" in called.err
    assert not (folder / "made").exists()

"""What FP16 has no digits for: small differences, and values that are nowhere large enough.

The oracle is the user's own file on onnxruntime, against the FP16 graph that the export wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import deploykit
from tests import cli
from tests.graphs import run_ort
from tests.small_tails import network, original, pictures

if TYPE_CHECKING:
    from pathlib import Path

ONE = {"one": np.array(1, np.float32)}
LOGIT = """l0 = Gemm <transB = 1> (f, k4)  l = Mul (l0, far)  s = Sigmoid (l)
           t = Clip (s, low, high)  q = Sub (one, t)  o = Div (t, q)  y = Log (o)"""
"""A probability of at most 0.999999 back to its logit: 1 - 0.999999 is 0 in FP16."""

DISTANCE = """b = Add (f, one)  d = Mul (b, far)  d2 = Mul (d, d)  a = Add (d2, one)
              q = Div (one, a)  y = Gemm <transB = 1> (q, k4)"""
"""1 / (1 + d^2) of large distances: all below 6.1e-5."""

LENGTH = """d = Mul (r, far)  d2 = Mul (d, d)  s = ReduceSum <keepdims = 1> (d2, channel)
            e = Sqrt (s)  m = Max (e, tiny)  n = Div (d, m)
            u = ReduceMean <keepdims = 0> (n, places)  y = Gemm <transB = 1> (u, k4)"""
"""Vectors of a small length made 1: their squares, each below 6e-8, are 0 in FP16."""

DEVIATION = """d = Mul (r, far)  a = ReduceMean <keepdims = 1> (d, channel)  b = Sub (d, a)
               b2 = Pow (b, two)  s = ReduceMean <keepdims = 1> (b2, channel)  t = Add (s, tiny)
               e = Sqrt (t)  n = Div (b, e)  n2 = Mul (n, n)
               u = ReduceMean <keepdims = 0> (n2, places)  y = Gemm <transB = 1> (u, k4)"""

DENSITY = """d = Mul (f, far)  o = Neg (d)  p = Exp (o)  s = ReduceSum <keepdims = 1> (p, channel)
             t = Add (s, tiny)  l = Log (t)  y = Mul (l, weights)"""
"""The logarithm of a sum of exponentials, each of which is 0 in FP16."""

RATIO = """d = Mul (f, f)  s = ReduceMean <keepdims = 1> (d, channel)  t = Add (s, tiny)
           e = ReduceMean <keepdims = 1> (f, channel)  q = Add (e, tiny)  o = Div (q, t)
           l = Log (o)  h = Add (l, five)  y = Mul (h, weights)"""
"""1 of a black image, whose two guards are all that is left."""

VARIANCE = """d = Mul (r, far)  b = BatchNormalization <epsilon = 1e-10> (d, s, z, z, v)
              u = GlobalAveragePool (b)  h = Flatten (u)  y = Gemm <transB = 1> (h, k4)"""
"""A deviation of 1e-5, whose square is 0 in FP16."""

AXES = {"channel": [1], "places": [2, 3]}


def exported(model: Path, folder: Path) -> Path:
    """The FP16 bundle of a network of pixels from 0 to 1, compared on the images of ``folder``."""
    out = folder / "out"
    options = ("--mean", "0,0,0", "--std", "1,1,1", "--resize", "16x16", "--head", "raw")
    called = cli.deploykit(
        "export", model, "--fp16", "--backend", "none", "-o", out, *options, "--json",
        "--data", folder / "images",
    )  # fmt: skip
    assert called.code == 0, called.err
    return out


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (LENGTH, {"far": 5e-3, "tiny": 1e-12}),
        (DEVIATION, {"far": 5e-3, "tiny": 1e-12, "two": 2.0}),
        (DENSITY, {"far": 10.0, "tiny": 1e-30}),
        (RATIO, {"tiny": 1e-9, "five": 5.0}),
    ],
)
def test_what_a_guarded_number_is_made_of_stays_fp32(
    tmp_path: Path, nodes: str, weights: dict[str, float]
) -> None:
    """On other images than those of the export too, dark ones among them."""
    arrays = {name: np.array(value, np.float32) for name, value in weights.items()}
    arrays |= {name: np.array(value) for name, value in AXES.items() if name in nodes}
    arrays |= {"weights": np.array([[1, 2, 3, -1]], np.float32)}
    model = network(nodes, "float[N, 4] y", tmp_path, "net", **arrays)
    pictures(tmp_path / "images", 8)
    out = exported(model, tmp_path)
    others = np.random.default_rng(9).uniform(0, 1, (40, 3, 16, 16)).astype(np.float32)
    others *= np.logspace(-2.5, 0, len(others), dtype=np.float32)[:, None, None, None]
    others[0] = 0
    wanted = run_ort(model.read_bytes(), {"x": others})["y"]
    with deploykit.load(out, device="cpu") as loaded:
        found = loaded.run(others)
    scale = np.maximum(np.abs(wanted).max(axis=1, keepdims=True), 1e-3)
    assert float((np.abs(found - wanted) / scale).max()) < 0.02


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        (
            LOGIT,
            {"far": 40.0, "low": 1e-6, "high": 1 - 1e-6},
            "a difference that FP16 loses",
        ),
        (DISTANCE, {"far": 2e3}, "which FP16 loses"),
        (
            VARIANCE,
            {"far": 1e-4, "v": [1e-10] * 16, "s": [1.0] * 16, "z": [0.0] * 16},
            "v falls to 1e-10, which FP16 loses",
        ),
    ],
)
def test_it_stays_fp32_and_the_answers_are_right(
    tmp_path: Path, nodes: str, weights: dict[str, float | list[float]], reason: str
) -> None:
    arrays = {name: np.array(value, np.float32) for name, value in weights.items()}
    model = network(nodes, "float[N, 4] y", tmp_path, "net", **ONE, **arrays)
    images = pictures(tmp_path / "images", 6)
    out = exported(model, tmp_path)
    batch = np.stack([np.asarray(Image.open(path), np.float32) / 255 for path in images])
    with deploykit.load(out, device="cpu") as loaded:
        found = loaded.run(batch.transpose(0, 3, 1, 2).copy())
        kept = loaded.manifest.conversion["kept_fp32"].values()
    (wanted,) = original(model, images)
    scale = np.abs(wanted).max(axis=1, keepdims=True)
    assert float((np.abs(found - wanted) / scale).max()) < 0.02
    assert any(reason in each for each in kept)

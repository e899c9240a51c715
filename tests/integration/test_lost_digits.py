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


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        (
            LOGIT,
            {"far": 40.0, "low": 1e-6, "high": 1 - 1e-6},
            "a difference that FP16 loses",
        ),
        (DISTANCE, {"far": 2e3}, "which FP16 loses"),
    ],
)
def test_it_stays_fp32_and_the_answers_are_right(
    tmp_path: Path, nodes: str, weights: dict[str, float], reason: str
) -> None:
    arrays = {name: np.array(value, np.float32) for name, value in weights.items()}
    model = network(nodes, "float[N, 4] y", tmp_path, "net", **ONE, **arrays)
    images, out = pictures(tmp_path / "images", 6), tmp_path / "out"
    options = ("--mean", "0,0,0", "--std", "1,1,1", "--resize", "16x16", "--head", "raw")
    called = cli.deploykit(
        "export", model, "--fp16", "--backend", "none", "-o", out, *options, "--json",
        "--data", tmp_path / "images",
    )  # fmt: skip
    assert called.code == 0, called.err
    batch = np.stack([np.asarray(Image.open(path), np.float32) / 255 for path in images])
    with deploykit.load(out, device="cpu") as loaded:
        found = loaded.run(batch.transpose(0, 3, 1, 2).copy())
        kept = loaded.manifest.conversion["kept_fp32"].values()
    (wanted,) = original(model, images)
    scale = np.abs(wanted).max(axis=1, keepdims=True)
    assert float((np.abs(found - wanted) / scale).max()) < 0.02
    assert any(reason in each for each in kept)

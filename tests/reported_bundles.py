"""Small bundles with everything that a report shows: FP16, INT8, and one under a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import deploykit
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = """net (float[N, 3, 8, 8] x) => (float[N, 4] logits) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w1)
    [relu] b = Relu (a)
    [middle] c = Conv <pads = [1,1,1,1]> (b, w2)
    [relu2] d = Relu (c)
    [second] e = Conv <pads = [1,1,1,1]> (d, w3)
    [mean] p = GlobalAveragePool (e)
    [flat] f = Flatten (p)
    [last] logits = Gemm <transB = 1> (f, w4, bias)
}"""
WEIGHTS = {
    "w1": normal(64, 3, 3, 3, seed=1, scale=0.2),
    "w2": normal(64, 64, 3, 3, seed=2, scale=0.05),
    "w3": normal(64, 64, 3, 3, seed=3, scale=0.05),
    "w4": normal(4, 64, seed=4, scale=0.2),
}
PRECISIONS = ("fp16", "int8", "auto")
IMAGES = "images.npz"


def make_reported(folder: Path) -> None:
    """Exports of one untrained network, whose answers to noise are near a tie."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3), np.uint8)
    # About 0 and 1, as the usual preparation gives; each class is the best of a quarter or so.
    prepared = ((pixels / 255 - 0.45) / 0.225).transpose(0, 3, 1, 2).astype(np.float32)
    blank = graph(NETWORK, {**WEIGHTS, "bias": np.zeros(4, np.float32)})
    middle = run_ort(blank, {"x": prepared})["logits"].mean(axis=0)
    save(graph(NETWORK, {**WEIGHTS, "bias": -middle}), folder / "net.onnx")
    np.savez(folder / IMAGES, images=pixels)
    for precision in PRECISIONS:
        calibrated, is_auto = precision != "fp16", precision == "auto"
        deploykit.export(
            folder / "net.onnx",
            precision=precision,
            backend="none",
            output=folder / precision,
            quiet=True,
            data=folder / IMAGES,
            labels=["red", "green", "blue", "none"],
            calib=folder / IMAGES if calibrated else None,
            calib_count=32,
            max_drop="60%" if is_auto else None,
            gpu="L4" if is_auto else None,
        )

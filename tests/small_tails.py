"""Small networks with all kinds of ends, and what onnxruntime alone makes of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from PIL import Image

from tests.graphs import normal, save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

SIZE = 16
"""Pixels of a side."""

BODY = """
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)
    g = GlobalAveragePool (r)  f = Flatten (g)"""
WIDE = 16


def network(nodes: str, outputs: str, folder: Path, name: str = "net", **weights: Array) -> Path:
    """A file of `BODY` and ``nodes`` behind it, which may use ``f`` (N, 16), ``r`` and ``k<n>``.

    ``k1`` to ``k9`` are weights (n, 16) of as many classes, scaled so that answers differ.
    """
    text = f'<ir_version: 9, opset_import: ["" : 20]> {name} (float[N, 3, {SIZE}, {SIZE}] x) => ({outputs}) {{{BODY} {nodes}}}'  # noqa: E501 - one line, as the parser wants it
    model = onnx.parser.parse_model(text)
    known = {f"k{n}": normal(n, WIDE, seed=n, scale=3.0) for n in range(1, 10)}
    stored = {"w": normal(WIDE, 3, 3, 3, seed=20, scale=0.5), **known, **weights}
    used = {given for each in model.graph.node for given in each.input}
    for key in used & stored.keys():
        model.graph.initializer.append(onnx.numpy_helper.from_array(stored[key], key))
    return save(model, folder / f"{name}.onnx")


def picture(folder: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(pixels).save(path)
    return path


def pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [picture(folder, seed) for seed in range(count)]


def original(model: Path, images: Sequence[Path]) -> list[Array]:
    """All outputs of the user's own file on onnxruntime, for images that were decoded here."""
    rows = [np.asarray(Image.open(path), np.float32).transpose(2, 0, 1) / 255 for path in images]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {"x": np.stack(rows)})
    return found

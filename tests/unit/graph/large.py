"""A network of kilobytes that is treated as if it had gigabytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.core.precision import Precision
from deploykit.graph import read_model, tidy, write_model
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.core.artifacts import OnnxArtifact

LIMIT = 4000
"""Bytes: less than the two large weights have together."""

IMAGES = normal(2, 3, 8, 8, seed=5)

WEIGHTS = {
    "w": normal(16, 3, 3, 3, seed=1),
    "b": normal(16, seed=2),
    "v": normal(5, 1024, seed=3, scale=0.1),
}
"""w has 1,728 bytes, v 20,480; b with 64 stays in the graph."""

TEXT = """net (float[N,3,8,8] x) => (float[N,5] y) {
    c = Conv <pads = [1,1,1,1]> (x, w, b)
    r = Relu (c)
    f = Flatten (r)
    y = Gemm <transB = 1> (f, v)
}"""


def network(folder: Path) -> ir.Model:
    model = read_model(save(graph(TEXT, WEIGHTS), folder / "given.onnx"))
    tidy(model, rename=False)
    return model


def two_files(folder: Path) -> OnnxArtifact:
    return write_model(network(folder), folder / "model.onnx", Precision.FP32, ("p",), limit=LIMIT)

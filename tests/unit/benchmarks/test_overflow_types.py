"""Overflow that is made changes no answer in FP32, and keeps nodes from FP16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.overflow_types import beyond_fp16, pairs, table, variants
from deploykit.graph import OPSET_FOR_BF16, read_model, tidy_in_opset
from tests.graphs import graph, normal, run_ort, save, whole

if TYPE_CHECKING:
    from pathlib import Path

NET = """net (float[batch,3,6,6] x) => (float[batch,4] y) {
    [one] a = Conv (x, w, b)
    r = Relu (a)
    [two] c = Conv (r, v)
    s = Relu (c)
    m = GlobalAveragePool (s)
    f = Flatten (m)
    [head] y = Gemm <transB = 1> (f, fc)
}"""
WEIGHTS = {
    "w": normal(8, 3, 3, 3),
    "b": normal(8, seed=1),
    "v": normal(8, 8, 3, 3, seed=2),
    "fc": normal(4, 8, seed=3),
}


def test_the_nodes_between_the_scales_are_kept_and_the_answers_stay(tmp_path: Path) -> None:
    image = normal(2, 3, 6, 6, seed=4)
    path = save(graph(NET, WEIGHTS), tmp_path / "net.onnx")
    model = tidy_in_opset(read_model(path), OPSET_FOR_BF16)
    assert [(one.name, two.name) for one, two in pairs(model)] == [("one", "two")]
    scaled = beyond_fp16(model, 1)
    from deploykit.graph.external_weights import split

    before = run_ort(graph(NET, WEIGHTS), {"x": image})["y"]
    after = run_ort(whole(split(scaled, "net")), {"x": image})["y"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    kept, graphs = variants(scaled, [image])
    assert kept == 3  # both convolutions, and the Relu between them
    types = {
        name: {value.dtype.name for node in each.graph for value in node.outputs if value.dtype}
        for name, each in graphs.items()
    }
    assert "BFLOAT16" not in types["FP32"]
    assert {"BFLOAT16", "FLOAT16"} <= types["BF16"]
    assert "FLOAT16" not in types["BF16, as all the others"]
    assert table([]).startswith("| blocks beyond FP16 |")

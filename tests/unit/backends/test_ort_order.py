"""A graph that reduces each value to numbers takes the memory of a few values, not of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MEASURED = """
import numpy as np, onnx_ir as ir
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.graph import expose_magnitudes, tidy
from tests.graphs import graph
from tests.peak_memory import peak_bytes

nodes = "".join(f"v{i + 1} = Softmax (v{i})\\n" for i in range(COUNT))
text = f"net (float[n,1024,1024] v0) => (float[n,1024,1024] y) {{ {nodes} y = Relu (v{COUNT}) }}"
model = ir.from_proto(graph(text, {}))
tidy(model, rename=False)
content, _ = expose_magnitudes(model)
images = np.ones((4, 1024, 1024), np.float32)
with OrtRunner(content, GraphOptions(in_order=True)) as runner:
    before = peak_bytes()
    runner.run({"v0": images})
    print(peak_bytes() - before)
"""


def test_values_are_let_go_of() -> None:
    count, mib_each = 24, 16
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.replace("COUNT", str(count))],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) / 2**20 < count * mib_each / 2

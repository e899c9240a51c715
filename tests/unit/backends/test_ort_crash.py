from __future__ import annotations

import numpy as np

from deploykit.backends.ort import OrtRunner
from tests.graphs import graph, normal


def test_half_precision_attention_does_not_end_the_process() -> None:
    """onnxruntime dies of this graph in its default settings, the test's process with it."""
    weight = normal(16, 48).astype(np.float16)
    model = graph(
        """g (float16[batch,9,16] x) => (float16[9,batch,48] y) {
            turned = Transpose <perm = [1, 0, 2]> (x)
            y = MatMul (turned, weight)
        }""",
        {"weight": weight},
    )
    images = normal(2, 9, 16, seed=1).astype(np.float16)
    with OrtRunner(model.SerializeToString()) as runner:
        got = runner.run({"x": images})["y"]
    expected = np.swapaxes(images, 0, 1).astype(np.float32) @ weight.astype(np.float32)
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=0.01, atol=0.05)

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from deploykit.graph.matrix_product import matrix_product


def test_the_graph_multiplies_by_its_constant() -> None:
    random = np.random.default_rng(3)
    left, right = random.random((5, 7), np.float32), random.random((7, 4), np.float32)
    session = ort.InferenceSession(matrix_product(right), providers=["CPUExecutionProvider"])
    (product,) = session.run(["product"], {"left": left})
    np.testing.assert_allclose(product, left @ right, rtol=1e-5)

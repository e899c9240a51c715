from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.graphs import normal
from tests.unit.graph.costing import cost

if TYPE_CHECKING:
    from pathlib import Path

FUSIONS = [
    (
        "a BatchNorm joins its convolution and leaves one bias",
        """b = Conv (x, k) n = BatchNormalization (b, one, one, one, one) y = Relu (n)""",
        [("Conv", "BatchNormalization", "Relu")],
        4 * (16 + 4),
    ),
    (
        "a BatchNorm of its own is a scale and a bias",
        """b = MaxPool <kernel_shape = [1,1]> (x)
           n = BatchNormalization (b, one, two, one, one) y = Relu (n)""",
        [("MaxPool",), ("BatchNormalization", "Relu")],
        4 * 8,
    ),
    (
        "x * sigmoid(x) reads its x twice",
        """b = Conv (x, k) s = Sigmoid (b) y = Mul (b, s)""",
        [("Conv", "Sigmoid", "Mul")],
        4 * 16,
    ),
    (
        "a value that another kernel needs is still fused when it is the last of its kernel",
        """b = Conv (x, k) r = Relu (b) c = Conv (r, k) y = Add (c, r)""",
        [("Conv", "Relu"), ("Conv", "Add")],
        4 * 16 * 2,
    ),
    (
        "a value in the middle that another kernel needs ends its kernel",
        """b = Conv (x, k) r = Relu (b) c = Conv (b, k) y = Add (c, r)""",
        [("Conv",), ("Relu",), ("Conv", "Add")],
        4 * 16 * 2,
    ),
    (
        "the later of two convolutions takes the addition",
        """b = Conv (x, k) c = Conv (x, k) s = Add (b, c) y = Relu (s)""",
        [("Conv",), ("Conv", "Add", "Relu")],
        4 * 16 * 2,
    ),
    (
        "a gate of one number per channel stays apart from what it scales",
        """b = Conv (x, k) p = GlobalAveragePool (b) g = Conv (p, k) s = Sigmoid (g)
           y = Mul (b, s)""",
        [("Conv",), ("GlobalAveragePool",), ("Conv", "Sigmoid"), ("Mul",)],
        4 * 16 * 2,
    ),
    (
        "changes of shape vanish",
        """f = Reshape (x, flat) r = Relu (f) q = Reshape (r, back) t = Identity (q) y = Neg (t)""",
        [("Relu",), ("Neg",)],
        0,
    ),
]


@pytest.mark.parametrize(
    ("nodes", "kinds", "weight_bytes"), [case[1:] for case in FUSIONS], ids=[c[0] for c in FUSIONS]
)
def test_fusions(
    tmp_path: Path, nodes: str, kinds: list[tuple[str, ...]], weight_bytes: int
) -> None:
    constants = {
        "k": normal(4, 4, 1, 1),
        "one": np.ones(4, np.float32),
        "two": np.full(4, 2, np.float32),
        "flat": np.array([1, 256]),
        "back": np.array([1, 4, 8, 8]),
    }
    found = cost(tmp_path, f"g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ {nodes} }}", constants)
    assert [layer.kinds for layer in found.layers] == kinds
    assert sum(layer.weight_bytes for layer in found.layers) == weight_bytes

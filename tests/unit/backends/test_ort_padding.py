"""A pooling behind zeros, which onnxruntime would make one node that ignores them."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from tests.graphs import graph, normal


@pytest.mark.parametrize("optimise", [True, False])
def test_a_maximum_sees_the_zeros_around_negative_values(*, optimise: bool) -> None:
    model = graph(
        """g (float[batch,2,8,8] x) => (float[batch,2,4,4] y) {
            padded = Pad <mode = "constant"> (x, pads)
            y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (padded)
        }""",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
    )
    images = -np.abs(normal(3, 2, 8, 8)) - 1
    with OrtRunner(model.SerializeToString(), GraphOptions(optimise=optimise)) as runner:
        got = runner.run({"x": images})["y"]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = windows[:, :, ::2, ::2].max(axis=(4, 5))
    assert not expected[:, :, 0].any()  # the first row is next to the zeros
    np.testing.assert_array_equal(got, expected)

"""Ranges of channels: which rows of a value belong to which image."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.backends.ort import OrtRunner
from deploykit.core.progress import SilentProgress
from deploykit.graph.activations import expose_named
from deploykit.precision.quantization.equalising import observe
from tests.graphs import model_of, normal

SHAPES = {
    "image by image": "w = Reshape (x, whole) y = Relu (w)",
    "four windows of an image": "w = Reshape (x, windows) y = Reshape (w, whole)",
}
CONSTANTS = {"windows": np.array([-1, 2, 3]), "whole": np.array([-1, 8, 3])}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_ranges_are_of_all_images_but_every_third(case: str, size: int) -> None:
    model = model_of(SHAPES[case], ("n,8,3", "n,8,3"), CONSTANTS)
    images = normal(6, 8, 3)
    images[2] += 100  # held out
    batches = np.split(images, range(size, 6, size))
    with (
        OrtRunner(expose_named(model, ["w"])) as runner,
        SilentProgress().step("ranges") as task,
    ):
        seen = observe(runner, ["w"], batches, task)["w"]
    others = images[[0, 1, 3, 4]].reshape(-1, 3)
    assert seen.low is not None
    assert seen.high is not None
    np.testing.assert_array_equal(seen.low, others.min(axis=0))
    np.testing.assert_array_equal(seen.high, others.max(axis=0))
    rows = np.concatenate(seen.rows)
    assert (rows > 90).any()
    held = images[[2, 5]].reshape(-1, 3)
    assert all((held == row).all(axis=1).any() for row in rows)

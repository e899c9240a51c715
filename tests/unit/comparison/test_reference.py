"""`Runners`: every form of a model is fed images (N, C, H, W) and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.comparison.reference import Runners
from deploykit.core.specs import TensorSpec
from deploykit.images.side_inputs import SideInputs
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images with channels last, and two numbers beside each."""
    body = "m = ReduceMean <keepdims = 0> (x, axes) y = Concat <axis = 1> (m, age)"
    text = f"g (float[n,2] age, float[n,4,5,3] x) => (float[n,5] y) {{ {body} }}"
    return save(graph(text, {"axes": np.array([1, 2])}, opset=18), tmp_path / "last.onnx")


def test_channels_last_are_fed_as_channels_first(source: Path) -> None:
    image = TensorSpec("x", "float32", ("n", 3, 4, 5))
    side = SideInputs.noise((TensorSpec("age", "float32", ("n", 2)), image), image)
    images = normal(3, 3, 4, 5)
    with Runners(side).open_channels_last(source, "x") as runner:
        assert runner.inputs == (image,)
        assert [spec.name for spec in runner.outputs] == ["y"]
        found = runner.run({"x": images})["y"]
        timed, times = runner.run_timed({"x": images})
    # The values beside an image are chosen by its pixels in the order of channels first.
    feeds = {"x": np.ascontiguousarray(images.transpose(0, 2, 3, 1)), **side.beside(images)}
    expected = run_ort(source.read_bytes(), feeds)["y"]
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=1e-6)
    np.testing.assert_array_equal(timed["y"], found)
    assert times.wall_ms > 0

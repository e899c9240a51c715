from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.core.errors import UsageError
from deploykit.graph import read_model
from deploykit.graph.activations import expose_named
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.specs import SplitGraph

TEXT = """
chain (float[N, 4] x) => (float[N, 4] y) {
    a = Abs(x)
    s = Shape(a)
    b = Neg(a)
    y = Relu(b)
}
"""


def outputs_of(content: SplitGraph) -> list[str]:
    return [value.name for value in onnx.load_from_string(content.content).graph.output]


def test_named_values_follow_the_graphs_own_outputs(tmp_path: Path) -> None:
    model = read_model(save(graph(TEXT), tmp_path / "m.onnx"))
    content = expose_named(model, ["b", "x", "a", "y", "b"])
    assert outputs_of(content) == ["y", "b", "a"]
    fed = normal(3, 4)
    found = run_ort(content, {"x": fed})
    np.testing.assert_array_equal(found["a"], np.abs(fed))
    np.testing.assert_array_equal(found["b"], -np.abs(fed))


def test_the_graph_itself_is_left_as_it_was(tmp_path: Path) -> None:
    model = read_model(save(graph(TEXT), tmp_path / "m.onnx"))
    expose_named(model, ["a"])
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("name", ["c", "s"])
def test_only_fp32_values_of_the_graph(tmp_path: Path, name: str) -> None:
    model = read_model(save(graph(TEXT), tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match=rf"computes no FP32 value '{name}'\nexpected names"):
        expose_named(model, ["a", name])

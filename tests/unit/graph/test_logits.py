"""The logits become the first output, and flat."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from deploykit.graph import put_first
from tests.graphs import normal, run_ort
from tests.own_files import convolution, model, node, tensor, weights


def two_outputs() -> onnx.ModelProto:
    nodes = [*convolution(), node("GlobalAveragePool", ["n"], ["p"]), node("Relu", ["p"], ["y"])]
    outputs = [
        tensor("n", TensorProto.FLOAT, ("n", 4, 8, 8)),
        tensor("y", TensorProto.FLOAT, ("n", 4, 1, 1)),
    ]
    return model(nodes, weights(), outputs=outputs)


@pytest.mark.parametrize("flatten", [True, False])
def test_chosen_output_comes_first(flatten: bool) -> None:
    source = two_outputs()
    changed = ir.from_proto(source)
    put_first(changed, "y", flatten=flatten)
    result = ir.to_proto(changed)
    onnx.checker.check_model(result)
    assert [value.name for value in result.graph.output] == ["y", "n"]
    images = {"x": normal(2, 3, 8, 8)}
    expected, got = run_ort(source, images), run_ort(result, images)
    assert got["y"].shape == ((2, 4) if flatten else (2, 4, 1, 1))
    np.testing.assert_array_equal(got["y"].ravel(), expected["y"].ravel())
    np.testing.assert_array_equal(got["n"], expected["n"])


def test_an_output_that_is_read_in_the_graph_too() -> None:
    source = two_outputs()
    source.graph.node.append(node("Neg", ["y"], ["z"]))
    source.graph.output.append(tensor("z", TensorProto.FLOAT, ("n", 4, 1, 1)))
    changed = ir.from_proto(source)
    put_first(changed, "y", flatten=True)
    images = {"x": normal(2, 3, 8, 8)}
    got = run_ort(ir.to_proto(changed), images)
    np.testing.assert_array_equal(got["z"], run_ort(source, images)["z"])
    assert list(got) == ["y", "n", "z"]


def test_the_node_that_flattens_has_a_name_of_its_own() -> None:
    source = two_outputs()
    source.graph.node[-1].name = "y/Flatten"
    changed = ir.from_proto(source)
    put_first(changed, "y", flatten=True)
    assert run_ort(ir.to_proto(changed), {"x": normal(2, 3, 8, 8)})["y"].shape == (2, 4)

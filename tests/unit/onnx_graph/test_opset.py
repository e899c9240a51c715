"""Old graphs are raised to a newer opset and compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deploykit.errors import ModelFileError
from deploykit.onnx_graph import OPSET, raise_opset


def old_graph(opset: int, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def run(model: onnx.ModelProto, batch: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> object:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": batch})[0]


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_raised_graph_computes_the_same(opset: int) -> None:
    reduce = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=1)
    old = old_graph(opset, reduce, helper.make_node("Relu", ["m"], ["y"]))
    raised = raise_opset(ir.from_proto(old))
    assert raised.graph.opset_imports[""] == OPSET
    batch = np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(run(ir.to_proto(raised), batch), run(old, batch))


def test_new_graph_stays_as_it_is() -> None:
    model = ir.from_proto(old_graph(18, helper.make_node("Relu", ["x"], ["y"])))
    assert raise_opset(model) is model


def test_operator_that_cannot_be_translated_is_said() -> None:
    old = old_graph(9, helper.make_node("Crop", ["x"], ["y"], border=[0, 0, 0, 0]))
    with pytest.raises(ModelFileError, match=r"opset 9 cannot be raised to 20\n.*Crop"):
        raise_opset(ir.from_proto(old))

"""Files that deploykit did not write, with weights in places where a file may have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import external_data_helper, helper, numpy_helper

from deploykit.core.errors import ModelFileError
from deploykit.graph import read_model
from tests.graphs import graph, normal

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = normal(4, 3, 1, 1)


def convolution() -> onnx.ModelProto:
    return graph(
        """g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) {
            c = Conv (x, w)
            y = Relu (c)
        }""",
        {"w": WEIGHT},
    )


def assert_refused(path: Path, words: str) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        read_model(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def weight() -> onnx.TensorProto:
    return numpy_helper.from_array(WEIGHT, "w")


def external(tensor: onnx.TensorProto, location: str, **more: str) -> onnx.TensorProto:
    external_data_helper.set_external_data(tensor, location)
    for key, value in more.items():
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    return tensor


def in_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = convolution()
    del model.graph.initializer[:]
    model.graph.initializer.append(tensor)
    return model


def in_constant_node(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = convolution()
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    return model


def in_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph(
        """g (float[batch,3,8,8] x, bool c) => (float[batch,4,8,8] y) {
            y = If (c) <
                then_branch = then () => (float[batch,4,8,8] t) { t = Conv (x, w) },
                else_branch = other () => (float[batch,4,8,8] e) { e = Conv (x, v) }
            >
        }""",
        {"v": WEIGHT},
    )
    model.graph.node[0].attribute[0].g.initializer.append(tensor)
    return model


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = graph(
        "g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) { y = lab.F (x) }", domain="lab"
    )
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("lab", "F", ["x"], ["y"], nodes, imports))
    return model

"""Old graphs are raised to a newer opset and compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from deploykit.core.errors import ModelFileError
from deploykit.graph import OPSET, raise_opset
from tests.graphs import normal, run_ort
from tests.own_files import model, node, old, tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGES = normal(2, 3, 8, 8)


def old_graph(opset: int, *nodes: onnx.NodeProto, **weights: Any) -> onnx.ModelProto:
    outputs = [tensor("y", TensorProto.FLOAT, None)]
    return model(nodes, weights, opset=opset, outputs=outputs)


def assert_same_when_raised(old: onnx.ModelProto, *, atol: float = 0.0) -> onnx.ModelProto:
    raised = raise_opset(ir.from_proto(old))
    assert raised.graph.opset_imports[""] == OPSET
    result = ir.to_proto(raised)
    expected = run_ort(old, {"x": IMAGES})["y"]
    np.testing.assert_allclose(run_ort(result, {"x": IMAGES})["y"], expected, rtol=0, atol=atol)
    return result


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_raised_graph_computes_the_same(opset: int) -> None:
    reduce = node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=1)
    assert_same_when_raised(old_graph(opset, reduce, node("Relu", ["m"], ["y"])))


def ops(result: onnx.ModelProto) -> Sequence[str]:
    return [made.op_type for made in result.graph.node if made.op_type != "Constant"]


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 12, 13, 17])
def test_a_network_of_its_day(opset: int) -> None:
    """BatchNorm with ``spatial``, Dropout with a ratio, Unsqueeze with axes, weights as inputs."""
    assert_same_when_raised(old(opset), atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "made"),
    [
        (7, node("Dropout", ["x"], ["y"], ratio=0.4)),
        (7, node("Upsample", ["x"], ["y"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])),
        (10, node("Clip", ["x"], ["y"], min=0.0, max=1.0)),
        (10, node("Clip", ["x"], ["y"], min=0.0)),
        (9, node("Softmax", ["x"], ["y"])),
        (11, node("Softmax", ["x"], ["y"], axis=2)),
        (11, node("LogSoftmax", ["x"], ["y"], axis=1)),
        (9, node("Pad", ["x"], ["y"], mode="reflect", pads=[0, 0, 1, 1, 0, 0, 1, 1])),
        (7, node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)),
        (9, node("Slice", ["x"], ["y"], axes=[2, 3], starts=[1, 1], ends=[7, 7])),
        (11, node("ReduceSum", ["x"], ["y"], axes=[2, 3])),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else str(value),
)
def test_attributes_that_became_inputs(opset: int, made: onnx.NodeProto) -> None:
    assert_same_when_raised(old_graph(opset, made))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("opset", "op_type"), [(9, "Upsample"), (10, "Resize")])
def test_pixels_stay_where_they_were(opset: int, op_type: str, mode: str) -> None:
    """onnx's converter says nothing of the old layout, and the new default is another one."""
    scales = np.array([1.0, 1.0, 3.0, 1.5], np.float32)
    source = old_graph(opset, node(op_type, ["x", "s"], ["y"], mode=mode), s=scales)
    assert ops(assert_same_when_raised(source, atol=1e-6)) == ["Resize"]


def test_a_resize_of_opset_11_keeps_its_own_layout() -> None:
    made = node("Resize", ["x", "r", "s"], ["y"], coordinate_transformation_mode="align_corners")
    scales = np.array([1.0, 1.0, 2.0, 2.0], np.float32)
    empty = np.array([], np.float32)
    result = assert_same_when_raised(old_graph(11, made, s=scales, r=empty))
    (kept,) = (n for n in result.graph.node if n.op_type == "Resize")
    assert [a.s for a in kept.attribute if a.name.startswith("coord")] == [b"align_corners"]


def test_new_graph_stays_as_it_is() -> None:
    new = ir.from_proto(old_graph(18, node("Relu", ["x"], ["y"])))
    assert raise_opset(new) is new


def test_operator_that_cannot_be_translated_is_said() -> None:
    crop = node("Crop", ["x"], ["y"], "cut", border=[0, 0, 0, 0])
    source = old_graph(9, node("Relu", ["x"], ["x2"]), crop)
    with pytest.raises(ModelFileError, match=r"opset 9 cannot be raised to 20.*'cut'.*\n.*Crop"):
        raise_opset(ir.from_proto(source))


def test_batch_norm_per_pixel_is_named() -> None:
    per_pixel = {name: normal(3, 8, 8, seed=at) for at, name in enumerate("gbmv")}
    norm = node("BatchNormalization", ["x", *per_pixel], ["y"], "bn1", spatial=0)
    source = old_graph(7, norm, **per_pixel)
    words = r"BatchNormalization 'bn1' is in the way\nAttribute spatial must have value 1"
    with pytest.raises(ModelFileError, match=words):
        raise_opset(ir.from_proto(source))


def test_version_of_the_format_is_raised_with_it() -> None:
    source = old_graph(7, node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 1, 1]))
    assert source.ir_version == 3
    assert ir.to_proto(raise_opset(ir.from_proto(source))).ir_version >= 9
    assert (
        helper.make_opsetid("", 20) in ir.to_proto(raise_opset(ir.from_proto(source))).opset_import
    )

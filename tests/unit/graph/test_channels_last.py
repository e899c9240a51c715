"""`put_channels_first`: the graph computes the same of images whose channels come first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.graph import ChannelsMoved, put_channels_first
from tests.graphs import graph, normal, run_ort

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Array = NDArray[Any]

IMAGES = normal(2, 5, 7, 3)
"""As the graphs take them before: (N, H, W, C)."""

CONSTANTS = {
    "w": normal(4, 3, 3, 3, seed=1),
    "scalar": np.array(0.5, np.float32),
    "channel": normal(3, seed=2),
    "pixel": normal(1, 5, 7, 1, seed=3),
    "row": normal(7, 3, seed=4),
    "zero": np.array(0, np.float32),
    "pads": np.array([0, 1, 2, 0, 0, 3, 0, 0]),
    "some": np.array([1, 2, 0, 3]),
    "axes": np.array([-3, 2]),
    "first": np.array([0]),
    "last": np.array([3]),
    "ends": np.array([-1]),
    "outside": np.array([-9]),
    "wide": normal(2, 1, 1, 1, 3, seed=5),
    "flag": np.array(True),
}

FIRST = "[t] t = Transpose <perm = [0, 3, 1, 2]> ({}) [conv] y = Conv (t, w)"


def source(body: str, opset: int = 18, outputs: str = "float[n,a,b,c] y") -> onnx.ModelProto:
    text = f"g (float[n,h,w_,3] x) => ({outputs}) {{ {body} }}"
    read = {name: value for name, value in CONSTANTS.items() if name in text}
    return graph(text, read, opset=opset)


def changed(before: onnx.ModelProto) -> tuple[ir.Model, ChannelsMoved]:
    model = ir.from_proto(before)
    moved = put_channels_first(model, "x")
    image = model.graph.inputs[0]
    assert image.shape is not None
    assert [str(dim) for dim in image.shape] == ["n", "3", "h", "w_"]
    return model, moved


def assert_same(before: onnx.ModelProto, model: ir.Model) -> None:
    expected = run_ort(before, {"x": IMAGES})
    got = run_ort(ir.to_proto(model), {"x": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))})
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("before", "opset"),
    [
        ("", 18),
        ("s = Mul (x, scalar) v = Sub (s, channel)", 18),
        ("s = Add (pixel, x) v = Div (s, row)", 18),
        ("s = Mul (x, x) v = Max (s, x, scalar)", 18),
        ("s = Cast <to = 11> (x) v = Cast <to = 1> (s)", 18),
        ("s = Clip (x, zero) v = Neg (s)", 18),
        ("v = Pad (x, pads)", 13),
        ("v = Pad <mode = 'reflect'> (x, pads)", 13),
        ("v = Pad (x, some, zero, axes)", 18),
        ("v = Pad <pads = [0, 1, 2, 0, 0, 3, 0, 0]> (x)", 9),
    ],
)
def test_operators_before_the_transpose_take_channels_first(before: str, opset: int) -> None:
    proto = source(before.replace("'", '"') + FIRST.format("v" if before else "x"), opset)
    model, moved = changed(proto)
    assert moved == ChannelsMoved(1, ())
    assert "Transpose" not in kinds(model)
    assert_same(proto, model)


def test_constants_that_others_read_stay_as_they_are() -> None:
    body = "v = Sub (x, channel)" + FIRST.format("v") + " z = Mul (channel, scalar)"
    proto = source(body, outputs="float[n,a,b,c] y, float[d] z")
    model, _ = changed(proto)
    assert_same(proto, model)


def test_several_readers_of_the_transposed_images() -> None:
    body = FIRST.format("x") + " q = GlobalAveragePool (t) z = Flatten (q)"
    proto = source(body, outputs="float[n,a,b,c] y, float[n,3] z")
    model, moved = changed(proto)
    assert moved == ChannelsMoved(1, ())
    assert_same(proto, model)


def test_two_transposes_and_one_of_another_order() -> None:
    body = (
        FIRST.format("x")
        + "t2 = Transpose <perm = [0, 3, 1, 2]> (x) z = Conv (t2, w) "
        + "u = Transpose <perm = [0, 2, 1, 3]> (x) v = Transpose (x)"
    )
    outputs = "float[n,a,b,c] y, float[n,a,b,c] z, float[n,f,g,3] u, float[3,f,g,n] v"
    proto = source(body, outputs=outputs)
    model, moved = changed(proto)
    assert moved == ChannelsMoved(2, ())
    assert kinds(model).count("Transpose") == 2
    assert_same(proto, model)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        # Red and blue change places, as Keras has it for networks out of Caffe.
        ("[flip] v = Slice (x, ends, outside, last, ends)", "Slice 'flip'"),
        ("[five] f = Mul (x, wide) v = ReduceSum <keepdims = 0> (f, first)", "Mul 'five'"),
        ("[shape] s = Shape (x) [same] v = Reshape (x, s)", "Shape 'shape'"),
        ("c = Abs (channel) [sub] v = Sub (x, c)", "Sub 'sub'"),
    ],
)
def test_what_reads_the_old_order_gets_it(body: str, named: str) -> None:
    proto = source(body + FIRST.format("v"))
    model, moved = changed(proto)
    assert moved.dropped == 0
    assert moved.transposed[0] == named
    assert kinds(model).count("Transpose") == 2
    assert_same(proto, model)


def test_one_transpose_serves_all_that_read_the_old_order() -> None:
    body = (
        "[flip] f = Slice (x, ends, outside, last, ends)"
        + FIRST.format("f")
        + "[mean] z = ReduceMean <keepdims = 0> (x, last)"
    )
    proto = source(body, outputs="float[n,a,b,c] y, float[n,h,w_] z")
    model, moved = changed(proto)
    assert moved == ChannelsMoved(0, ("Slice 'flip'", "ReduceMean 'mean'"))
    assert kinds(model).count("Transpose") == 2
    assert_same(proto, model)


def test_outputs_keep_their_order() -> None:
    body = "[twice] u = Mul (x, scalar)" + FIRST.format("x")
    proto = source(body, outputs="float[n,a,b,c] y, float[n,h,w_,3] u")
    model, moved = changed(proto)
    assert moved == ChannelsMoved(1, ("Mul 'twice'",))
    assert_same(proto, model)
    plain = source("y = Transpose <perm = [0, 3, 1, 2]> (x)")
    model, moved = changed(plain)
    assert moved.dropped == 0
    assert_same(plain, model)


def test_a_branch_that_reads_the_images() -> None:
    branches = (
        "[if] z = If (flag) <then_branch = a () => (float[n,f,g,k] p) { p = Neg (x) }, "
        "else_branch = b () => (float[n,f,g,k] q) { q = Transpose <perm = [0, 3, 1, 2]> (x) }>"
    )
    proto = source(FIRST.format("x") + branches, outputs="float[n,a,b,c] y, float[n,f,g,k] z")
    model, _ = changed(proto)
    assert_same(proto, model)

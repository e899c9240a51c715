"""Which graphs scale the pixels of their images themselves, and which are given prepared ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from deploykit.graph.own_scaling import own_scaling
from tests.graphs import graph

CONSTANTS = {
    "half255": [127.5],
    "unit": [1 / 255],
    "all255": [255],
    "one": [1],
    "bgr": [[[103.939]], [[116.779]], [[123.68]]],
    "minus": [[[-103.939]], [[-116.779]], [[-123.68]]],
    "mean": [[[0.485]], [[0.456]], [[0.406]]],
    "std": [[[0.229]], [[0.224]], [[0.225]]],
    "inception": [0.458],
    "mnist": [0.1307],
    "shift": [-0.03],
    "zero": [0],
}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Div (x, half255) y = Sub (a, one)", ("Div", 127.5, 255)),
        ("t = Transpose <perm = [0,1,2,3]> (x) y = Mul (t, unit)", ("Mul", 1 / 255, 255)),
        ("a = Sub (x, bgr) y = Relu (a)", ("Sub", 103.939, 255)),
        ("y = Add (x, minus)", ("Add", -103.939, 255)),
        ("a = Mul (x, all255) y = Sub (a, bgr)", ("Mul", 255, 1)),
        ("a = Sub (x, mean) y = Div (a, std)", ("Sub", 0.485, 1)),
        ("a = Sub (x, mnist) y = Div (a, std)", ("Sub", 0.1307, 1)),
        ("a = Mul (x, inception) y = Add (a, shift)", None),
        ("y = Div (x, std)", None),
        ("y = Div (half255, x)", None),
        ("y = Sub (one, x)", None),
        ("y = Mul (x, zero)", None),
        ("a = Relu (x) y = Div (a, half255)", None),
        ("y = Add (x, x)", None),
    ],
)
def test_what_is_done_to_the_images_first(
    body: str, expected: tuple[str, float, int] | None
) -> None:
    proto = graph(f"g (float[n,3,8,8] x) => (float[n,3,8,8] y) {{ {body} }}")
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.array(numbers, np.float32), name)
        for name, numbers in CONSTANTS.items()
        if name in read
    )
    found = own_scaling(ir.from_proto(proto), "x")
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.op_type, found.largest) == (expected[0], expected[2])
        assert found.number == pytest.approx(expected[1])

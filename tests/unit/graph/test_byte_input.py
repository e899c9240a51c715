"""Bytes in front of a graph and ends behind it, run by onnx's own evaluator."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.core.specs import PixelInput, Preprocessing
from deploykit.graph.byte_input import take_bytes
from deploykit.graph.results import end_in
from tests.graphs import graph, normal, run_reference

MEAN, STD = (0.25, 0.5, 0.125), (0.5, 0.25, 1.0)
LOOK = Preprocessing((4, 5), mean=MEAN, std=STD)
PLAIN = graph(
    """g (float[N,3,4,5] x, float[N,2] side) => (float[N,6] y, float[N,3,4,5] also) {
        m = GlobalAveragePool (x) f = Flatten (m) both = Concat <axis = 1> (f, side)
        y = MatMul (both, w) also = Relu (x)
    }""",
    {"w": normal(5, 6)},
)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
SIDE = normal(2, 2, seed=3)


@pytest.mark.parametrize(
    ("layout", "order", "network"), list(product(("nhwc", "nchw"), ("rgb", "bgr"), ("rgb", "bgr")))
)
def test_the_front_normalises(layout: str, order: str, network: str) -> None:
    look = Preprocessing((4, 5), mean=MEAN, std=STD, channel_order=network)
    source = ir.from_proto(PLAIN)
    made = take_bytes(source, _with(look, PixelInput(layout, order)))
    given = PIXELS if order == "rgb" else PIXELS[..., ::-1]
    given = given if layout == "nhwc" else given.transpose(0, 3, 1, 2)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    found = run_reference(proto, {"x": np.ascontiguousarray(given), "side": SIDE})
    colours = PIXELS if network == "rgb" else PIXELS[..., ::-1]
    floats = ((colours / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    wanted = run_reference(PLAIN, {"x": floats, "side": SIDE})
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    assert [value.name for value in made.graph.inputs] == ["x", "side"]
    assert [value.name for value in source.graph.inputs] == ["x", "side"]
    assert source.graph.inputs[0].dtype == ir.DataType.FLOAT


def test_a_mean_of_nothing_is_not_subtracted() -> None:
    look = _with(Preprocessing((4, 5), mean=(0, 0, 0), std=STD), PixelInput("nchw"))
    kinds = [node.op_type for node in take_bytes(ir.from_proto(PLAIN), look).graph]
    assert kinds[:2] == ["Cast", "Mul"]


def test_a_graph_of_floats_has_no_front() -> None:
    with pytest.raises(ValueError, match="that of a graph that takes prepared images"):
        take_bytes(ir.from_proto(PLAIN), LOOK)


PLAIN_SCORES = graph("g (float[N,4] x) => (float[N,4] y) { y = Identity (x) }")


def test_names_of_results_that_are_taken_get_a_number() -> None:
    taken = graph(
        "g (float[N,4] x) => (float[N,4] y, float[N,4] classes) { y = Relu (x) classes = Neg (x) }"
    )
    made = end_in(ir.from_proto(taken), ("Softmax", "TopK"), ("classes", "probabilities"), 2)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.output] == ["classes_2", "probabilities", "classes"]
    found = run_reference(proto, {"x": np.array([[1, 4, 3, 2]], np.float32)})
    assert found["classes_2"].tolist() == [[1, 2]]


def test_classes_whose_probability_is_zero_keep_their_order() -> None:
    made = end_in(ir.from_proto(PLAIN_SCORES), ("Softmax", "TopK"), ("classes", "chances"), 4)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    scores = np.array([[-900, 0, 3000, -300]], np.float32)
    found = run_reference(proto, {"x": scores})
    assert found["classes"].tolist() == [[2, 1, 3, 0]]
    assert found["chances"].tolist() == [[1, 0, 0, 0]]


def _with(look: Preprocessing, pixels: PixelInput) -> Preprocessing:
    return replace(look, pixels=pixels)

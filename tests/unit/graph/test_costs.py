from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.graph import convert_to_half, plan_half, qdq
from deploykit.graph.kernel_costs import network_cost
from deploykit.models import get
from tests.graphs import graph, normal
from tests.network_costs import cost_of_definition
from tests.unit.graph.costing import cost, hollow_export, load

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


RESIDUAL = """g (float[batch,4,8,8] x) => (float[batch,4,8,8] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    c = Conv (r, w2, b2)
    s = Add (c, x)
    y = Relu (s)
}"""
RESIDUAL_WEIGHTS = {
    "w1": normal(6, 4, 3, 3),
    "b1": normal(6),
    "w2": normal(4, 6, 1, 1),
    "b2": normal(4),
}


def test_a_residual_block_is_two_kernels(tmp_path: Path) -> None:
    found = cost(tmp_path, RESIDUAL, RESIDUAL_WEIGHTS, batch=2)
    first, second = found.layers
    assert (first.kinds, second.kinds) == (("Conv", "Relu"), ("Conv", "Add", "Relu"))
    assert (first.precision, second.precision) == (FP32, FP32)
    assert (first.winograd, second.winograd) == (True, False)
    assert first.multiply_adds == 2 * 6 * 64 * 4 * 9
    assert second.multiply_adds == 2 * 4 * 64 * 6
    assert first.weight_bytes == 4 * (6 * 4 * 9 + 6)
    assert second.weight_bytes == 4 * (4 * 6 + 4)
    small, large = 4 * 2 * 4 * 64, 4 * 2 * 6 * 64
    assert (first.input_bytes, first.output_bytes) == (small, large)
    assert (second.input_bytes, second.output_bytes) == (large + small, small)
    assert found.weight_bytes == first.weight_bytes + second.weight_bytes
    assert (found.input_bytes, found.output_bytes) == (small, small)
    assert found.required_bytes == found.weight_bytes + 2 * small
    assert found.flop == 2 * found.multiply_adds == first.flop + second.flop
    assert found.multiply_adds_in == {FP32: found.multiply_adds}


def test_results_are_held_as_long_as_they_are_read(tmp_path: Path) -> None:
    """At the second kernel its operand and its result; the input is the caller's."""
    found = cost(tmp_path, RESIDUAL, RESIDUAL_WEIGHTS, batch=2)
    assert found.activation_bytes == 4 * 2 * (6 * 64 + 4 * 64)


def test_a_result_that_is_read_late_is_held_until_then(tmp_path: Path) -> None:
    text = """g (float[1,4,8,8] x) => (float[1,4,4,4] y, float[1,4,8,8] early) {
        early = Relu (x)
        a = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)
        b = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)
        c = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (b)
        y = Concat <axis = 1> (a, c)
    }"""
    text = text.replace("[1,4,4,4] y", "[1,8,4,4] y")
    full, quarter = 4 * 4 * 64, 4 * 4 * 16
    # An output of the network to the end; at the third pooling a, b, c; at the last a, c, y.
    assert cost(tmp_path, text).activation_bytes == full + quarter + quarter + 2 * quarter


def test_fp16_halves_all_but_what_the_caller_binds(tmp_path: Path) -> None:
    model = load(graph(RESIDUAL, RESIDUAL_WEIGHTS), tmp_path)
    full = network_cost(model, 1)
    half = network_cost(convert_to_half(model, plan_half(model, {}, 4.0)), 1)
    assert half.weight_bytes * 2 == full.weight_bytes
    assert (half.input_bytes, half.output_bytes) == (full.input_bytes, full.output_bytes)
    assert half.multiply_adds_in == {FP16: full.multiply_adds}
    assert [layer.kinds for layer in half.layers] == [layer.kinds for layer in full.layers]
    assert half.layers[0].output_bytes * 2 == full.layers[0].output_bytes
    assert half.layers[0].input_bytes == full.layers[0].input_bytes  # FP32 from the caller
    # At the second kernel the operand in FP16, and the result, which the caller takes in FP32.
    assert half.activation_bytes == 2 * 6 * 64 + 4 * 4 * 64


INT8_TEXT = """g (float[1,4,8,8] x) => (float[1,6,8,8] y) {
    xq = QuantizeLinear (x, sx, zero)
    xd = DequantizeLinear (xq, sx, zero)
    wd = DequantizeLinear <axis = 0> (wq, sw)
    a = Conv <pads = [1,1,1,1]> (xd, wd, b)
    r = Relu (a)
    rq = QuantizeLinear (r, sx, zero)
    rd = DequantizeLinear (rq, sx, zero)
    h = Cast <to = 10> (rd)
    vh = DequantizeLinear <axis = 0> (vq, sv)
    v = Cast <to = 10> (vh)
    c = Conv (h, v)
    y = Cast <to = 1> (c)
}"""
INT8_CONSTANTS: dict[str, NDArray[Any]] = {
    "sx": np.array(0.1, np.float32),
    "zero": np.array(0, np.int8),
    "wq": np.ones((6, 4, 3, 3), np.int8),
    "sw": np.full(6, 0.1, np.float32),
    "b": normal(6),
    "vq": np.ones((6, 6, 1, 1), np.int8),
    "sv": np.full(6, 0.1, np.float32),
}


def test_int8_weights_and_activations_are_bytes(tmp_path: Path) -> None:
    first, second = cost(tmp_path, INT8_TEXT, INT8_CONSTANTS).layers
    assert (first.precision, second.precision) == (INT8, INT8)
    assert first.weight_bytes == 6 * 4 * 9 + 4 * 6
    assert second.weight_bytes == 6 * 6
    assert (first.input_bytes, first.output_bytes) == (4 * 4 * 64, 6 * 64)
    assert (second.input_bytes, second.output_bytes) == (6 * 64, 4 * 6 * 64)


def test_weights_alone_in_int8_do_not_make_int8_arithmetic(tmp_path: Path) -> None:
    text = """g (float[1,4,8,8] x) => (float[1,6,8,8] y) {
        wd = DequantizeLinear <axis = 0> (wq, sw)
        y = Conv <pads = [1,1,1,1]> (x, wd)
    }"""
    constants = {name: INT8_CONSTANTS[name] for name in ("wq", "sw")}
    (layer,) = cost(tmp_path, text, constants).layers
    assert layer.precision is FP32
    assert layer.weight_bytes == 6 * 4 * 9


def test_our_own_int8_graph_with_an_fp16_rest(tmp_path: Path) -> None:
    text = """g (float[batch,16,8,8] x) => (float[batch,16] y) {
        a = Conv <pads = [1,1,1,1]> (x, w1)
        r = Relu (a)
        c = Conv <pads = [1,1,1,1]> (r, w2)
        s = Add (c, r)
        p = GlobalAveragePool (s)
        y = Flatten (p)
    }"""
    weights = {"w1": normal(16, 16, 3, 3), "w2": normal(16, 16, 3, 3)}
    model = load(graph(text, weights), tmp_path)
    plan = qdq.plan_qdq(model, qdq.QdqPolicy())
    quantized = qdq.insert_qdq(model, plan, dict.fromkeys(plan.tensors, 1.0))
    mixed = convert_to_half(quantized, plan_half(quantized, {}, 4.0))
    found = network_cost(mixed, 3)
    assert [layer.kinds for layer in found.layers] == [
        ("Conv", "Relu"),
        ("Conv", "Add"),
        ("GlobalAveragePool",),
    ]
    assert found.multiply_adds_in == {INT8: 3 * 2 * 16 * 64 * 16 * 9}
    assert found.weight_bytes == 2 * 16 * 16 * 9
    assert all(layer.winograd for layer in found.layers[:2])


WINOGRAD = [
    ("pads = [1,1,1,1]", (6, 4, 3, 3), True),
    ("pads = [1,1,1,1], strides = [1,1], dilations = [1,1]", (6, 4, 3, 3), True),
    ("pads = [1,1,1,1], group = 4", (8, 1, 3, 3), True),
    ("pads = [1,1,1,1], strides = [2,2]", (6, 4, 3, 3), False),
    ("pads = [1,1,1,1], strides = [1,2]", (6, 4, 3, 3), False),
    ("pads = [2,2,2,2], dilations = [2,2]", (6, 4, 3, 3), False),
    ("pads = [2,2,2,2]", (6, 4, 5, 5), False),
    ("pads = [0,1,0,1]", (6, 4, 1, 3), False),
]


@pytest.mark.parametrize(("attributes", "weight", "expected"), WINOGRAD)
def test_what_winograd_may_compute(
    tmp_path: Path, attributes: str, weight: tuple[int, ...], *, expected: bool
) -> None:
    text = f"g (float[1,4,8,8] x) => (float[n,c,h,w] y) {{ y = Conv <{attributes}> (x, k) }}"
    (layer,) = cost(tmp_path, text, {"k": normal(*weight)}).layers
    assert layer.winograd is expected


def test_a_shared_weight_crosses_the_bus_once(tmp_path: Path) -> None:
    text = "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { b = Conv (x, k) y = Conv (b, k) }"
    found = cost(tmp_path, text, {"k": normal(4, 4, 1, 1)})
    assert [layer.weight_bytes for layer in found.layers] == [64, 64]
    assert found.weight_bytes == 64


def test_an_output_that_is_also_read_is_written(tmp_path: Path) -> None:
    text = "g (float[1,4] x) => (float[1,4] y, float[1,4] z) { y = MatMul (x, k) z = Relu (y) }"
    found = cost(tmp_path, text, {"k": normal(4, 4)})
    assert [layer.kinds for layer in found.layers] == [("MatMul",), ("Relu",)]
    assert [layer.output_bytes for layer in found.layers] == [16, 16]
    assert found.output_bytes == 32


def test_arithmetic_on_shapes_is_no_work(tmp_path: Path) -> None:
    text = """g (float[batch,4,8,8] x) => (float[batch,256] y) {
        s = Shape <end = 1> (x) t = Concat <axis = 0> (s, rest) y = Reshape (x, t)
    }"""
    assert cost(tmp_path, text, {"rest": np.array([-1])}, batch=3).layers == ()


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = load(graph(RESIDUAL, RESIDUAL_WEIGHTS), tmp_path)
    assert network_cost(model, 5).multiply_adds == 5 * network_cost(model, 1).multiply_adds
    assert str(model.graph.inputs[0].shape) == "[batch,4,8,8]"


def test_a_batch_that_the_graph_does_not_have(tmp_path: Path) -> None:
    text = "g (float[2,4] x) => (float[2,4] y) { y = Relu (x) }"
    with pytest.raises(UsageError, match=r"input 'x' has a fixed batch of 2, not 3\n.*open one"):
        cost(tmp_path, text, batch=3)
    assert cost(tmp_path, text, batch=2).input_bytes == 32


def test_no_batch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 0 has no cost"):
        cost(tmp_path, RESIDUAL, RESIDUAL_WEIGHTS, batch=0)


def test_an_open_height(tmp_path: Path) -> None:
    text = "g (float[batch,3,h,w] x) => (float[batch,3,h,w] y) { y = Relu (x) }"
    with pytest.raises(UsageError, match="input 'x' has open dimensions"):
        cost(tmp_path, text)


def test_a_shape_that_cannot_be_inferred(tmp_path: Path) -> None:
    text = "g (float[1,3] x) => (float[1,3] y) { a = lab.F (x) y = Relu (a) }"
    with pytest.raises(ModelFileError, match="no shape can be inferred for 'a'"):
        network_cost(load(graph(text, domain="lab"), tmp_path), 1)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet", "resnet50"])
def test_published_definitions(tmp_path: Path, name: str) -> None:
    spec = get(name)
    found = network_cost(hollow_export(name, tmp_path), 1)
    assert found.multiply_adds == spec.multiply_adds
    heavy = [layer for layer in found.layers if layer.multiply_adds]
    expected = cost_of_definition(name, 1, FP32)
    assert [(item.multiply_adds, item.winograd) for item in heavy] == [
        (item.multiply_adds, item.winograd) for item in expected.layers
    ]
    assert found.weight_bytes == expected.weight_bytes
    assert (found.input_bytes, found.output_bytes) == (4 * 3 * 224 * 224, 4 * 1000)

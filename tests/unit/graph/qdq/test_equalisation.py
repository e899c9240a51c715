"""Equalised graphs compute what they did, by onnxruntime; and a range then fits all channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.graph.activations import CHANGED, pair_activations
from deploykit.graph.qdq import QdqPolicy, Scaling, equalise, linear_groups, plan_qdq
from tests import graphs

RANDOM = np.random.default_rng(3)
WIDTH, HIDDEN = 16, 32
X = RANDOM.normal(size=(2, 5, WIDTH)).astype(np.float32)


def constant(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


CONSTANTS = {
    "g": constant(WIDTH),
    "b": constant(WIDTH),
    "w": constant(WIDTH, HIDDEN),
    "v": constant(WIDTH, HIDDEN),
    "down": constant(HIDDEN, WIDTH),
    "wb": constant(HIDDEN),
    "db": constant(WIDTH),
}
NORM = "n = LayerNormalization <axis = -1> (x, g, b) "
CASES = {
    "a LayerNorm and two layers": (
        NORM + "[q] q = MatMul (n, w) [k] k = MatMul (n, v) a = Add (wb, q) y = Mul (a, k)",
        {"n": ("q", "k")},
        ["LayerNormalization", "MatMul", "MatMul", "Add", "Add", "Mul"],
    ),
    "a LayerNorm without a bias": (
        "n = LayerNormalization <axis = -1> (x, g) [q] q = MatMul (n, w) y = Add (q, wb)",
        {"n": ("q",)},
        ["LayerNormalization", "MatMul", "Add"],
    ),
    "a LayerNorm that others read": (
        NORM + "[q] q = MatMul (n, w) h = Relu (q) [d] d = MatMul (h, down) y = Add (d, n)",
        {"n": ("q",), "h": ("d",)},
        [
            "LayerNormalization",
            "Mul",
            "Add",
            "MatMul",
            "Add",
            "Relu",
            "Mul",
            "Add",
            "MatMul",
            "Add",
            "Add",
        ],
    ),
    "a GELU": (
        "[q] q = MatMul (x, w) h = Gelu (q) [d] d = MatMul (h, down) y = Add (d, db)",
        {"h": ("d",)},
        ["MatMul", "Gelu", "Mul", "Add", "MatMul", "Add"],
    ),
    "the graph's output": (
        "[q] q = MatMul (x, w) h = Gelu (q) [d] y = MatMul (h, down)",
        {"h": ("d",)},
        ["MatMul", "Gelu", "Mul", "Add", "MatMul", "Add"],
    ),
}


def model_of(body: str) -> ir.Model:
    return graphs.model_of(body, (f"n,5,{WIDTH}", "n,5,k"), CONSTANTS)


def run(model: ir.Model) -> np.ndarray:
    return graphs.run_ort(ir.to_proto(model), {"x": X})["y"]


def first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def number_of(node: ir.Node) -> np.ndarray:
    value = node.inputs[1]
    assert value is not None and value.const_value is not None  # noqa: PT018
    return value.const_value.numpy()


def scaling(channels: int, *, shifts: bool = True) -> Scaling:
    scale = np.exp(RANDOM.normal(size=channels)).astype(np.float32)
    shift = RANDOM.normal(size=channels).astype(np.float32) * shifts
    return Scaling(shift.astype(np.float32), scale)


@pytest.mark.parametrize("shifts", [True, False])
@pytest.mark.parametrize(("body", "layers", "operators"), CASES.values(), ids=CASES)
def test_it_computes_the_same(
    body: str, layers: dict[str, tuple[str, ...]], operators: list[str], shifts: bool
) -> None:
    model = model_of(body)
    groups = linear_groups(model, plan_qdq(model))
    assert {group.value: group.layers for group in groups} == layers
    pairs = [(group, scaling(len(group.weights[0]), shifts=shifts)) for group in groups]
    changed, names = equalise(model, pairs)
    np.testing.assert_allclose(run(changed), run(model), rtol=1e-4, atol=1e-4)
    if shifts:
        assert [node.op_type for node in changed.graph] == operators
    assert list(names) == list(layers)
    assert all(name.startswith(CHANGED) for name in names.values())
    assert [node.name for node in changed.graph if node.op_type == "MatMul"] == [
        node.name for node in model.graph if node.op_type == "MatMul"
    ], "users know layers by their names"


def test_the_plan_is_of_the_new_values() -> None:
    model = model_of(CASES["a GELU"][0])
    (group,) = linear_groups(model, plan_qdq(model))
    changed, names = equalise(model, [(group, scaling(HIDDEN))])
    before, after = plan_qdq(model), plan_qdq(changed)
    assert [w.node for w in after.weights] == [w.node for w in before.weights]
    assert after.tensors == ("x", names["h"])


def test_a_channel_with_outliers_fits_the_range_of_the_others() -> None:
    model = model_of(CASES["a GELU"][0])
    (group,) = linear_groups(model, plan_qdq(model))
    low, high = np.full(HIDDEN, -0.2, np.float32), np.linspace(1, 50, HIDDEN, dtype=np.float32)
    halves = Scaling(*(each.astype(np.float32) for each in ((low + high) / 2, (high - low) / 2)))
    changed, names = equalise(model, [(group, halves)])
    (value,) = [v for n in changed.graph for v in n.outputs if v.name == names["h"]]
    adding = value.producer()
    multiplying = None if adding is None else first(adding).producer()
    assert adding is not None and multiplying is not None  # noqa: PT018
    factor, term = (number_of(node) for node in (multiplying, adding))
    np.testing.assert_allclose(low * factor + term, -1, atol=1e-4)
    np.testing.assert_allclose(high * factor + term, 1, atol=1e-4)


def test_values_that_hold_other_numbers_are_not_compared() -> None:
    model = model_of(CASES["a LayerNorm and two layers"][0])
    (group,) = linear_groups(model, plan_qdq(model))
    changed, _ = equalise(model, [(group, scaling(WIDTH))])
    pairs = pair_activations(changed, model).pairs
    assert {pair.name: pair.reference for pair in pairs} == {"a": "a", "k": "k", "y": "y"}


LEFT_ALONE = {
    "one row for an image": "p = Flatten (x) h = Relu (p) [d] y = Gemm (h, flat)",
    "an attention product": NORM + "t = Transpose <perm = [0, 2, 1]> (n) y = MatMul (n, t)",
    "a scaled Gemm": "h = Relu (x) s = Squeeze (h) [d] y = Gemm <alpha = 0.5> (s, w)",
    "behind a layer": "[q] q = MatMul (x, w) [d] y = MatMul (q, down)",
}


@pytest.mark.parametrize("body", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_other_values_stay(body: str) -> None:
    CONSTANTS["flat"] = constant(5 * WIDTH, WIDTH)
    model = model_of(body)
    assert linear_groups(model, plan_qdq(model)) == ()


def test_a_layer_that_the_user_excludes_keeps_its_input() -> None:
    model = model_of(CASES["a LayerNorm and two layers"][0])
    plan = plan_qdq(model, QdqPolicy(exclude=("k",)))
    (group,) = linear_groups(model, plan)
    assert group.layers == ("q",)
    changed, _ = equalise(model, [(group, scaling(WIDTH))])
    np.testing.assert_allclose(run(changed), run(model), rtol=1e-4, atol=1e-4)
    kept = next(node for node in changed.graph if node.name == "k")
    assert first(kept).name == "n"

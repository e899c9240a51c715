"""Levels of groups of layers, against graphs that were made for each choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.graph import qdq, tidy
from tests.graphs import expose_outputs, graph, normal, run_ort, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

NETWORK = """net (float[N, 16, 8, 8] x) => (float[N, 20] logits) {
    [first] a = Conv <pads = [1,1,1,1]> (x, w1)
    [relu] b = Relu (a)
    [pool] m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (b)
    [second] c = Conv <pads = [1,1,1,1]> (m, w2)
    [add] d = Add (c, m)
    [mean] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [last] logits = Gemm <transB = 1> (f, w3)
}"""
WEIGHTS = {
    "w1": normal(16, 16, 3, 3, seed=1),
    "w2": normal(16, 16, 3, 3, seed=2),
    "w3": normal(20, 16, seed=3),
}
GROUPS = (("first",), ("second",), ("last",))


def images() -> NDArray[np.float32]:
    return np.asarray(normal(6, 16, 8, 8, seed=9), np.float32)


@pytest.fixture
def model() -> ir.Model:
    found = ir.from_proto(graph(NETWORK, WEIGHTS))
    tidy(found, rename=False)
    return found


def ranges(model: ir.Model) -> dict[str, float]:
    exposed, _ = expose_outputs(model)
    values = {"x": images(), **run_ort(exposed, {"x": images()})}
    return {name: float(np.abs(value).max()) for name, value in values.items()}


def at_levels(model: ir.Model, plan: qdq.QdqPlan, levels: tuple[int, ...]) -> NDArray[np.float32]:
    made = qdq.with_levels(model, plan, ranges(model), GROUPS)
    feeds: dict[str, Any] = {"x": images(), qdq.LEVELS: np.array(levels, np.int64)}
    return np.asarray(run_ort(made, feeds)["logits"], np.float32)


@pytest.mark.parametrize("narrow", [(0, 1, 2), (0,), (1,), (2,), (1, 2), ()])
@pytest.mark.parametrize("planned", [qdq.plan_qdq, qdq.plan_fp8])
def test_a_group_of_eight_bits_computes_as_if_it_alone_had_been_planned(
    model: ir.Model, narrow: tuple[int, ...], planned: type
) -> None:
    if planned is qdq.plan_fp8:
        narrow = tuple(at for at in narrow if at == 2)  # 16 channels are too few for the others
    levels = tuple(qdq.NARROW if at in narrow else qdq.EXACT for at in range(3))
    got = at_levels(model, planned(model), levels)
    left = tuple(GROUPS[at][0] for at in range(3) if at not in narrow)
    plan = planned(model, qdq.QdqPolicy(exclude=left))
    assert len(plan.layers) == len(narrow)
    expected = run_ort(whole_of(model, plan), {"x": images()})["logits"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def whole_of(model: ir.Model, plan: qdq.QdqPlan) -> bytes:
    return bytes(whole(qdq.trial_graph(model, plan, ranges(model), {})).SerializeToString())


def test_half_rounds_the_operands(model: ir.Model) -> None:
    w1, w2, w3 = (WEIGHTS[name] for name in ("w1", "w2", "w3"))
    exact = at_levels(model, qdq.plan_qdq(model), (qdq.EXACT,) * 3)
    got = at_levels(model, qdq.plan_qdq(model), (qdq.EXACT, qdq.EXACT, qdq.HALF))
    exposed, _ = expose_outputs(model)
    before = run_ort(exposed, {"x": images()})["f"].astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(
        got, before @ w3.astype(np.float16).astype(np.float32).T, rtol=1e-5, atol=1e-4
    )
    assert not np.array_equal(got, exact)
    assert w1.dtype == w2.dtype == np.float32


def test_a_layer_without_a_narrow_form_is_exact(model: ir.Model) -> None:
    plan = qdq.plan_fp8(model)
    assert "first" not in plan.layers
    got = at_levels(model, plan, (qdq.NARROW, qdq.EXACT, qdq.EXACT))
    np.testing.assert_array_equal(got, at_levels(model, plan, (qdq.EXACT,) * 3))


ATTENTION = """net (float[N, 16, 32] x) => (float[N, 16, 32] y) {
    [query] q = MatMul (x, wq)
    [key] k = MatMul (x, wk)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)
    [value] v = MatMul (x, wv)
    [scores] s = MatMul (q, t)
    [softmax] p = Softmax (s)
    [mix] m = MatMul (p, v)
    [out] y = MatMul (m, wo)
}"""
OF_ATTENTION = (("query", "key", "value"), ("scores", "mix"), ("out",))


@pytest.mark.parametrize("narrow", [(0,), (1,), (0, 1, 2)])
def test_both_products_of_an_attention_have_a_level(narrow: tuple[int, ...]) -> None:
    weights = {f"w{name}": normal(32, 32, seed=at, scale=0.2) for at, name in enumerate("qkvo")}
    model = ir.from_proto(graph(ATTENTION, weights))
    tidy(model, rename=False)
    x = np.asarray(normal(3, 16, 32, seed=9), np.float32)
    exposed, _ = expose_outputs(model)
    values = {"x": x, **run_ort(exposed, {"x": x})}
    amax = {name: float(np.abs(value).max()) for name, value in values.items()}
    levels = np.array([qdq.NARROW if at in narrow else qdq.EXACT for at in range(3)], np.int64)
    made = qdq.with_levels(model, qdq.plan_fp8(model), amax, OF_ATTENTION)
    got = run_ort(made, {"x": x, qdq.LEVELS: levels})["y"]
    left = tuple(
        name for at, group in enumerate(OF_ATTENTION) if at not in narrow for name in group
    )
    plan = qdq.plan_fp8(model, qdq.QdqPolicy(over_budget=left))
    assert plan.layers == {name for at in narrow for name in OF_ATTENTION[at]}
    expected = run_ort(whole(qdq.trial_graph(model, plan, amax, {})), {"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

"""Which layers change their format together."""

from __future__ import annotations

import onnx_ir as ir

from deploykit.graph import tidy
from deploykit.precision.budget.grouping import groups_of
from tests.graphs import graph, normal

ATTENTION = """net (float[N, 8, 32] x) => (float[N, 8, 32] y) {
    [query] q = MatMul (x, wq)
    [key] k = MatMul (x, wk)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)
    [value] v = MatMul (x, wv)
    [scores] s = MatMul (q, t)
    [scale] z = Mul (s, half)
    [softmax] p = Softmax (z)
    [mix] m = MatMul (p, v)
    [out] y = MatMul (m, wo)
}"""

BRANCHES = """net (float[N, 32, 8, 8] x) => (float[N, 32, 8, 8] y) {
    [stem] s = Conv (x, w1)
    [left] a = Conv (s, w2)
    [right] b = Conv (s, w3)
    [sum] c = Add (a, b)
    [again] d = Conv (c, w1)
    [end] y = Conv (d, w4)
}"""


def grouped(text: str, **weights: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    constants = {name: normal(*shape, seed=at) for at, (name, shape) in enumerate(weights.items())}
    model = ir.from_proto(graph(text, constants))
    tidy(model, rename=False)
    return groups_of(model)


def test_readers_of_one_value_and_an_attentions_products_stay_together() -> None:
    square = (32, 32)
    found = grouped(ATTENTION, wq=square, wk=square, wv=square, wo=square, half=())
    assert found == (("query", "key", "value"), ("scores", "mix"), ("out",))


def test_branches_and_layers_of_one_weight_stay_together() -> None:
    filters = (32, 32, 1, 1)
    found = grouped(BRANCHES, w1=filters, w2=filters, w3=filters, w4=filters)
    assert found == (("stem", "again"), ("left", "right"), ("end",))

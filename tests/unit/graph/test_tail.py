"""What a graph did to its outputs, read from graphs that are written here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.graph import Tail, read_tails
from tests.graphs import graph, normal

if TYPE_CHECKING:
    from tests.graphs import Array

WEIGHTS: dict[str, Array] = {
    "w": normal(6, 3, 3, 3),
    "k": normal(5, 6, seed=1),
    "b": normal(5, seed=2),
    "kt": normal(6, 5, seed=3),
    "one": np.array(1, np.float32),
    "two": np.array(2, np.float32),
    "tiny": np.array(1e-12, np.float32),
    "last": np.array([1]),
    "sizes": np.array([0, 5]),
    "count": np.array([2]),
}
BODY = "c = Conv (x, w)  r = Relu (c)  g = GlobalAveragePool (r)  f = Flatten (g)"
LOGITS = f"{BODY}  l = Gemm <transB = 1> (f, k, b)"


def tails(nodes: str, outputs: str = "float[N, 5] y") -> dict[str, Tail]:
    model = graph(f"net (float[N, 3, 8, 8] x) => ({outputs}) {{ {nodes} }}", WEIGHTS)
    return read_tails(ir.from_proto(model))


def tail(nodes: str) -> Tail:
    return tails(f"{LOGITS}  {nodes}")["y"]


@pytest.mark.parametrize(
    ("nodes", "activation"),
    [
        ("y = Identity (l)", "none"),
        ("y = Softmax (l)", "softmax"),
        ("s = Softmax (l)  y = Reshape (s, sizes)", "softmax"),
        ("s = Softmax (l)  u = Unsqueeze (s, last)  y = Squeeze (u, last)", "softmax"),
        ("y = LogSoftmax (l)", "log_softmax"),
        ("s = Softmax (l)  y = Log (s)", "log_softmax"),
        ("y = Sigmoid (l)", "sigmoid"),
        ("y = HardSigmoid (l)", "sigmoid"),
        ("s = Sigmoid (l)  y = Clip (s, tiny, one)", "sigmoid"),
        ("n = Neg (l)  e = Exp (n)  t = Add (e, one)  y = Div (one, t)", "sigmoid"),
        ("n = Neg (l)  e = Exp (n)  t = Add (one, e)  y = Reciprocal (t)", "sigmoid"),
        ("e = Exp (l)  t = ReduceSum <keepdims = 1> (e, last)  y = Div (e, t)", "softmax"),
        (
            """m = ReduceMax <keepdims = 1> (l, last)  d = Sub (l, m)  e = Exp (d)
            t = ReduceSum <keepdims = 1> (e, last)  y = Div (e, t)""",
            "softmax",
        ),
        ("a = Sigmoid (l)  h = Neg (l)  b2 = Sigmoid (h)  t = Add (a, b2)  y = Div (t, two)",
         "sigmoid"),
        ("y = ArgMax <axis = 1> (l)", "argmax"),
        ("v, y = TopK (l, count)", "top_k"),
        ("y, i = TopK (l, count)", "top_values"),
        ("v, i = TopK (l, count)  y = Softmax (v)", "top_values"),
        ("v, i = TopK (l, count)  y = LogSoftmax (v)", "top_values"),
        ("v, i = TopK (l, count)  q = Squeeze (v)  y = Sigmoid (q)", "top_values"),
        ("v, i = TopK (l, count)  s = Softmax (v)  y = Log (s)", "top_values"),
        ("v, i = TopK (l, count)  s = Sigmoid (v)  y = Clip (s, tiny, one)", "top_values"),
        ("v, i = TopK <largest = 0> (l, count)  y = Softmax (v)", "softmax"),
        ("i = ArgMax <axis = 1> (l)  y = GatherElements <axis = 1> (l, i)", "top_values"),
        (
            """s = Softmax (l)  v, i = TopK (s, count)  c2 = Cast <to = 6> (i)
            y = GatherElements <axis = 1> (s, c2)""",
            "top_values",
        ),
        (
            """s = Softmax (l)  i = ArgMax <axis = 1> (s)  p = Add (i, last)
            y = GatherElements <axis = 1> (s, p)""",
            "top_values",
        ),
        (
            """s = Sigmoid (l)  i = ArgMin <axis = 1> (l)  p = Concat <axis = 1> (i, i)
            y = GatherND (s, p)""",
            "top_values",
        ),
        # No numbers of classes: a count of images, and those of other values.
        ("s = Softmax (l)  n = Shape (l)  y = Gather <axis = 1> (s, n)", "none"),
        ("i = ArgMax <axis = 1> (f)  y = GatherElements <axis = 1> (l, i)", "none"),
        ("i = ArgMax <axis = 1> (l)  y = Gather (b, i)", "none"),
        ("y = ReduceMax (l, last)", "maximum"),
        ("y = LpNormalization <axis = 1> (l)", "l2"),
        ("n = ReduceL2 <keepdims = 1> (l, last)  c2 = Clip (n, tiny)  y = Div (l, c2)", "l2"),
        ("n = ReduceL2 <keepdims = 1> (l, last)  c2 = Max (n, tiny)  y = Div (l, c2)", "l2"),
        (
            """q = Mul (l, l)  n = ReduceSum <keepdims = 1> (q, last)  t = Sqrt (n)
            i = Reciprocal (t)  y = Mul (l, i)""",
            "l2",
        ),
        # No tails: what comes behind changes the meaning again.
        ("s = Sigmoid (l)  y = Mul (s, l)", "none"),
        ("s = Sigmoid (l)  y = Mul (s, two)", "none"),
        ("s = Softmax (l)  y = MatMul (s, b_square)", "none"),
        ("y = Div (l, two)", "none"),
    ],
)  # fmt: skip
def test_activation(nodes: str, activation: str) -> None:
    WEIGHTS["b_square"] = normal(5, 5, seed=9)
    assert tail(nodes).activation == activation


@pytest.mark.parametrize(
    ("nodes", "operator_is", "classes", "between"),
    [
        (f"{BODY}  y = Gemm <transB = 1> (f, k, b)", True, 5, ()),
        (f"{BODY}  y = Gemm (f, kt)", True, 5, ()),
        (f"{BODY}  m = MatMul (f, kt)  y = Add (m, b)", True, 5, ()),
        (f"{BODY}  t = Transpose <perm = [1, 0]> (k)  y = MatMul (f, t)", True, None, ()),
        (f"{BODY}  y = Identity (f)", True, 6, ("GlobalAveragePool", "Relu")),
        (f"{LOGITS}  y = Relu (l)", True, 5, ("Relu",)),
        (f"{BODY}  y = Tanh (f)", False, None, ("Tanh",)),
        (f"{BODY}  t = Transpose (f)  y = MatMul (f, t)", False, None, ("MatMul",)),
    ],
)
def test_last_layer(
    nodes: str, operator_is: bool, classes: int | None, between: tuple[str, ...]
) -> None:
    found = tails(nodes)["y"]
    assert ((found.layer is not None), found.classes, found.between) == (
        operator_is, classes, between,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "made_of_them"),
    [
        ("s = Softmax (l)  y = Gather <axis = 1> (s, last)", True),
        ("s = Softmax (l)  a, y = Split <axis = 1> (s, sizes)", True),
        ("s = Sigmoid (l)  y = Sub (one, s)", True),
        ("s = Softmax (l)  h = Sigmoid (l)  y = Concat <axis = 1> (h, s)", True),
        ("s = Sigmoid (l)  t = ReduceSum (s, last)  y = Div (s, t)", True),
        ("s = LogSoftmax (l)  y = Neg (s)", True),
        ("y = Slice (l, last, count, last)", False),
        ("s = Sigmoid (l)  y = Mul (l, s)", False),
        ("s = Softmax (l)  y = Concat <axis = 1> (l, s)", False),
        ("s = Softmax (l)  t = Transpose (l)  y = MatMul (s, t)", False),
        ("s = Sigmoid (l)  y = Sqrt (s)", False),
        ("i = ArgMax <axis = 1> (l)  y = Gather (b, i)", False),
        (
            """s = Softmax (l)  i = ArgMax <axis = 1> (s)  g2 = GatherElements <axis = 1> (s, i)
            y = Sub (one, g2)""",
            False,
        ),
    ],
)
def test_what_is_made_of_probabilities_alone(nodes: str, made_of_them: bool) -> None:
    assert tail(nodes).is_of_probabilities is made_of_them


@pytest.mark.parametrize(
    ("nodes", "activation"),
    [
        ("m = ReduceMax (l, last)  y = Sigmoid (m)  i = ArgMax <axis = 1> (l)", "maximum"),
        ("m = ReduceMax (l, last)  y = Sigmoid (m)  v, i = TopK (l, count)", "maximum"),
        # The largest of several places is pooling, and its Sigmoid a yes or no.
        ("m = ReduceMax (l, last)  y = Sigmoid (m)  i = ArgMax <axis = 1> (f)", "sigmoid"),
        ("m = ReduceMax (l, last)  y = Sigmoid (m)  i = Identity (l)", "sigmoid"),
    ],
)
def test_the_largest_beside_its_number(nodes: str, activation: str) -> None:
    found = tails(f"{LOGITS}  {nodes}", "float[N, 1] y, int64[N, K] i")
    assert found["y"].activation == activation


def test_probabilities_of_some_are_not_those_that_were_ranked() -> None:
    """Three probabilities that sum to 1 again are none of the ten."""
    nodes = "s = Softmax (l)  v, i = TopK (s, count)  y = Softmax (v)"
    found = tails(f"{LOGITS}  {nodes}", "float[N, 2] y, float[N, 2] v, int64[N, 2] i")
    assert (found["y"].ranked, found["v"].ranked, found["i"].ranked) == (None, "s", "s")


@pytest.mark.parametrize(("places", "ranked"), [("i", "s"), ("p", None)])
def test_the_probability_of_another_class_is_not_the_largest(
    places: str, ranked: str | None
) -> None:
    found = tails(
        f"""{LOGITS}  s = Softmax (l)  i = ArgMax <axis = 1> (s)  p = Add (i, last)
        y = GatherElements <axis = 1> (s, {places})""",
        "float[N, 1] y, int64[N, 1] i",
    )
    assert (found["y"].ranked, found["i"].ranked) == (ranked, "s")


@pytest.mark.parametrize(
    ("nodes", "several"),
    [
        ("v, y = TopK (l, count)", False),
        ("u = Unsqueeze (l, last)  v, y = TopK (u, count)", False),
        ("v, y = TopK <axis = 1> (r, count)", True),
        ("u = Flatten <axis = 2> (r)  v, y = TopK (u, count)", False),
        ("t = Reshape (r, rows)  v, i = TopK (t, last)  y = Squeeze (i, count)", True),
        ("y = ArgMax (l)", False),
    ],
)
@pytest.mark.parametrize("batch", ["N", "1", "4"])
def test_rankings_of_several_places(nodes: str, several: bool, batch: str) -> None:
    weights = {**WEIGHTS, "rows": np.array([0, 6, -1])}
    text = f"net (float[{batch}, 3, 8, 8] x) => (int64[A, B] y) {{ {LOGITS} {nodes} }}"
    model = ir.from_proto(onnx.shape_inference.infer_shapes(graph(text, weights)))
    rows = "Flatten" in nodes  # of 6 maps each, which a file for one image is not told from
    assert read_tails(model)["y"].has_rankings is (several or (rows and batch == "1"))


def test_outputs_know_what_is_made_of_them() -> None:
    found = tails(
        f"{LOGITS}  y = Softmax (l)  a = Gemm <transB = 1> (f, k)",
        "float[N, 6] f, float[N, 5] l, float[N, 5] y, float[N, 5] a",
    )
    assert found["f"].feeds == {"l", "y", "a"}
    assert found["l"].feeds == {"y"}
    assert [name for name in found if found[name].is_inner] == ["f"]
    assert (found["f"].layers, found["y"].layers, found["a"].layers) == (1, 2, 2)

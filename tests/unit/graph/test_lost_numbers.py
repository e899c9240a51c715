"""Numbers that FP16 loses without an overflow: whole ones above 2048, and what is nearly 0.

Converted graphs are run by onnx' evaluator, which computes in FP16; originals by onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.graph import BF16, plan_half, tidy
from tests.graphs import graph, normal, run_ort, run_reference
from tests.unit.graph.halving import Converted

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

WIDE = 5000
LAST = np.zeros((3, WIDE), np.float32)
LAST[[0, 1, 2], [4999, 2049, 4097]] = 1

THREE, STRIDE = np.array(3, np.float32), np.array(8, np.float32)


def of(value: float) -> Array:
    return np.array(value, np.float32)


CHAINS: dict[str, tuple[str, dict[str, Array]]] = {
    "product": (
        """a = ArgMax <axis = 1, keepdims = 1> (x)
        b = Cast <to = 1> (a)
        y = Mul (b, three)""",
        {"three": THREE},
    ),
    "sum": (
        """a = ArgMax <axis = -1, keepdims = 1> (x)
        b = Cast <to = 1> (a)
        n = Neg (b)
        y = Sub (n, three)""",
        {"three": THREE},
    ),
    "ranks": (
        """v, i = TopK <axis = 1> (x, two)
        b = Cast <to = 1> (i)
        c = Add (b, three)
        y = Concat <axis = 1> (c, b)""",
        {"two": np.array([2]), "three": THREE},
    ),
    "rows": (
        """a = ArgMax <axis = 1, keepdims = 1> (x)
        b = Cast <to = 1> (a)
        d = Div (b, hundred)
        r = Floor (d)
        h = Mul (r, hundred)
        c = Sub (b, h)
        y = Concat <axis = 1> (r, c)""",
        {"hundred": np.array(100, np.float32)},
    ),
    "places": (
        """g = Greater (x, zero)
        n = NonZero (g)
        f = Cast <to = 1> (n)
        t = Transpose (f)
        y = Mul (t, three)""",
        {"zero": np.zeros((), np.float32), "three": THREE},
    ),
    "offset": (
        """a = ArgMax <axis = 1, keepdims = 1> (x)
        b = Cast <to = 1> (a)
        m = ReduceMax <keepdims = 1> (x, one)
        c = Add (b, m)
        y = Add (c, three)""",
        {"one": np.array([1]), "three": THREE},
    ),
    "truncated": (
        """m = ReduceMax <keepdims = 1> (x, one)
        k = Mul (m, large)
        i = Cast <to = 6> (k)
        f = Cast <to = 1> (i)
        y = Add (f, three)""",
        {"one": np.array([1]), "three": THREE, "large": np.array(3008, np.float32)},
    ),
    "counted": (
        """g = Greater (x, half)
        i = Cast <to = 7> (g)
        f = Cast <to = 1> (i)
        h = Add (f, f)
        s = ReduceSum <keepdims = 1> (h, one)
        y = Add (s, large)""",
        {"half": np.array(-1, np.float32), "one": np.array([1]), "large": np.array(1, np.float32)},
    ),
}
"""Ends that make numbers of x (N, 5000), and their constants."""


@pytest.mark.parametrize("name", CHAINS)
def test_whole_numbers_stay_exact(name: str, tmp_path: Path) -> None:
    body, constants = CHAINS[name]
    source = graph(f"g (float[N,{WIDE}] x) => (float[A,B] y) {{ {body} }}", constants)
    made = Converted(source, tmp_path, {"x": LAST})
    expected = run_ort(source, {"x": LAST})["y"]
    np.testing.assert_array_equal(run_reference(made.half, {"x": LAST})["y"], expected)
    assert any("holds whole numbers, " in reason for reason in made.plan.kept.values())
    # Without the plan numbers are lost: the test would not see otherwise.
    lost = run_reference(made.naive(tmp_path), {"x": LAST})["y"]
    assert not np.array_equal(lost, expected)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = ArgMax <axis = 1> (x)\n b = Cast <to = 1> (a)\n y = Mul (b, two)", {"two": STRIDE}),
        ("a = Greater (x, two)\n b = Cast <to = 1> (a)\n y = Mul (b, x)", {"two": STRIDE}),
        (
            "a = Greater (x, two)\n i = Cast <to = 7> (a)\n b = Cast <to = 1> (i)\n y = Mul (b, x)",
            {"two": STRIDE},
        ),
        ("i = Cast <to = 2> (x)\n b = Cast <to = 1> (i)\n y = Mul (b, x)", {}),
        ("v, i = TopK <axis = 1> (x, k)\n y = Mul (v, two)", {"k": np.array([4]), "two": STRIDE}),
        (
            "a = ArgMax <axis = 1, keepdims = 0> (x)\n t = Gather (w, a)\n y = Add (t, t)",
            {"w": normal(10, 4)},
        ),
    ],
)
def test_small_numbers_and_fractions_are_fp16_as_before(
    body: str, constants: dict[str, Array], tmp_path: Path
) -> None:
    source = graph(f"g (float[N,10] x) => (float[A,B] y) {{ {body} }}", constants)
    made = Converted(source, tmp_path, {"x": normal(3, 10)})
    assert not any("whole numbers" in reason for reason in made.plan.kept.values())
    made.assert_close()


IMAGE = normal(2, 3, 8, 8)
VANISHING: dict[str, tuple[str, dict[str, Array]]] = {
    "there and back": ("a = Mul (x, n)  y = Mul (a, k)", {"n": of(1e-9), "k": of(1e9)}),
    "in thirds": (
        "a = Mul (x, n)  b = Relu (a)  c = Mul (b, k)  y = Mul (c, k)",
        {"n": of(1e-8), "k": of(1e4)},
    ),
    "divided": ("a = Div (x, k)  b = Div (a, k)  y = Mul (b, k)", {"k": of(6e4)}),
    "transposed weights": (
        "a = ConvTranspose <strides = [2, 2]> (x, w)  y = Conv (a, v)",
        {"w": normal(3, 4, 2, 2, scale=1e-8), "v": normal(5, 4, 1, 1, scale=6e4)},
    ),
    "weights": (
        "a = Conv (x, w)  y = Conv (a, v)",
        {"w": normal(4, 3, 3, 3, scale=1e-7), "v": normal(5, 4, 1, 1, scale=100)},
    ),
    "weights of a product": (
        "f = Flatten (x)  b = Mul (f, k)  y = MatMul (b, w)",
        {"k": of(1e3), "w": normal(192, 5, scale=3e-8)},
    ),
    "weights of a layer": (
        "f = Flatten (x)  y = Gemm <transB = 1> (f, w)",
        {"w": normal(5, 192, scale=2e-8)},
    ),
    "squares": ("a = Mul (x, n)  b = Mul (a, a)  y = Mul (b, k)",
                {"n": of(1e-4), "k": of(1e4)}),
    "pooled": ("a = Mul (x, n)  b = GlobalAveragePool (a)  y = Mul (b, k)",
               {"n": of(1e-8), "k": of(6e4)}),
}  # fmt: skip
"""Ends that go through numbers of which FP16 leaves few digits or none."""


@pytest.mark.parametrize("name", VANISHING)
def test_what_nearly_vanishes_stays_fp32(name: str, tmp_path: Path) -> None:
    body, constants = VANISHING[name]
    lines = body.replace("  ", "\n")
    shape = "A,B" if "Flatten" in body else "A,B,C,D"
    source = graph(f"g (float[N,3,8,8] x) => (float[{shape}] y) {{ {lines} }}", constants)
    made = Converted(source, tmp_path, {"x": IMAGE})
    expected = run_ort(source, {"x": IMAGE})["y"]
    scale = np.abs(expected).max()
    assert np.abs(run_reference(made.half, {"x": IMAGE})["y"] - expected).max() < 2e-3 * scale
    assert any("which FP16 loses" in reason for reason in made.plan.kept.values())
    with np.errstate(all="ignore"):
        lost = run_reference(made.naive(tmp_path), {"x": IMAGE})["y"]
    assert not np.abs(lost - expected).max() < 2e-3 * scale


def test_a_small_term_of_a_large_sum_is_fp16_as_before(tmp_path: Path) -> None:
    """As the layer scale of 1e-6 that a residual branch begins its training with."""
    source = graph(
        """g (float[N,3,8,8] x) => (float[N,3,8,8] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            s = Mul (c, gamma)
            y = Add (s, x)
        }""",
        {"w": normal(3, 3, 3, 3), "gamma": np.full((3, 1, 1), 1e-6, np.float32)},
    )
    made = Converted(source, tmp_path, {"x": IMAGE})
    assert made.plan.kept == {}
    made.assert_close(2e-3)


@pytest.mark.parametrize("fraction", [0.3, 0.7, 7.0])
def test_what_a_mod_reads_is_not_rounded(fraction: float, tmp_path: Path) -> None:
    """Numbers next to a multiple of the divisor, of which rounding makes the one before it."""
    source = graph(
        """g (float[N,3,8,8] x) => (float[N,3,8,8] y) {
            [scale] a = Mul (x, k)
            [layer] c = Conv (a, w)
            [move] b = Add (c, half)
            [wrap] m = Mod <fmod = 1> (b, d)
            [end] y = Mul (m, half)
        }""",
        {
            "k": of(64),
            "w": np.eye(3, dtype=np.float32)[..., None, None],
            "half": of(0.5),
            "d": of(fraction),
        },
    )
    made = Converted(source, tmp_path, {"x": np.abs(IMAGE)})
    assert {"layer", "move", "wrap"} <= made.plan.kept.keys()
    assert made.plan.kept["move"] == "the result of Mod wrap jumps where its operand is rounded"
    feeds = {"x": np.abs(IMAGE).astype(np.float16).astype(np.float32)}
    expected, got = run_ort(source, feeds)["y"], run_reference(made.half, feeds)["y"]
    assert np.abs(got - expected).max() < 2e-3 * fraction


@pytest.mark.parametrize(("classes", "kept"), [(257, False), (300, True), (2048, True)])
def test_bf16_has_whole_numbers_to_256(classes: int, kept: bool) -> None:
    """Its mantissa has 8 bits: the last of 257 classes is number 256, which it has."""
    body = "a = ArgMax <axis = 1> (x)\n b = Cast <to = 1> (a)\n y = Mul (b, one)"
    source = graph(f"g (float[N,{classes}] x) => (float[A,B] y) {{ {body} }}", {"one": of(1)})
    model = ir.from_proto(source)
    tidy(model, rename=False)
    plan = plan_half(model, {}, 4.0, half=BF16)
    assert any("BF16 has them to 256" in reason for reason in plan.kept.values()) is kept
    in_fp16 = plan_half(model, {}, 4.0).kept.values()
    assert not any("whole numbers" in reason for reason in in_fp16)  # it has all of them


@pytest.mark.parametrize(
    "ranking",
    [
        "p = Softmax <axis = 1> (m) q = Unsqueeze (p, one) v, y = TopK <axis = 2> (q, five)",
        "p = Sigmoid (m) v, y = TopK <axis = 1> (p, five)",
        "p = Sigmoid (m) y = ArgMax <axis = 1> (p)",
        "p = Softmax <axis = 1> (m) h = Mul (p, hundred) v, y = TopK <axis = 1> (h, five)",
        "p = Softmax <axis = 1> (m) h = Clip (p) v, y = TopK <axis = 1> (h, five)",
        "p = Softmax <axis = 1> (m) h = Slice (p, one, nine, one) v, y = TopK <axis = 1> (h, five)",
        "e = Exp (m) s = ReduceSum (e, one) p = Div (e, s) v, y = TopK <axis = 1> (p, five)",
        "p = Softmax <axis = 1> (m) y = ArgMin <axis = 1> (p)",
    ],
)
def test_probabilities_that_are_ranked_are_not_rounded(ranking: str, tmp_path: Path) -> None:
    """In FP16 the small ones of a Softmax are 0, and the large ones of a Sigmoid are 1."""
    shape = "A,B,C" if "Unsqueeze" in ranking else "A,B"
    source = graph(
        f"g (float[N,9] x) => (int64[{shape}] y) {{ m = Mul (x, k) {ranking} }}",
        {
            "k": of(1),
            "hundred": of(100),
            "one": np.array([1]),
            "five": np.array([5]),
            "nine": np.array([9]),
        },
    )
    logits = np.array([[8, 12, 10, 9, 14, -30, -24, -28, -36]], np.float32)
    made = Converted(source, tmp_path, {"x": logits})
    assert any("ranks probabilities, which have no order" in r for r in made.plan.kept.values())
    expected = run_ort(source, {"x": logits})["y"]
    assert (run_reference(made.half, {"x": logits})["y"] == expected).all()


def test_probabilities_that_are_an_answer_keep_their_order(tmp_path: Path) -> None:
    """What is put behind them may rank them."""
    source = graph(
        "g (float[N,9] x) => (float[N,9] y) { m = Mul (x, k) y = Softmax (m) }", {"k": of(1)}
    )
    logits = np.array([[8, 12, 10, 9, 14, -30, -24, -28, -36]], np.float32)
    made = Converted(source, tmp_path, {"x": logits})
    order = run_reference(made.half, {"x": logits})["y"].argsort()
    assert (order == logits.argsort()).all()


def test_an_argmax_of_a_softmax_rounds_nothing_that_counts(tmp_path: Path) -> None:
    source = graph(
        "g (float[N,9] x) => (int64[N,1] y) { p = Softmax <axis = 1> (x) y = ArgMax <axis=1> (p) }"
    )
    made = Converted(source, tmp_path, {"x": np.eye(9, dtype=np.float32)})
    assert made.plan.kept == {}

"""Infinities that a graph holds on purpose: how far they reach, and that nothing else is one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.graph import expose_magnitudes, tidy
from deploykit.graph.infinities import (
    carried_infinities,
    counterparts,
    digest_of_signs,
    mended,
    placed_by_images,
)
from tests.graphs import graph, model_of, normal, run_ort, run_reference

MASK = np.where(np.triu(np.ones((4, 4), bool), 1), -np.inf, 0).astype(np.float32)
CONSTANTS = {
    "mask": MASK,
    "flat": MASK.reshape(-1),
    "ninf": np.array(-np.inf, np.float32),
    "inf": np.array(np.inf, np.float32),
    "finite": np.array(-3.4e38, np.float32),
    "yes": MASK < 0,
    "square": np.array([4, 4]),
    "first": np.array([0]),
    "two": np.array(2, np.float32),
    "zero": np.array(0, np.float32),
    "one": np.array(1),
    "four": np.array(4),
    "choice": np.array([-np.inf, 0], np.float32),
}
ROWS = ("n,4,4", "n,4,4")


def signs(body: str) -> dict[str, set[int]]:
    model = model_of(body, ROWS, CONSTANTS)
    return {str(value.name): set(found) for value, found in carried_infinities(model).items()}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = Where (yes, ninf, x) y = Softmax (m)", {"m": {-1}}),
        ("m = Add (x, mask) y = Softmax (m)", {"m": {-1}}),
        (
            "s = Reshape (flat, square) u = Unsqueeze (s, first) m = Add (x, u) y = Softmax (m)",
            {"s": {-1}, "u": {-1}, "m": {-1}},
        ),
        ("m = Sub (x, inf) y = Sigmoid (m)", {"m": {-1}}),
        ("m = Where (yes, ninf, x) n = Neg (m) y = Sigmoid (n)", {"m": {-1}, "n": {1}}),
        ("m = Add (x, mask) h = Mul (m, two) y = Softmax (h)", {"m": {-1}, "h": {-1, 1}}),
        ("m = Div (two, inf) y = Add (x, m)", {}),
        ("m = Where (yes, finite, x) y = Softmax (m)", {}),
        ("y = Clip (x, ninf, two)", {}),
        ("l = Log (x) y = Add (l, two)", {}),
        ("m = Where (yes, ninf, inf) y = Add (m, x)", {"m": {-1, 1}, "y": {-1, 1}}),
        ("m = Where (yes, inf, x) s = Sqrt (m) y = Atan (s)", {"m": {1}, "s": {1}}),
        ("m = Add (x, mask) r = Relu (m) y = Exp (r)", {"m": {-1}}),
        ("m = Add (x, mask) c = CumSum (m, one) y = Exp (c)", {"m": {-1}, "c": {-1}}),
        (
            "m = Add (x, mask) s = ReduceSum <keepdims = 1> (m, first) y = Sigmoid (s)",
            {"m": {-1}, "s": {-1}},
        ),
        (
            "k = ArgMax <axis = 2, keepdims = 0> (x) m = OneHot (k, four, choice) y = Exp (m)",
            {"m": {-1}},
        ),
    ],
)
def test_what_they_reach_and_with_which_sign(body: str, expected: dict[str, set[int]]) -> None:
    assert signs(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("p = Softmax (x) c = IsNaN (p) y = Where (c, zero, p)", {"p"}),
        ("p = Softmax (x) h = Cast <to = 1> (p) c = IsNaN (p) y = Where (c, zero, h)", {"p", "h"}),
        ("p = Softmax (x) c = IsNaN (p) w = Where (c, zero, p) y = Add (w, p)", set()),
        ("p = Softmax (x) c = IsNaN (p) y = Where (c, p, zero)", set()),
        ("p = Softmax (x) c = IsNaN (x) y = Where (c, zero, p)", set()),
        ("p = Exp (x) c = IsNaN (p) y = Where (c, zero, p)", set()),
        ("p = Softmax (x) y = Cast <to = 1> (p)", set()),
        ("y = Softmax (x)", set()),
    ],
)
def test_results_of_which_nan_goes_no_further(body: str, expected: set[str]) -> None:
    proto = graph(f"g (float[n,4,4] x) => (float[n,4,4] y) {{ {body} }}")
    if "zero" in body:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(CONSTANTS["zero"], "zero"))
    assert mended(ir.from_proto(proto)) == expected


def test_a_constant_of_a_shape_that_is_computed_counts() -> None:
    value = "value = float[1] {-inf}"
    text = f"g (float[n,4] x) => (float[n,4] y) {{ s = Shape (x) m = ConstantOfShape <{value}> (s)"
    try:
        proto = graph(text + " y = Max (x, m) }")
    except onnx.parser.ParseError:  # the text form has no infinities
        proto = graph(text.replace("-inf", "0.0") + " y = Max (x, m) }")
        tensor = onnx.numpy_helper.from_array(np.array([-np.inf], np.float32))
        proto.graph.node[1].attribute[0].t.CopyFrom(tensor)
    model = ir.from_proto(proto)
    found = carried_infinities(model)
    assert {str(value.name) for value in found} == {"m", "y"}


def pooled(pads: str, amount: int, *, pool: str = "", opset: int = 20) -> set[str]:
    """Which values of a padded pooling may hold infinities."""
    text = f"""g (float[n,3,8,8] x) => (float[n,3,u,v] y) {{
        p = Pad (x, pads, ninf{", axes" if pads == "axes" else ""})
        y = MaxPool <kernel_shape = [3,3], strides = [2,2]{pool}> (p)
    }}"""
    amounts = [amount] * 4 if pads == "axes" else [0, 0, amount, amount] * 2
    constants = {"pads": np.array(amounts), "ninf": CONSTANTS["ninf"], "axes": np.array([2, -1])}
    if pads != "axes":
        constants.pop("axes")
    model = ir.from_proto(graph(text, constants, opset=opset))
    tidy(model, rename=False)
    return {str(value.name) for value in carried_infinities(model)}


@pytest.mark.parametrize("pads", ["all", "axes"])
def test_a_pooling_whose_windows_reach_beyond_the_padding_ends_them(pads: str) -> None:
    assert pooled(pads, 1) == pooled(pads, 2) == {"p"}
    assert pooled(pads, 3) == {"p", "y"}  # a corner window has nothing but padding


@pytest.mark.parametrize(
    "pool", [", ceil_mode = 1", ", dilations = [2,2]", ", pads = [1,1,1,1]", ', auto_pad = "VALID"']
)
def test_other_windows_are_not_taken_for_such(pool: str) -> None:
    assert pooled("all", 2, pool=pool) == {"p", "y"}


def test_extremes_are_of_the_numbers_and_signs_of_the_infinities() -> None:
    model = model_of("m = Where (yes, ninf, x) y = Softmax (m)", ROWS, CONSTANTS)
    content, extremes = expose_magnitudes(model)
    images = normal(2, 4, 4, scale=9)
    found = run_ort(content, {"x": images})
    of = extremes["m"]
    shown = np.where(MASK < 0, np.float32(0), images)
    assert [float(found[name]) for name in (of.largest, of.least)] == [shown.max(), shown.min()]
    assert found[of.broken] == 0
    assert of.expected == {-1}
    np.testing.assert_array_equal(found[of.signs], np.broadcast_to(MASK < 0, (2, 4, 4)) * -1)
    assert extremes["y"].signs == ""
    images[1, 2, 1] = np.nan  # where the mask lets it pass
    broken = run_ort(content, {"x": images})
    assert np.isnan(broken[of.broken])


def test_they_are_told_apart_in_the_oldest_opsets() -> None:
    text = "g (float[n,4] x) => (float[n,4] y) { m = Add (x, b) y = Softmax (m) }"
    proto = graph(text, {"b": np.array([0, -np.inf, 0, 0], np.float32)}, opset=9)
    model = ir.from_proto(proto)
    tidy(model, rename=False)
    content, extremes = expose_magnitudes(model)
    found = run_ort(content, {"x": normal(2, 4)})
    assert found[extremes["m"].signs].tolist() == [[0, -1, 0, 0]] * 2
    expected = run_reference(proto, {"x": normal(2, 4)})["y"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = Where (yes, ninf, x) y = Softmax (m)", set()),
        ("c = Less (x, two) m = Where (c, ninf, x) h = Mul (m, two) y = Softmax (h)", {"m", "h"}),
        ("s = Shape (x) e = Expand (mask, s) m = Add (x, e) y = Softmax (m)", set()),
        (
            """c = ArgMax <axis = 1> (x) e = Gather (mask, c) s = ReduceMax <keepdims = 0> (e)
            y = Add (x, s)""",
            {"e"},
        ),
    ],
)
def test_places_that_the_images_choose(body: str, expected: set[str]) -> None:
    found = placed_by_images(model_of(body, ROWS, CONSTANTS))
    assert found - {"s", "y"} == expected


def test_a_digest_tells_places_and_signs_apart() -> None:
    one = np.array([[0, -1, 0]], np.int8)
    others = [one, -one, np.roll(one, 1), np.array([[0, -1, -1]], np.int8)]
    assert len({digest_of_signs(each) for each in others}) == len(others)
    assert digest_of_signs(one) == digest_of_signs(one.copy())
    assert digest_of_signs(np.zeros_like(one)) == ""


def test_values_behind_casts_stand_for_those_before() -> None:
    text = """g (float[n,4] x) => (float[n,4] y, float[n,4] z) {
        a = Neg (x)
        a_fp16 = Cast <to = 10> (a)
        y_fp16 = Abs (a_fp16)
        y = Cast <to = 1> (y_fp16)
        more = Neg (y_fp16)
        z = Cast <to = 1> (more)
    }"""
    model = ir.from_proto(graph(text))
    expected = {"a": "a", "a_fp16": "a", "y_fp16": "y", "y": "y"}
    assert counterparts(model, {"a", "y", "elsewhere"}) == expected

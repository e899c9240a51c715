"""Both ends of FP16's range: how values grow, guards that vanish, sums that overflow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from deploykit.graph import BF16, FP16, convert_to_half, plan_half, read_model, tidy
from deploykit.graph.growth import growth
from deploykit.graph.guards import makers_of_guarded, vanishing_guards, weak_guards
from deploykit.graph.half_range import (
    Unfit,
    attention_beyond_range,
    expose_probes,
    find_probes,
    unfit_by_probes,
)
from deploykit.graph.rounding import Stored, rounding_form
from tests.graphs import (
    expose_outputs,
    graph,
    model_of,
    normal,
    run_ort,
    run_reference,
    save,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.graph.half import HalfType

HEADROOM = 4.0


def tidied(text: str, folder: Path, weights: Mapping[str, NDArray[Any]] | None = None) -> ir.Model:
    model = read_model(save(graph(text, weights), folder / "source.onnx"))
    tidy(model, rename=False)
    return model


def number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


# --- headroom


@pytest.mark.parametrize(
    ("body", "power"),
    [
        ("y = Mul (x, x)", 2),
        ("a = Mul (x, x) y = Mul (a, x)", 3),
        ("y = Pow (x, three)", 3),
        ("a = Mul (x, x) y = Sqrt (a)", 1),
        ("a = Sigmoid (x) y = Mul (a, x)", 1),
        ("a = Mul (x, x) y = Softmax (a)", 1),
        ("a = Mul (x, x) y = Conv (a, w)", 1),
        ("a = Relu (x) y = ReduceProd (a, channels)", 3),
        ("a = Sigmoid (x) y = ReduceProd (a, channels)", 1),
    ],
)
def test_a_value_grows_with_a_power_of_its_inputs(body: str, power: float, tmp_path: Path) -> None:
    text = f"g (float[2,3,4,4] x) => (float[A,B,C,D] y) {{ {body.replace(') ', ')' + chr(10))} }}"
    weights = {
        "three": number(3),
        "w": np.ones((3, 3, 1, 1), np.float32),
        "channels": np.array([1]),
    }
    used = {name: value for name, value in weights.items() if name in body}
    assert growth(tidied(text, tmp_path, used))["y"] == power


def test_a_cube_needs_the_cube_of_the_headroom(tmp_path: Path) -> None:
    """An input four times as large makes 64 times the cube: 65504 / 64 is all that it may reach."""
    text = "g (float[2,3,4,4] x) => (float[2,3,4,4] y) { [cube] y = Pow (x, three) }"
    model = tidied(text, tmp_path, {"three": number(3)})
    assert plan_half(model, {"x": 10.0, "y": 1023.0}, HEADROOM).halved == {"cube"}
    assert plan_half(model, {"x": 10.1, "y": 1030.0}, HEADROOM).kept == {"cube": "y reaches 1030"}


def test_an_exponential_needs_a_power_of_itself(tmp_path: Path) -> None:
    text = "g (float[2,3,4,4] x) => (float[2,3,4,4] y) { [exp] y = Exp (x) }"
    model = tidied(text, tmp_path)
    assert plan_half(model, {"x": 2.7, "y": 15.9}, HEADROOM).halved == {"exp"}
    assert plan_half(model, {"x": 2.8, "y": 16.1}, HEADROOM).kept == {"exp": "y reaches 16.1"}


EXPONENTIALS = {
    "mish": """e = Exp (x) s = Add (e, one) q = Mul (s, s) n = Sub (q, one) d = Add (q, one)
        t = Div (n, d) y = Mul (x, t)""",
    "square": "e = Exp (x) q = Pow (e, two) i = Reciprocal (q) y = Sub (x, i)",
    "power of two": "e = Pow (two, x) q = Mul (e, e) s = Add (q, one) y = Div (x, s)",
    "root": "e = Exp (x) q = Mul (e, e) s = Sqrt (q) p = Mul (s, s) r = Add (p, one) y = Log (r)",
}


LOGITS = {
    "of two bounds": """a = Clip (x, low) o = Sub (one, x) b = Clip (o, low) d = Div (a, b)
        y = Log (d)""",
    "of one": "c = Clip (x, low, high) o = Sub (one, c) d = Div (c, o) y = Log (d)",
    "as a minimum": "c = Min (x, high) o = Sub (one, c) l = Log (o) y = Neg (l)",
}


@pytest.mark.parametrize("half", [FP16, BF16])
@pytest.mark.parametrize("form", LOGITS)
def test_the_logit_of_a_probability_of_one_stays_a_number(form: str, half: HalfType) -> None:
    """As detection transformers write an inverse sigmoid; no sample comes near 1."""
    constants = {"low": number(1e-5), "high": number(1 - 1e-5), "one": number(1)}
    model = model_of(LOGITS[form], ("1,4", "1,4"), constants)
    amax = dict.fromkeys("xabcoy", 0.9) | {"d": 9.0, "l": 2.3}
    narrow = convert_to_half(model, plan_half(model, amax, HEADROOM, half=half))
    x = np.array([[0.25, 0.5, 0.75, 1]], np.float32)
    expected = run_ort(ir.to_proto(model), {"x": x})["y"]
    assert expected[0, 3] == pytest.approx(np.log(1e5), rel=2e-3)
    got = run_ort(ir.to_proto(rounding_form(narrow, Stored.EVERY)), {"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)
    if half is FP16:
        np.testing.assert_allclose(
            run_reference(ir.to_proto(narrow), {"x": x})["y"], expected, rtol=1e-2, atol=1e-2
        )


@pytest.mark.parametrize("form", EXPONENTIALS)
def test_what_is_made_of_an_exponential_grows_as_one(form: str) -> None:
    """Twice the largest value of the samples is no infinity in the half graph's own arithmetic."""
    constants = {"one": number(1), "two": number(2)}
    model = model_of(EXPONENTIALS[form], ("1,64", "1,64"), constants)
    samples = np.linspace(-3.2, 3.2, 64, dtype=np.float32)[None]
    split, names = expose_outputs(model)
    amax = {name: float(np.abs(run_ort(split, {"x": samples})[name]).max()) for name in names}
    half = ir.to_proto(convert_to_half(model, plan_half(model, amax, HEADROOM)))
    expected = run_ort(ir.to_proto(model), {"x": 2 * samples})["y"]
    np.testing.assert_allclose(run_reference(half, {"x": 2 * samples})["y"], expected, rtol=4e-3)


def test_an_exponential_within_1_makes_nothing_grow() -> None:
    """As the softmax by hand: its sum is 64 at most, whatever the images are."""
    body = """m = ReduceMax <keepdims = 1> (x, last) d = Sub (x, m) e = Exp (d)
        s = ReduceSum <keepdims = 1> (e, last) y = Div (e, s)"""
    model = model_of(body, ("1,64", "1,64"), {"last": np.array([-1])})
    assert plan_half(model, {"x": 9.0, "d": 15.0, "e": 1.0, "s": 64.0}, HEADROOM).kept == {}


def test_a_softplus_whose_exponential_overflows_stays_fp32() -> None:
    """onnxruntime computes an FP16 one by its definition, which is infinite from 89 on."""
    model = model_of("y = Softplus (x)", ("1,4", "1,4"), {})
    x = np.array([[-5, 1, 30, 400]], np.float32)
    plan = plan_half(model, {"x": 400.0, "y": 400.0}, HEADROOM)
    assert list(plan.kept.values()) == ["its exponential may overflow: x reaches 400"]
    half = ir.to_proto(convert_to_half(model, plan))
    expected = np.logaddexp(0, x.astype(np.float64))
    np.testing.assert_allclose(run_ort(half, {"x": x})["y"], expected, rtol=1e-3)
    assert plan_half(model, {"x": 22.0, "y": 22.0}, HEADROOM).kept == {}


def test_the_logarithm_of_a_softmax_stays_fp32() -> None:
    """onnx's evaluator computes it as onnx-tensorrt does: 20 below the largest is 0 in FP16."""
    model = model_of("y = LogSoftmax (x)", ("1,4", "1,4"), {})
    x = np.array([[0, -5, -20, -30]], np.float32)
    half = ir.to_proto(convert_to_half(model, plan_half(model, {"x": 30.0, "y": 30.0}, HEADROOM)))
    expected = run_ort(ir.to_proto(model), {"x": x})["y"]
    np.testing.assert_allclose(run_reference(half, {"x": x})["y"], expected, rtol=1e-3)
    narrow = graph(
        """g (float[1,4] x) => (float[1,4] y) {
            h = Cast <to = 10> (x) n = LogSoftmax (h) y = Cast <to = 1> (n)
        }"""
    )
    assert np.isinf(run_reference(narrow, {"x": x})["y"]).sum() == 2


# --- guards

NORMALISE = """g (float[N,8] x) => (float[N,8] y) {
    [norm] n = ReduceL2 <keepdims = 1> (x, axes)
    [clamp] c = Clip (n, eps)
    [divide] y = Div (x, c)
}"""
WRITTEN_OUT = """g (float[N,8] x) => (float[N,8] y) {
    [mean] m = ReduceMean <keepdims = 1> (x, axes)
    [centre] d = Sub (x, m)
    [square] s = Mul (d, d)
    [variance] v = ReduceMean <keepdims = 1> (s, axes)
    [guard] e = Add (v, eps)
    [root] r = Sqrt (e)
    [divide] y = Div (d, r)
}"""
ENTROPY = """g (float[N,8] x) => (float[N,8] y) {
    [soft] p = Softmax (x)
    [guard] e = Max (p, eps)
    [log] l = Log (e)
    [weigh] y = Mul (p, l)
}"""
INVERSE = """g (float[N,8] x) => (float[N,8] y) {
    [size] a = Abs (x)
    [guard] e = Add (eps, a)
    [inverse] y = Reciprocal (e)
}"""
AXES = np.array([1], np.int64)


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        (NORMALISE, {"clamp", "divide"}),
        (WRITTEN_OUT, {"guard", "root", "divide"}),
        (ENTROPY, {"guard", "log"}),
        (INVERSE, {"guard", "inverse"}),
    ],
)
def test_a_guard_that_fp16_loses_keeps_all_up_to_what_it_guards(
    text: str, guarded: set[str], tmp_path: Path
) -> None:
    weights: dict[str, NDArray[Any]] = {"eps": number(1e-12), "axes": AXES}
    used = {name: value for name, value in weights.items() if name in text}
    model = tidied(text, tmp_path, used)
    assert set(vanishing_guards(model).nodes) == guarded
    plan = plan_half(model, {}, HEADROOM)
    assert guarded <= plan.kept.keys()
    assert plan.halved.isdisjoint(guarded)
    assert any("1e-12 keeps the operand of" in reason for reason in plan.kept.values())


def test_a_guard_that_fp16_has_is_none_of_these(tmp_path: Path) -> None:
    weights: dict[str, NDArray[Any]] = {"eps": number(1e-3), "axes": AXES}
    assert vanishing_guards(tidied(WRITTEN_OUT, tmp_path, weights)) == Unfit()


def test_a_small_bias_guards_nothing(tmp_path: Path) -> None:
    text = """g (float[N,8] x) => (float[N,8] y) {
        [bias] b = Add (x, eps)
        [scale] y = Div (b, two)
    }"""
    model = tidied(text, tmp_path, {"eps": number(1e-12), "two": number(2)})
    assert vanishing_guards(model) == Unfit()


INVERSES = {
    "reciprocal": "[root] r = Sqrt (e) [inverse] i = Reciprocal (r)",
    "power": "[inverse] i = Pow (e, minus)",
    "division": "[root] r = Sqrt (e) [inverse] i = Div (one, r)",
}


@pytest.mark.parametrize("form", sorted(INVERSES))
def test_what_multiplies_by_an_inverse_stays_too(form: str, tmp_path: Path) -> None:
    """1 / sqrt(1e-12) is 1e6, and 0 times the infinity that FP16 makes of it is NaN."""
    body = INVERSES[form].replace(") [", ")\n    [")
    text = f"""g (float[N,8] x) => (float[N,8] y) {{
    [square] s = Mul (x, x)
    [sum] t = ReduceSum <keepdims = 1> (s, axes)
    [guard] e = Add (t, eps)
    {body}
    [scale] y = Mul (x, i)
}}"""
    constants: dict[str, NDArray[Any]] = {
        "eps": number(1e-12),
        "axes": AXES,
        "minus": number(-0.5),
        "one": number(1),
    }
    used: dict[str, NDArray[Any]] = {n: v for n, v in constants.items() if n in text}
    kept = plan_half(tidied(text, tmp_path, used), {}, HEADROOM).kept
    assert {"guard", "inverse", "scale"} <= kept.keys()
    assert kept["scale"] == "i may pass 65504 where 1e-12 is all that is left"


LOST_ON_THE_WAY = {
    "squared": ("[twice] q = Mul (e, e) [last] i = Div (one, q)", {"eps": 1e-4, "one": 1}),
    "cubed": ("[last] i = Pow (e, three)", {"eps": 1e-2, "three": -3}),
    "scaled": ("[twice] q = Mul (e, low) [last] i = Reciprocal (q)", {"eps": 1e-3, "low": 1e-3}),
    "divided": ("[last] i = Div (ten, e)", {"eps": 1e-4, "ten": 10}),
    "inverse": ("[one] q = Reciprocal (e) [last] i = Mul (q, ten)", {"eps": 1e-4, "ten": 10}),
    "root": ("[root] r = Sqrt (e) [one] q = Div (ten, r) [last] i = Pow (q, four)",
             {"eps": 1e-2, "ten": 10, "four": 4}),
}  # fmt: skip


def in_half(text: str, numbers: Mapping[str, NDArray[Any]], x: NDArray[np.float32]) -> Any:
    """What the graph gives where every value is FP16, by onnx's own evaluator."""
    down, up = "[down] x = Cast <to = 10> (given)", "[up] y = Cast <to = 1> (all)"
    body = text.replace("float[N,8] x)", "float[N,8] given)").replace("{", "{\n" + down, 1)
    body = body.replace(" y = ", " all = ").replace("}", up + "\n}")
    halves = {n: v.astype(np.float16) if v.dtype.kind == "f" else v for n, v in numbers.items()}
    with np.errstate(all="ignore"):
        return cast("list[Any]", ReferenceEvaluator(graph(body, halves)).run(None, {"given": x}))[0]


@pytest.mark.parametrize("form", sorted(LOST_ON_THE_WAY))
def test_a_guard_that_is_lost_on_the_way_keeps_its_nodes(form: str, tmp_path: Path) -> None:
    """FP16 has each of these guards; the image that needs it gives NaN or infinity all the same."""
    body, values = LOST_ON_THE_WAY[form]
    text = f"""g (float[N,8] x) => (float[N,8] y) {{
    [sum] t = ReduceSum <keepdims = 1> (x, axes)
    [guard] e = Add (t, eps)
    {body.replace(") [", ")" + chr(10) + "    [")}
    [scale] y = Mul (x, i)
}}"""
    numbers: dict[str, NDArray[Any]] = {name: number(v) for name, v in values.items()}
    numbers["axes"] = AXES
    nothing = np.zeros((1, 8), np.float32)
    assert not np.isfinite(in_half(text, numbers, nothing)).all()
    model = tidied(text, tmp_path, numbers)
    assert not run_ort(graph(text, numbers), {"x": nothing})["y"].any()
    plan = plan_half(model, {}, HEADROOM)
    assert {"last", "scale"} <= plan.kept.keys()
    made = run_ort(
        ir.to_proto(rounding_form(convert_to_half(model, plan), Stored.EVERY)), {"x": nothing}
    )
    assert not made["y"].any()


@pytest.mark.parametrize(
    "body",
    [
        "[last] i = Reciprocal (e)",
        "[root] r = Sqrt (e) [last] i = Div (one, r)",
        "[twice] q = Mul (e, x) [last] i = Div (one, q)",  # nobody knows what is left of it
    ],
)
def test_a_guard_that_holds_keeps_nothing(body: str, tmp_path: Path) -> None:
    text = f"""g (float[N,8] x) => (float[N,8] y) {{
    [guard] e = Add (x, eps)
    {body.replace(") [", ")" + chr(10) + "    [")}
    [scale] y = Mul (x, i)
}}"""
    numbers = {"eps": number(1e-4), "one": number(1)}
    used = {name: value for name, value in numbers.items() if f"{name}" in text}
    assert weak_guards(tidied(text, tmp_path, used)) == Unfit()


# --- what is measured


def probed(model: ir.Model, amax: dict[str, float], x: NDArray[np.float32]) -> dict[str, float]:
    probes = find_probes(model, amax)
    shown = expose_probes(model, probes)
    numbers = list(run_ort(shown, {"x": x}).values())
    return {
        f"{probe.node} {probe.value or 'sum'}": float(n)
        for probe, n in zip(probes, numbers, strict=True)
    }


def test_operands_that_must_not_vanish_are_measured(tmp_path: Path) -> None:
    text = """g (float[N,8] x) => (float[N,8] y) {
        [square] s = Mul (x, x)
        [divide] y = Div (x, s)
    }"""
    model = tidied(text, tmp_path)
    x = np.full((1, 8), 1e-4, np.float32)
    x[0, 0] = 0  # a zero stays one in FP16
    found = probed(model, {}, x)
    assert found == {"divide s": pytest.approx(1e-8)}
    unfit = unfit_by_probes(find_probes(model, {}), list(found.values()))
    assert unfit.values == {"s": "s falls to 1e-08, which FP16 loses"}
    kept = plan_half(model, {}, HEADROOM, unfit).kept
    assert set(kept) == {"square", "divide"}


SUMS: dict[str, tuple[str, tuple[int, int] | None, Callable[[Any, Any], Any]]] = {
    "MatMul": ("[op] y = MatMul (x, w)", (8, 5), lambda x, w: np.abs(x) @ np.abs(w)),
    "Gemm": ("[op] y = Gemm <transB = 1> (x, w)", (5, 8), lambda x, w: np.abs(x) @ np.abs(w).T),
    "ReduceMean": ("[op] y = ReduceMean (x, axes)", None, lambda x, _: np.abs(x).sum(axis=1)),
    "ReduceL1": ("[op] y = ReduceL1 (x, axes)", None, lambda x, _: np.abs(x).sum(axis=1)),
    "ReduceLogSum": ("[op] y = ReduceLogSum (x, axes)", None, lambda x, _: np.abs(x).sum(axis=1)),
    "ReduceSum": ("[op] y = ReduceSum (x, axes)", None, lambda x, _: np.abs(x).sum(axis=1)),
}


@pytest.mark.parametrize("op_type", sorted(SUMS))
def test_sums_of_magnitudes_are_measured_where_the_bound_is_too_high(
    op_type: str, tmp_path: Path
) -> None:
    body, shape, exact = SUMS[op_type]
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[np.generic]] = (
        {"axes": AXES} if shape is None else {"w": rng.standard_normal(shape).astype(np.float32)}
    )
    model = tidied(f"g (float[N,8] x) => (float[A,B] y) {{ {body} }}", tmp_path, weights)
    x = (rng.standard_normal((3, 8)) * 1e5).astype(np.float32)
    amax = {"x": float(np.abs(x).max())}
    (total,) = probed(model, amax, x).values()
    assert total == pytest.approx(float(exact(x, weights.get("w")).max()), rel=1e-5)
    (reason,) = unfit_by_probes(find_probes(model, amax), [total]).nodes.values()
    assert "more than an FP16 accumulator holds" in reason
    assert find_probes(model, {"x": 1.0}) == []


@pytest.mark.parametrize(
    ("body", "exact"),
    [
        ("[op] y = Conv <pads = [1,1,1,1]> (x, w)", None),
        ("[op] y = GlobalAveragePool (x)", lambda x: np.abs(x).sum(axis=(2, 3)).max()),
        (
            "[op] y = AveragePool <kernel_shape = [2,2], strides = [2,2]> (x)",
            lambda x: np.abs(x).reshape(2, 4, 3, 2, 3, 2).sum(axis=(3, 5)).max(),
        ),
    ],
)
def test_sums_over_places_are_measured(
    body: str, exact: Callable[[Any], Any] | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    text = f"g (float[2,4,6,6] x) => (float[A,B,C,D] y) {{ {body} }}"
    model = tidied(text, tmp_path, {"w": w} if "w)" in body else {})
    x = (rng.standard_normal((2, 4, 6, 6)) * 1e5).astype(np.float32)
    (total,) = probed(model, {"x": float(np.abs(x).max())}, x).values()
    if exact is not None:
        assert total == pytest.approx(float(exact(x)), rel=1e-5)
    else:
        padded = np.pad(np.abs(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        best = np.einsum("nchwij,ocij->nohw", windows, np.abs(w)).max()
        assert total == pytest.approx(float(best), rel=1e-5)


@pytest.mark.parametrize(
    ("body", "exact"),
    [
        ("[op] y = Mean (x, w, x)", lambda x, w: 2 * np.abs(x) + np.abs(w)),
        (
            '[op] y = Einsum <equation = "nk,kj,ji->ni"> (x, w, w)',
            lambda x, w: np.abs(x) @ np.abs(w) @ np.abs(w),
        ),
    ],
)
def test_sums_of_several_operands_are_measured(
    body: str, exact: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    """Their bound is not known, so that they are always measured."""
    w = normal(8, 8)
    model = tidied(f"g (float[8,8] x) => (float[A,B] y) {{ {body} }}", tmp_path, {"w": w})
    x = normal(8, 8, seed=1, scale=1e4)
    (total,) = probed(model, {}, x).values()
    assert total == pytest.approx(float(exact(x, w).max()), rel=1e-5)


ATTENTION = """g (float[1,2,8,16] q, float[1,2,8,16] k) => (float[1,2,8,16] y) {
    [attend] y = Attention %s (q, k, k)
}"""


@pytest.mark.parametrize(
    ("attributes", "limit"),
    [("", 65504 / 4), ("<scale = 0.5>", 65504 / 8), ("<scale = 1.0>", 4094)],
)
def test_products_of_queries_and_keys_are_bounded(
    attributes: str, limit: float, tmp_path: Path
) -> None:
    """16 products of numbers up to q k, scaled: by a quarter where the node does not say it."""
    model = graph(ATTENTION % attributes)
    model.opset_import[0].version = 23
    read = read_model(save(model, tmp_path / "attention.onnx"))
    q = limit / 10
    assert attention_beyond_range(read, {"q": 0.99 * q, "k": 10.0}) == Unfit()
    found = attention_beyond_range(read, {"q": 1.01 * q, "k": 10.0}).nodes["attend"]
    assert found == "products of queries and keys may reach 6.616e+04"
    assert "reach inf" in attention_beyond_range(read, {"q": q}).nodes["attend"]


def test_attention_of_an_unknown_size_is_taken_to_overflow(tmp_path: Path) -> None:
    model = graph((ATTENTION % "").replace("16]", "D]"))
    model.opset_import[0].version = 23
    read = read_model(save(model, tmp_path / "attention.onnx"))
    assert "reach inf" in attention_beyond_range(read, {"q": 1.0, "k": 1.0}).nodes["attend"]


@pytest.mark.parametrize(
    ("body", "makers"),
    [
        ("a = Mul (x, x) b = Relu (a) s = ReduceMean (b)", {"Mul", "Relu", "ReduceMean"}),
        ("a = Exp (x) b = Mul (a, half) s = Add (b, half)", {"Exp", "Mul", "Add"}),
        ("a = ReduceL2 (x) s = Max (a, half)", {"ReduceL2", "Max"}),
        ("a = Conv (x, w) b = Relu (a) s = ReduceMean (b)", set()),
        ("a = Mul (x, half) s = Abs (a)", set()),
    ],
)
def test_what_a_guarded_operand_is_made_of(body: str, makers: set[str], tmp_path: Path) -> None:
    lines = body.replace(") ", ")\n")
    text = f"g (float[2,3,4,4] x) => (float[A,B,C,D] y) {{ {lines} y = Log (s) }}"
    known = {"half": number(0.5), "w": np.ones((3, 3, 1, 1), np.float32)}
    weights = {name: data for name, data in known.items() if re.search(rf"\b{name}\b", body)}
    model = tidied(text, tmp_path, weights)
    found = makers_of_guarded(model, Unfit({"s": "it falls to 1e-9"}))
    assert {node.op_type for node in model.graph if node.name in found.nodes} == makers

"""FP16 of graphs with masks: their infinities stay, any other one is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from deploykit.backends.ort import OrtRunner
from deploykit.core.errors import ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.graph import (
    BF16,
    LoadedGraph,
    convert_to_half,
    plan_half,
    read_model,
    tidy,
    write_model,
)
from deploykit.graph.rounding import Stored, rounding_form
from deploykit.precision.fp16 import (
    HalfResult,
    convert_to_fp16,
    find_overflows,
    measure_magnitudes,
)
from tests.graphs import graph, model_of, normal, run_ort, run_reference, save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.graph.half_range import Unfit
    from tests.graphs import Array

SIZE = 6
ABOVE = np.triu(np.ones((SIZE, SIZE), bool), 1)
MASK = np.where(ABOVE, -np.inf, 0).astype(np.float32)
LEAST = np.finfo(np.float32).min
SHAPE = f"n,{SIZE},{SIZE}"
CONSTANTS = {
    "above": ABOVE,
    "ninf": np.array(-np.inf, np.float32),
    "mask": MASK,
    "flat": MASK.reshape(-1),
    "square": np.array([SIZE, SIZE]),
    "first": np.array([0]),
    "last": np.array([-1]),
    "least": np.array(LEAST, np.float32),
    "leasts": np.where(ABOVE, LEAST, 0).astype(np.float32),
    "up": np.array(300, np.float32),
    "one": np.array(1, np.float32),
    "pads": np.array([0, 1, 1, 0, 1, 1]),
}
IMAGES = normal(3, SIZE, SIZE, scale=4)


def proto_of(body: str) -> onnx.ModelProto:
    return ir.to_proto(model_of(body, (SHAPE, SHAPE), CONSTANTS))


def converted(body: str, folder: Path, images: Array = IMAGES) -> HalfResult:
    model = model_of(body, (SHAPE, SHAPE), CONSTANTS)
    artifact = write_model(model, folder / "fp32.onnx", Precision.FP32)
    with SilentProgress().step("fp16") as task:
        return convert_to_fp16(
            LoadedGraph(artifact), [images], folder / "h.onnx", open_runner=OrtRunner, task=task
        )


MASKED = {
    "where": "m = Where (above, ninf, x) y = Softmax (m)",
    "added": "m = Add (x, mask) y = Softmax (m)",
    "reshaped": "r = Reshape (flat, square) u = Unsqueeze (r, first) m = Add (x, u) y = Softmax(m)",
    "expanded": "s = Shape (x) e = Expand (mask, s) m = Add (e, x) y = Softmax (m)",
    "subtracted": "i = Neg (mask) m = Sub (x, i) y = Softmax (m)",
    "scaled": "m = Add (x, mask) h = Div (m, up) y = Softmax (h)",
    "by hand": """m = Where (above, ninf, x) t = ReduceMax <keepdims = 1> (m, last) d = Sub (m, t)
        y = Exp (d)""",
}


@pytest.mark.parametrize("case", MASKED)
def test_a_mask_becomes_fp16_and_stays_minus_infinity(case: str, tmp_path: Path) -> None:
    images = IMAGES if case != "by hand" else np.abs(IMAGES) / 4
    result = converted(MASKED[case], tmp_path, images)
    # What follows from shapes alone is never rounded.
    assert list(result.kept_fp32) == ["Expand"] * (case == "expanded")
    half = onnx.load(result.artifact.path)
    # The file itself, in which each operator computes in numpy's FP16, and its form for CPUs.
    expected = run_ort(proto_of(MASKED[case]), {"x": images})["y"]
    forms = [run_reference(half, {"x": images})["y"]]
    for stored in Stored:
        form = rounding_form(read_model(result.artifact.path), stored)
        forms.append(run_ort(ir.to_proto(form), {"x": images})["y"])
    for got in forms:
        np.testing.assert_allclose(got, expected, atol=4e-3)
        assert np.array_equal(got == 0, expected == 0)
    assert (expected == 0).any()
    constants = [numpy_helper.to_array(each) for each in half.graph.initializer]
    floats = [each for each in constants if each.dtype.kind == "f"]
    assert any(np.isneginf(each).any() for each in floats)
    assert not any((np.abs(each) == 65504).any() for each in floats)


def test_padding_of_minus_infinity_before_a_pooling(tmp_path: Path) -> None:
    body = "p = Pad (x, pads, ninf) i = Unsqueeze (p, first) m = MaxPool <kernel_shape = [3,3]> (i)"
    body = f"{body} y = Squeeze (m, first)"
    text = f"g (float[1,{SIZE},{SIZE}] x) => (float[1,{SIZE},{SIZE}] y) {{ {body} }}"
    constants = CONSTANTS | {"pads": np.array([0, 1, 1, 0, 1, 1])}
    used = {name: constants[name] for name in ("pads", "ninf", "first")}
    images = -np.abs(IMAGES[:1]) - 1  # padding with 0 would be the maximum at the border
    proto = graph(text, used)
    model = read_model(save(proto, tmp_path / "source.onnx"))
    tidy(model, rename=False)
    artifact = write_model(model, tmp_path / "fp32.onnx", Precision.FP32)
    with SilentProgress().step("fp16") as task:
        result = convert_to_fp16(
            LoadedGraph(artifact), [images], tmp_path / "h.onnx", open_runner=OrtRunner, task=task
        )
    assert result.kept_fp32 == {}
    expected = run_ort(proto, {"x": images})["y"].astype(np.float16)
    assert np.array_equal(
        run_reference(onnx.load(result.artifact.path), {"x": images})["y"], expected
    )


@pytest.mark.parametrize("mask", ["m = Where (above, least, x)", "m = Add (x, leasts)"])
def test_a_finite_mask_beyond_fp16_keeps_its_nodes(mask: str, tmp_path: Path) -> None:
    """Of a row that is masked as a whole FP32 makes equal probabilities; -infinity gives NaN."""
    whole = ABOVE.copy()
    whole[2] = True
    constants = CONSTANTS | {
        "above": whole,
        "leasts": np.where(whole, LEAST, 0).astype(np.float32),
    }
    model = model_of(f"{mask} y = Softmax (m)", (SHAPE, SHAPE), constants)
    artifact = write_model(model, tmp_path / "fp32.onnx", Precision.FP32)
    with SilentProgress().step("fp16") as task:
        result = convert_to_fp16(
            LoadedGraph(artifact), [IMAGES], tmp_path / "h.onnx", open_runner=OrtRunner, task=task
        )
    assert all("reaches 3.403e+38" in reason for reason in result.kept_fp32.values())
    expected = run_ort(ir.to_proto(model), {"x": IMAGES})["y"]
    got = run_reference(onnx.load(result.artifact.path), {"x": IMAGES})["y"]
    np.testing.assert_allclose(got, expected, atol=2e-3)
    np.testing.assert_allclose(expected[:, 2], 1 / SIZE, rtol=1e-6)


def test_neither_end_of_fp16_can_stand_for_a_finite_mask() -> None:
    """Why its nodes stay FP32: half arithmetic of a row that is masked as a whole."""
    scores = np.array([-20, 3, 1], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isneginf((np.float16(-65504) + scores)[0])
        minus = np.full(3, LEAST).astype(np.float16) + scores
        assert np.isnan(minus - minus.max()).all()


@pytest.mark.parametrize("mask", ["m = Where (above, least, x)", "m = Add (x, leasts)"])
def test_a_finite_mask_stays_a_number_in_bf16(mask: str) -> None:
    whole = np.ones_like(ABOVE)
    constants = CONSTANTS | {"above": whole, "leasts": np.full_like(MASK, LEAST)}
    model = model_of(f"{mask} y = Softmax (m)", (SHAPE, SHAPE), constants)
    halved = convert_to_half(model, plan_half(model, {}, 4.0, half=BF16))
    assert np.isinf(np.array(LEAST).astype(ml_dtypes.bfloat16))
    for stored in Stored:
        form = ir.to_proto(rounding_form(halved, stored))
        got = run_ort(form, {"x": IMAGES})["y"]
        np.testing.assert_allclose(got, 1 / SIZE, atol=1e-3)


def test_an_infinite_mask_stays_one_in_bf16() -> None:
    model = model_of(MASKED["added"], (SHAPE, SHAPE), CONSTANTS)
    halved = convert_to_half(model, plan_half(model, {}, 4.0, half=BF16))
    got = run_ort(ir.to_proto(rounding_form(halved)), {"x": IMAGES})["y"]
    expected = run_ort(proto_of(MASKED["added"]), {"x": IMAGES})["y"]
    assert np.array_equal(got == 0, expected == 0)
    np.testing.assert_allclose(got, expected, atol=2e-2)


GUARDED = "m = Where (rows, ninf, x) p = Softmax (m) c = IsNaN (p) y = Where (c, nought, p)"


def test_a_row_that_is_masked_as_a_whole_may_have_its_nan_replaced(tmp_path: Path) -> None:
    """As PyTorch's exporter writes an attention: the row's probabilities are 0."""
    rows = np.tril(np.ones((SIZE, SIZE), bool)).T
    constants = CONSTANTS | {"rows": rows, "nought": np.array(0, np.float32)}
    model = model_of(GUARDED, (SHAPE, SHAPE), constants)
    artifact = write_model(model, tmp_path / "fp32.onnx", Precision.FP32)
    with SilentProgress().step("fp16") as task:
        result = convert_to_fp16(
            LoadedGraph(artifact), [IMAGES], tmp_path / "h.onnx", open_runner=OrtRunner, task=task
        )
    assert result.kept_fp32 == {}
    expected = run_ort(ir.to_proto(model), {"x": IMAGES})["y"]
    assert rows[0].all()
    assert not expected[:, 0].any()
    got = run_reference(onnx.load(result.artifact.path), {"x": IMAGES})["y"]
    np.testing.assert_allclose(got, expected, atol=2e-3)


# --- what is a fault all the same


def overflows(body: str, images: Array, fp32: str | None = None) -> Unfit:
    """What is found where all of ``body`` is FP16, by what ``fp32``, or itself, holds in FP32."""
    narrow = model_of(body, (SHAPE, SHAPE), CONSTANTS)
    halved = convert_to_half(narrow, plan_half(narrow, {}, 4.0))
    source = model_of(fp32 or body, (SHAPE, SHAPE), CONSTANTS)
    with SilentProgress().step("fp16") as task:
        measured = measure_magnitudes(source, [images], open_runner=OrtRunner, task=task)
        found, _ = find_overflows(halved, [images], measured, open_runner=OrtRunner, task=task)
    return found


@pytest.mark.parametrize("case", ["where", "added", "reshaped", "expanded", "subtracted", "scaled"])
def test_a_mask_alone_is_no_overflow(case: str) -> None:
    assert overflows(MASKED[case], IMAGES).values == {}


def test_an_overflow_is_found_before_a_nan_that_is_replaced() -> None:
    body = "h = Mul (x, up) s = Mul (h, up) i = Add (s, mask) p = Softmax (i) c = IsNaN (p)"
    body = f"{body} y = Where (c, h, p)"
    assert "s" in overflows(body, np.abs(IMAGES)).values


SCALED = "m = Add (x, mask) h = Mul (m, up) y = Softmax (h)"


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_overflow_in_a_masked_value_is_found(sign: int) -> None:
    """Of either sign: -65504 and less is as -infinity as the mask, at another place."""
    images = IMAGES.copy()
    images[1, 4, 2] = sign * 300  # 90,000 in h, below the diagonal
    assert not ABOVE[4, 2]
    assert list(overflows(SCALED, images).values) == ["h"]
    images[1, 4, 2], images[1, 2, 4] = 0, -300  # what the mask hides anyway
    assert overflows(SCALED, images).values == {}


def test_an_overflow_before_the_mask_is_found_though_the_mask_hides_it() -> None:
    images = IMAGES.copy()
    images[0, 0, 5] = 300
    assert ABOVE[0, 5]
    body = "h = Mul (x, up) m = Where (above, ninf, h) y = Softmax (m)"
    assert list(overflows(body, images).values) == ["h"]


@pytest.mark.parametrize(
    "other",
    ["z = Neg (mask) m = Where (above, z, x)", "m = Where (above, least, x)", "m = Abs (x)"],
)
def test_an_infinity_that_fp32_has_not_there_or_with_the_other_sign_is_found(other: str) -> None:
    """As if a conversion had put the mask elsewhere."""
    found = overflows("m = Where (above, ninf, x) y = Sigmoid (m)", IMAGES, f"{other} y = Tanh (m)")
    assert list(found.values) == ["m"]


def test_an_infinity_that_went_away_is_found() -> None:
    gone = overflows("m = Abs (x) y = Tanh (m)", IMAGES, "m = Where (above, ninf, x) y = Tanh (m)")
    assert list(gone.values) == ["m"]


CHOSEN = """t = ReduceMean <keepdims = 1> (x, last) below = Less (x, t)
    m = Where (below, ninf, x) h = Mul (m, up) y = Softmax (h)"""


def test_places_that_images_choose_may_move_but_nothing_may_be_added() -> None:
    images = np.zeros_like(IMAGES)
    # 1.0001 is above the mean of both, 1.00005; in FP16 all are 1, and none is below.
    images[0, :, ::2], images[0, :, 1::2] = 1, 1.0001
    assert overflows(CHOSEN, images).values == {}
    images[1, 4, 2] = 300
    assert list(overflows(CHOSEN, images).values) == ["h"]


def test_an_overflow_beside_a_mask_keeps_its_node_and_the_answer_right(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[1, 4, 2] = 300
    result = converted(SCALED, tmp_path, images)
    assert result.kept_fp32 == {"Mul": "h reaches 9e+04", "Softmax": "h reaches 9e+04"}
    expected = run_ort(proto_of(SCALED), {"x": images})["y"]
    got = run_reference(onnx.load(result.artifact.path), {"x": images})["y"]
    # Scores of 1,200 that FP16 rounded by 0.5 in x / 300 are sure all the same.
    assert np.array_equal(got.argmax(-1), expected.argmax(-1))
    assert np.array_equal(got[ABOVE[None].repeat(3, 0)], expected[ABOVE[None].repeat(3, 0)])


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("z = Mul (mask, ninf) m = Add (x, z) y = Softmax (m)", "z"),  # 0 x infinity
        ("z = Neg (mask) w = Add (mask, z) m = Add (x, w) y = Tanh (m)", "w"),  # their difference
        ("e = Relu (x) y = Log (e)", "y"),  # an output, by itself
        ("e = Relu (x) l = Log (e) w = Sub (l, l) y = Tanh (w)", "l"),  # the first; w is NaN
    ],
)
def test_any_other_of_fp32_is_refused(body: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=f"^{name} is NaN or infinite already in FP32"):
        converted(body, tmp_path)
    assert not (tmp_path / "h.onnx").exists()


def test_a_row_that_is_masked_as_a_whole_is_refused(tmp_path: Path) -> None:
    constants = CONSTANTS | {"above": np.ones_like(ABOVE)}
    model = model_of(MASKED["where"], (SHAPE, SHAPE), constants)
    artifact = write_model(model, tmp_path / "fp32.onnx", Precision.FP32)
    with (
        SilentProgress().step("fp16") as task,
        pytest.raises(ValidationError, match=r"^y is NaN or infinite already in FP32"),
    ):
        convert_to_fp16(
            LoadedGraph(artifact), [IMAGES], tmp_path / "h.onnx", open_runner=OrtRunner, task=task
        )


def test_an_infinity_of_a_sign_that_no_constant_has_is_refused(tmp_path: Path) -> None:
    images = np.full_like(IMAGES, 3e38)
    body = "b = Add (x, mask) m = Add (b, x) y = Softmax (m)"  # y is NaN then
    with pytest.raises(ValidationError, match=r"^m is NaN or infinite already in FP32"):
        converted(body, tmp_path, images)


# --- infinities of FP32 itself, which its outputs do not have

OWN = {
    "divided by": "h = Mul (x, up) e = Exp (h) d = Add (e, one) y = Div (one, d)",
    "bounded": "h = Mul (x, up) e = Exp (h) c = Min (e, one) y = Mul (c, x)",
    "a logarithm of 0": "r = Relu (x) l = Log (r) m = Add (l, mask) y = Exp (m)",
    "a mask's no more": "m = Add (x, mask) e = Exp (m) l = Log (e) y = Tanh (l)",
}


@pytest.mark.parametrize("case", OWN)
def test_what_fp32_makes_infinite_by_itself_stays_in_fp32(case: str, tmp_path: Path) -> None:
    body = OWN[case]
    result = converted(body, tmp_path)  # 300 x is beyond 88 often, where Exp ends in FP32
    assert any(reason.endswith(" is infinite in FP32") for reason in result.kept_fp32.values())
    expected = run_ort(proto_of(body), {"x": IMAGES})["y"]
    assert np.isfinite(expected).all()
    with np.errstate(over="ignore", divide="ignore"):
        got = run_reference(onnx.load(result.artifact.path), {"x": IMAGES})["y"]
    np.testing.assert_allclose(got, expected, atol=1e-2 * abs(expected).max())


def test_an_overflow_of_fp16_behind_an_infinity_of_fp32_is_found() -> None:
    images = IMAGES.copy()
    images[1, 4, 2] = 300  # 90,000 in h and infinity in e; FP32 has a number in h
    body = "h = Mul (x, up) e = Exp (h) d = Add (e, one) q = Div (one, d) y = Add (q, x)"
    assert "h" in overflows(body, images).values


@pytest.mark.parametrize("case", ["where", "added"])
def test_a_planted_nan_is_refused(case: str, tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[2, 3, 1] = np.nan
    model = model_of(MASKED[case], (SHAPE, SHAPE), CONSTANTS)
    with (
        SilentProgress().step("fp16") as task,
        pytest.raises(ValidationError, match=r"^x is NaN or infinite already in FP32"),
    ):
        measure_magnitudes(model, [images], open_runner=OrtRunner, task=task)
    inside = "r = Sqrt (x) m = Add (r, mask) y = Softmax (m)"
    with pytest.raises(ValidationError, match=r"^r is NaN or infinite already in FP32"):
        converted(inside, tmp_path)

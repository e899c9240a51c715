from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from deploykit.core.errors import DataError
from deploykit.core.precision import Precision
from deploykit.graph import convert_to_half, plan_half, read_model, tidy, write_model
from deploykit.graph.qdq import (
    QdqPlan,
    activation_scales,
    correct_biases,
    insert_qdq,
    plan_qdq,
    probe_errors,
    weight_sqnr_db,
)
from tests.graphs import expose_outputs, graph, normal, run_ort, run_reference, save

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

Array = NDArray[Any]
IMAGE = normal(4, 16, 6, 6)
WEIGHTS = {
    "w": normal(24, 16, 3, 3, seed=1),
    "b": normal(24, seed=2),
    "fc": normal(40, 24, seed=3),
}
NETWORK = """net (float[batch,16,6,6] x) => (float[batch,40] y) {
    [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
    [relu] r = Relu (c)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [gemm] y = Gemm <transB = 1> (f, fc)
}"""
AMAX = {"x": 3.0, "f": 1.5}


def loaded(folder: Path, text: str = NETWORK) -> ir.Model:
    model = read_model(save(graph(text, WEIGHTS), folder / "graph.onnx"))
    tidy(model, rename=False)
    return model


def written(model: ir.Model, folder: Path) -> onnx.ModelProto:
    write_model(model, folder / "written.onnx", Precision.INT8)
    return onnx.load(folder / "written.onnx")


def rounded(values: Array, scale: Any, low: int = -128) -> Array:
    """The oracle: symmetric quantization in numpy."""
    steps = np.clip(np.rint(values / np.float32(scale)), low, 127)
    return np.asarray(steps * np.float32(scale), np.float32)


def expected_output() -> Array:
    w_scale = np.abs(WEIGHTS["w"]).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
    fc_scale = np.abs(WEIGHTS["fc"]).max(axis=1, keepdims=True) / np.float32(127)
    text = """net (float[batch,16,6,6] x, float[24,16,3,3] w, float[24] b) => (float[batch,24] f) {
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        r = Relu (c)
        p = GlobalAveragePool (r)
        f = Flatten (p)
    }"""
    feeds = {"x": rounded(IMAGE, 3 / 127), "w": rounded(WEIGHTS["w"], w_scale), "b": WEIGHTS["b"]}
    features = run_ort(graph(text), feeds)["f"]
    result: Array = rounded(features, 1.5 / 127) @ rounded(WEIGHTS["fc"], fc_scale).T
    return result


def test_computes_what_numpy_computes_with_rounded_values(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    got = written(insert_qdq(model, plan_qdq(model), AMAX), tmp_path)
    for oracle in (run_ort, run_reference):
        np.testing.assert_allclose(oracle(got, {"x": IMAGE})["y"], expected_output(), atol=1e-3)


def test_stores_weights_as_int8_without_a_quantizer(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    got = written(insert_qdq(model, plan_qdq(model), AMAX), tmp_path)
    stored = {t.name: numpy_helper.to_array(t) for t in got.graph.initializer}
    assert "w" not in stored
    assert stored["w_quantized"].dtype == np.int8
    assert stored["w_quantized"].min() >= -127
    np.testing.assert_allclose(
        stored["w_scale"], np.abs(WEIGHTS["w"]).max((1, 2, 3)) / 127, rtol=1e-6
    )
    assert stored["b"].dtype == np.float32
    quantizers = [n.input[0] for n in got.graph.node if n.op_type == "QuantizeLinear"]
    assert quantizers == ["x", "f"]
    assert {stored[n].dtype.name for n in stored if n.endswith("_scale")} == {"float32"}
    zeros = [stored[n] for n in stored if n.endswith("_zero_point")]
    assert len(zeros) == 2
    assert not any(zeros)


def test_the_given_model_stays_as_it_was(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    before = run_ort(written(model, tmp_path), {"x": IMAGE})["y"]
    correct_biases(insert_qdq(model, plan_qdq(model), AMAX), {"conv": np.ones(24, np.float32)})
    probe_errors(model, plan_qdq(model), AMAX)
    np.testing.assert_array_equal(run_ort(written(model, tmp_path), {"x": IMAGE})["y"], before)


def test_a_weight_that_two_layers_read_is_stored_once(tmp_path: Path) -> None:
    text = """net (float[batch,16,6,6] x) => (float[batch,24,6,6] y, float[batch,24,4,4] z) {
        [one] y = Conv <pads = [1,1,1,1]> (x, w, b)
        [two] z = Conv (x, w, b)
    }"""
    model = loaded(tmp_path, text)
    got = written(insert_qdq(model, plan_qdq(model), AMAX), tmp_path)
    assert sum(n.op_type == "DequantizeLinear" for n in got.graph.node) == 2
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in got.graph.initializer) == 2  # and zero


def test_other_readers_see_the_value_as_it_was(tmp_path: Path) -> None:
    text = """net (float[batch,16,6,6] x) => (float[batch,24,4,4] y, float[batch,16,6,6] z) {
        [conv] y = Conv (x, w, b)
        [relu] z = Relu (x)
    }"""
    model = loaded(tmp_path, text)
    got = written(insert_qdq(model, plan_qdq(model), AMAX), tmp_path)
    np.testing.assert_array_equal(run_ort(got, {"x": IMAGE})["z"], np.maximum(IMAGE, 0))


@pytest.mark.parametrize("amax", [0.0, 1e-300])
def test_a_scale_is_never_zero(amax: float, tmp_path: Path) -> None:
    model = loaded(tmp_path)
    scales = activation_scales(plan_qdq(model), dict.fromkeys(AMAX, amax))
    assert all(np.square(scale) >= np.finfo(np.float32).tiny for scale in scales.values())


def test_an_all_zero_channel_stays_finite(tmp_path: Path) -> None:
    weights = WEIGHTS["w"].copy()
    weights[3] = 0
    model = read_model(save(graph(NETWORK, WEIGHTS | {"w": weights}), tmp_path / "graph.onnx"))
    got = written(insert_qdq(model, plan_qdq(model), AMAX), tmp_path)
    scale = next(t for t in got.graph.initializer if t.name == "w_scale")
    assert numpy_helper.to_array(scale).min() > 0
    assert np.isfinite(run_ort(got, {"x": IMAGE})["y"]).all()


def test_a_group_takes_its_largest_range(tmp_path: Path) -> None:
    plan = QdqPlan({"a": (), "b": (), "c": ()}, (), (frozenset({"a", "b"}),))
    scales = activation_scales(plan, {"a": 127.0, "b": 254.0, "c": 381.0})
    assert {name: float(scale) for name, scale in scales.items()} == {"a": 2.0, "b": 2.0, "c": 3.0}


@pytest.mark.parametrize(
    ("amax", "message"),
    [
        ({"x": 1.0}, r"no figure for 'f'\n"),
        ({}, r"no figure for 'x' and 1 other values\n"),
        ({"x": float("nan"), "f": 1.0}, "gives 'x' a range of nan"),
        ({"x": 1.0, "f": -1.0}, "gives 'f' a range of -1.0"),
    ],
)
def test_unusable_ranges_are_refused(amax: dict[str, float], message: str, tmp_path: Path) -> None:
    model = loaded(tmp_path)
    with pytest.raises(DataError, match=message):
        insert_qdq(model, plan_qdq(model), amax)


def test_the_rest_is_fp16_with_casts_outside_the_pairs(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    quantized = insert_qdq(model, plan_qdq(model), AMAX)
    got = written(convert_to_half(quantized, plan_half(quantized, {}, 4.0)), tmp_path)
    types = {t.name: t.data_type for t in got.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(got, check_type=True, strict_mode=True).graph
    types |= {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    for node in got.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert types[node.input[1]] == onnx.TensorProto.FLOAT
        if node.op_type in {"Conv", "Gemm"}:
            assert {types[name] for name in node.input if name} == {onnx.TensorProto.FLOAT16}
    np.testing.assert_allclose(run_ort(got, {"x": IMAGE})["y"], expected_output(), atol=0.1)


def test_weight_ratios_are_numpys(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    ratios = weight_sqnr_db(model, plan_qdq(model))
    weight = WEIGHTS["fc"]
    noise = weight - rounded(weight, np.abs(weight).max(axis=1, keepdims=True) / np.float32(127))
    assert ratios["gemm"] == pytest.approx(
        10 * np.log10((weight**2).sum() / (noise**2).sum()), abs=0.01
    )
    assert set(ratios) == {"conv", "gemm"}


def test_the_probe_measures_each_layer_by_itself(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    probe = probe_errors(model, plan_qdq(model), AMAX)
    got = run_ort(probe.graph, {"x": IMAGE})
    shown, _ = expose_outputs(model)
    exact = run_ort(shown, {"x": IMAGE})
    scale = np.abs(WEIGHTS["fc"]).max(axis=1, keepdims=True) / np.float32(127)
    quantized = rounded(exact["f"], 1.5 / 127) @ rounded(WEIGHTS["fc"], scale).T
    expected = (exact["f"] @ WEIGHTS["fc"].T - quantized).mean(axis=0)
    np.testing.assert_allclose(got[probe.shifts["gemm"]], expected, atol=1e-4)
    assert got[probe.shifts["conv"]].shape == (24,)
    signal, noise = (got[name] for name in probe.powers["x"])
    assert signal == pytest.approx(np.square(IMAGE).sum(), rel=1e-4)
    assert noise == pytest.approx(np.square(IMAGE - rounded(IMAGE, 3 / 127)).sum(), rel=1e-3)


def test_corrected_biases_remove_the_mean_error(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    plan = plan_qdq(model)
    amax = {"x": 1.0, "f": 1.5}  # clips a third of the image: a large shift
    feeds = {"x": np.abs(IMAGE)}
    probe = probe_errors(model, plan, amax)
    measured = run_ort(probe.graph, feeds)
    shifts = {layer: measured[name] for layer, name in probe.shifts.items()}
    corrected, count = correct_biases(model, shifts)
    assert count == 2
    means = []
    for source in (model, insert_qdq(model, plan, amax), insert_qdq(corrected, plan, amax)):
        shown, _ = expose_outputs(source)
        means.append(run_ort(shown, feeds)["c"].mean(axis=(0, 2, 3)))
    exact, before, after = means
    assert np.abs(before - exact).max() > 0.1
    np.testing.assert_allclose(after, exact, atol=1e-3)


@pytest.mark.parametrize("gemm", ["Gemm <beta = 0.5> (x, w, b)", "Gemm (x, w, row)"])
def test_a_bias_of_another_form_is_left_alone(gemm: str, tmp_path: Path) -> None:
    text = f"net (float[batch,16] x) => (float[batch,24] y) {{ [fc] y = {gemm} }}"
    constants = {"w": normal(16, 24), "b": normal(24), "row": normal(1, 24)}
    model = read_model(save(graph(text, constants), tmp_path / "graph.onnx"))
    assert correct_biases(model, {"fc": np.ones(24, np.float32)})[1] == 0

"""Where FP8 goes, by the limits that NVIDIA's tools have, and its arithmetic bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.compiler import load_compiler
from deploykit.core.errors import DataError, ModelFileError
from deploykit.core.precision import Precision
from deploykit.graph import convert_to_half, plan_half, read_model, tidy, write_model
from deploykit.graph.qdq import QdqPolicy, fp8_calibration_tensors, insert_qdq, plan_fp8
from deploykit.graph.qdq.insertion import channel_scales, quantize, scale_of
from deploykit.graph.qdq.plan import FP8
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.graph.qdq import QdqPlan


def read(source: onnx.ModelProto, folder: Path) -> ir.Model:
    model = read_model(save(source, folder / "source.onnx"))
    tidy(model, rename=False)
    return model


def convolution(inputs: int, outputs: int, size: int, group: int, folder: Path) -> QdqPlan:
    weight = normal(outputs, inputs // group, size, size)
    text = f"""g (float[1,{inputs},9,9] x) => (float[1,{outputs},9,9] y) {{
        [conv] y = Conv <pads = [{",".join([str(size // 2)] * 4)}], group = {group}> (x, w)
    }}"""
    return plan_fp8(read(graph(text, {"w": weight}), folder))


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "group", "reason"),
    [
        (17, 17, 3, 1, None),
        (64, 32, 5, 1, None),
        (96, 96, 1, 2, None),
        (3, 64, 3, 1, "3 to 64 channels are too few for FP8"),
        (16, 64, 3, 1, "16 to 64 channels are too few for FP8"),
        (64, 16, 1, 1, "64 to 16 channels are too few for FP8"),
        (64, 64, 3, 64, "1 to 1 channels in each group are too few for FP8"),
        (64, 64, 3, 4, "16 to 16 channels in each group are too few for FP8"),
        (32, 32, 7, 1, "a filter of 49 taps is too large for FP8"),
    ],
)
def test_convolutions(
    inputs: int, outputs: int, size: int, group: int, reason: str | None, tmp_path: Path
) -> None:
    plan = convolution(inputs, outputs, size, group, tmp_path)
    assert plan.layers == (frozenset() if reason else {"conv"})
    assert plan.kept == ({"conv": reason} if reason else {})


def test_transposed_convolutions_stay(tmp_path: Path) -> None:
    text = """g (float[1,32,4,4] x) => (float[1,32,6,6] y) { [up] y = ConvTranspose (x, w) }"""
    plan = plan_fp8(read(graph(text, {"w": normal(32, 32, 3, 3)}), tmp_path))
    assert plan.kept == {"up": "transposed convolutions have no FP8 kernels"}


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (15, 64), (64, 15), (128, 1000)])
def test_matrix_products(rows: int, columns: int, tmp_path: Path) -> None:
    text = f"g (float[b,{rows}] x) => (float[b,{columns}] y) {{ [fc] y = MatMul (x, w) }}"
    plan = plan_fp8(read(graph(text, {"w": normal(rows, columns)}), tmp_path))
    small = min(rows, columns) < 16
    assert plan.layers == (frozenset() if small else {"fc"})
    said = {"fc": f"its weight ({rows}, {columns}) is too small to gain from FP8"}
    assert plan.kept == (said if small else {})


def attention(tokens: int, size: int) -> onnx.ModelProto:
    """Queries, keys and values from one input, scaled and masked, as exporters write them."""
    wide = size * 2
    return graph(
        f"""g (float[b,{tokens},{wide}] x) => (float[b,{tokens},{wide}] y) {{
            [q] q = MatMul (x, wq)
            [k] k = MatMul (x, wk)
            [v] v = MatMul (x, wv)
            qs = Reshape (q, heads)
            ks = Reshape (k, heads)
            vs = Reshape (v, heads)
            qt = Transpose <perm = [0,2,1,3]> (qs)
            kt = Transpose <perm = [0,2,3,1]> (ks)
            vt = Transpose <perm = [0,2,1,3]> (vs)
            qn = Mul (qt, factor)
            [scores] s = MatMul (qn, kt)
            m = Add (s, mask)
            p = Softmax <axis = -1> (m)
            [mix] o = MatMul (p, vt)
            ot = Transpose <perm = [0,2,1,3]> (o)
            of = Reshape (ot, flat)
            [out] y = MatMul (of, wo)
        }}""",
        {
            **{f"w{each}": normal(wide, wide, seed=i, scale=0.2) for i, each in enumerate("qkvo")},
            "heads": np.array([0, 0, 2, size]),
            "flat": np.array([0, 0, wide]),
            "factor": np.array(size**-0.5, np.float32),
            "mask": np.zeros((1, 1, tokens, tokens), np.float32),
        },
    )


def test_both_products_of_an_attention(tmp_path: Path) -> None:
    model = read(attention(20, 16), tmp_path)
    plan = plan_fp8(model)
    assert plan.products == ("scores", "mix")
    assert plan.layers == {"q", "k", "v", "scores", "mix", "out"}
    # Scaling and transposes stand before the pairs; probabilities need no measurement.
    assert set(plan.activations) == {"x", "qn", "kt", "p", "vt", "of"}
    assert plan.known == {"p": 1.0}
    assert "p" not in plan.tensors
    assert set(fp8_calibration_tensors(model)) >= set(plan.tensors)
    result = insert_qdq(model, plan, dict.fromkeys(plan.tensors, 448.0))
    scales = {
        str(node.inputs[0].name): float(node.inputs[1].const_value.numpy())  # type: ignore[union-attr]
        for node in result.graph
        if node.op_type == "QuantizeLinear"
    }
    assert scales == {
        name: pytest.approx(1 / 448 if name == "p" else 1.0) for name in plan.activations
    }


@pytest.mark.parametrize(("tokens", "size"), [(32, 32), (50, 64), (49, 32)])
def test_the_compiler_takes_all_products_of_an_attention(
    tokens: int, size: int, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = read(attention(tokens, size), tmp_path)
    plan = plan_fp8(model)
    quantized = insert_qdq(model, plan, dict.fromkeys(plan.tensors, 4.0))
    mixed = convert_to_half(quantized, plan_half(quantized, {}, 1.0))
    write_model(mixed, tmp_path / "fp8.onnx", Precision.FP8)
    targets = CompileOptions(compute_capabilities=("8.9", "12.0"))
    engine = compile_onnx(load_compiler("tensorrt-rtx"), tmp_path / "fp8.onnx", targets)
    assert engine.census["MATRIX_MULTIPLY FP8"] == 6
    assert "MATRIX_MULTIPLY HALF" not in engine.census
    assert engine.warnings == ()


@pytest.mark.parametrize(
    ("tokens", "size", "kept"),
    [
        (20, 8, {"scores": "its K of 8", "mix": "its N of 8"}),
        (9, 16, {"scores": "its N of 9", "mix": "its K of 9"}),
    ],
)
def test_small_products_stay(tokens: int, size: int, kept: dict[str, str], tmp_path: Path) -> None:
    plan = plan_fp8(read(attention(tokens, size), tmp_path))
    assert plan.products == ()
    for name, words in kept.items():
        assert plan.kept[name] == f"{words} is too small to gain from FP8"


def test_a_product_that_is_no_attention_stays(tmp_path: Path) -> None:
    text = """g (float[b,32,32] x, float[b,32,32] z) => (float[b,32,32] y) {
        r = Relu (x)
        [prod] m = MatMul (r, z)
        y = Relu (m)
    }"""
    plan = plan_fp8(read(graph(text), tmp_path))
    assert plan.kept == {"prod": "it has no constant weight"}


def residual(folder: Path) -> ir.Model:
    return read(
        graph(
            """g (float[b,32,8,8] x) => (float[b,32,8,8] y) {
                [first] a = Conv <pads = [1,1,1,1]> (x, w1)
                r = Relu (a)
                [second] c = Conv <pads = [1,1,1,1]> (r, w2)
                [add] s = Add (c, x)
                q = Relu (s)
                p = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (q)
                [third] y = Conv <pads = [1,1,1,1]> (p, w3)
            }""",
            {f"w{n}": normal(32, 32, 3, 3, seed=n, scale=0.1) for n in (1, 2, 3)},
        ),
        folder,
    )


def test_skip_operands_and_what_the_user_keeps(tmp_path: Path) -> None:
    model = residual(tmp_path)
    plan = plan_fp8(model)
    assert set(plan.activations) == {"x", "r", "p"}
    readers = {reader.node for reader in plan.activations["x"]}
    assert readers == {"first", "add"}  # no pair before the pooling: it has no FP8 kernel
    without = plan_fp8(model, QdqPolicy(residual="keep", exclude=("th*",), last_layer="keep"))
    assert without.layers == {"first", "second"}
    assert without.kept["add"] == "residual additions are kept"
    assert without.kept["third"] == "excluded by 'th*'"


def test_a_quantized_graph_and_a_missing_range_are_refused(tmp_path: Path) -> None:
    model = residual(tmp_path)
    plan = plan_fp8(model)
    with pytest.raises(DataError, match="the calibration has no figure for 'r'"):
        insert_qdq(model, plan, {"x": 1.0, "p": 1.0})
    result = insert_qdq(model, plan, dict.fromkeys(plan.tensors, 2.0))
    with pytest.raises(ModelFileError, match="already quantized"):
        plan_fp8(result)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_bit_for_bit(seed: int) -> None:
    weight = normal(20, 18, 3, 3, seed=seed, scale=10.0 ** (seed - 1))
    weight[3] = 0
    scales = channel_scales(weight, 0, FP8)
    largest = np.abs(weight).max(axis=(1, 2, 3))
    np.testing.assert_allclose(scales[largest > 0], (largest / 448)[largest > 0], rtol=1e-6)
    stored = quantize(weight, scales, 0, FP8)
    expected = np.clip(weight / scales[:, None, None, None], -448, 448)
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    assert np.array_equal(stored.view(np.uint8), expected.astype(stored.dtype).view(np.uint8))
    assert np.abs(stored.astype(np.float32)).max(axis=(1, 2, 3)).tolist() == [
        448.0 if each else 0.0 for each in largest
    ]


def test_the_file_computes_what_numpy_computes(tmp_path: Path) -> None:
    """One layer, judged by onnxruntime's kernels, against a product in numpy."""
    weight, bias = normal(24, 40, seed=1), normal(24, seed=2)
    text = "g (float[b,40] x) => (float[b,24] y) { [fc] y = Gemm <transB = 1> (x, w, bias) }"
    model = read(graph(text, {"w": weight, "bias": bias}), tmp_path)
    plan = plan_fp8(model)
    write_model(insert_qdq(model, plan, {"x": 3.0}), tmp_path / "fp8.onnx", Precision.FP8)
    proto = onnx.load(tmp_path / "fp8.onnx")
    onnx.checker.check_model(proto, full_check=True)
    kinds = {t.data_type for t in proto.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds
    assert onnx.TensorProto.FLOAT8E5M2 not in kinds
    image = normal(8, 40, seed=3, scale=1.5)
    scale = np.float32(scale_of(3.0, FP8))
    fp8 = ml_dtypes.float8_e4m3fn
    rounded = np.clip(image / scale, -448, 448).astype(fp8).astype(np.float32) * scale
    scales = np.abs(weight).max(axis=1, keepdims=True) / 448
    narrow = (weight / scales).astype(fp8).astype(np.float32) * scales
    got = run_ort(proto, {"x": image})["y"]
    np.testing.assert_allclose(got, rounded @ narrow.T + bias, rtol=1e-4, atol=1e-4)
    assert np.abs(got - (image @ weight.T + bias)).max() > 1e-2
    names = {tensor.name: tensor for tensor in proto.graph.initializer}
    zero = numpy_helper.to_array(names["x_zero_point"])
    assert zero.shape == ()
    assert float(zero) == 0


def test_products_of_masked_values_are_kept(tmp_path: Path) -> None:
    """A soft selection whose operand has a mask itself; the probabilities behind one are plain."""
    text = """g (float[2,32,32] x) => (float[2,32,32] y, float[2,32,32] z) {
        [masked] m = Where (above, ninf, x)
        [soft] p = Softmax (m)
        [good] y = MatMul (p, x)
        [bad] z = MatMul (p, m)
    }"""
    above = np.triu(np.ones((32, 32), bool), 1)
    constants = {"above": above, "ninf": np.array(-np.inf, np.float32)}
    plan = plan_fp8(read(graph(text, constants), tmp_path))
    assert plan.products == ("good",)
    assert plan.kept["bad"].startswith("what it reads may hold the infinities of a mask")
    assert tuple(plan.activations) == ("x", "p")

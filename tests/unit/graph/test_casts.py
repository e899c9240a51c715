from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from deploykit.backends import CompileOptions
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.compiler import load_compiler
from deploykit.core.artifacts import sha256_of
from deploykit.core.precision import Precision
from deploykit.graph import convert_to_half, plan_half, read_model, tidy, write_model
from tests.graphs import graph, normal, run_ort, run_reference, save
from tests.unit.graph.halving import (
    FLOAT,
    HALF,
    HEADROOM,
    IMAGE,
    Array,
    Converted,
    assert_well_typed,
    casts,
    node_of,
    residual_network,
    types_of,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_plain_network_has_one_cast_in_and_one_out(tmp_path: Path) -> None:
    source = graph(
        """net (float[batch,3,8,8] x) => (float[batch,5] y) {
            c = Conv <pads = [1,1,1,1]> (x, w, b)
            r = Relu (c)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, m)
        }""",
        {"w": normal(4, 3, 3, 3), "b": normal(4), "m": normal(5, 4)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    assert casts(converted.half) == 2
    assert converted.plan.kept == {}
    types = types_of(converted.half)
    assert {types[name] for name in node_of(converted.half, "Conv").input} == {HALF}
    assert {tensor.data_type for tensor in converted.half.graph.initializer} == {HALF}


def test_the_given_model_stays_as_it_was(tmp_path: Path) -> None:
    converted = Converted(residual_network(), tmp_path, {"x": IMAGE})
    again = tmp_path / "again.onnx"
    write_model(converted.tidied, again, Precision.FP32)
    assert_well_typed(onnx.load(again))
    assert HALF not in types_of(onnx.load(again)).values()


def test_an_output_that_is_read_inside_keeps_its_name_and_type(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,4,8,8] y, float[batch,4,8,8] c) {
            c = Conv (x, w)
            y = Relu (c)
        }""",
        {"w": normal(4, 3, 1, 1)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    assert types_of(converted.half)[node_of(converted.half, "Relu").input[0]] == HALF


def test_an_output_that_an_fp32_node_reads_shares_the_cast(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,4,8,8] x) => (float[batch,4,8,8] c, float[batch,4,8,8] y) {
            c = Relu (x)
            y = LRN <size = 3> (c)
        }"""
    )
    converted = Converted(source, tmp_path, {"x": normal(2, 4, 8, 8)})
    assert_well_typed(converted.half)
    converted.assert_close()
    assert node_of(converted.half, "LRN").input[0] == "c"
    assert casts(converted.half) == 2


def test_an_output_listed_twice_is_fp32_in_both_places(tmp_path: Path) -> None:
    source = graph(
        "g (float[batch,3,8,8] x) => (float[batch,3,8,8] y, float[batch,3,8,8] y) { y = Relu (x) }"
    )
    model = read_model(save(source, tmp_path / "source.onnx"))
    tidy(model, rename=False)
    result = convert_to_half(model, plan_half(model, {}, HEADROOM))
    assert [str(value.name) for value in result.graph.outputs] == ["y", "y"]
    assert {value.dtype for value in result.graph.outputs} == {ir.DataType.FLOAT}


def test_a_value_read_by_both_kinds_of_node(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) {
            c = Conv (x, w)
            a = LRN <size = 3> (c)
            b = Relu (c)
            y = Add (a, b)
        }""",
        {"w": normal(4, 3, 1, 1)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    types = types_of(converted.half)
    assert types[node_of(converted.half, "Relu").input[0]] == HALF
    assert types[node_of(converted.half, "LRN").input[0]] == FLOAT
    assert converted.plan.kept == {"LRN": "its intermediate squares overflow"}


def test_a_weight_shared_by_both_kinds_of_node(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) {
            a = Add (x, s)
            big = Mul (a, up)
            b = Add (big, s)
            c = Mul (b, down)
            y = Relu (c)
        }""",
        {
            "s": normal(1, 3, 1, 1),
            "up": np.full((1, 1, 1, 1), 6e4, np.float32),
            "down": np.full((1, 1, 1, 1), 1e-5, np.float32),
        },
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert set(converted.plan.kept) == {"Mul", "Add_2", "Mul_2"}
    assert_well_typed(converted.half)
    converted.assert_close()
    names = {tensor.name for tensor in converted.half.graph.initializer}
    assert names == {"s", "s_fp16", "up", "down"}


def test_a_new_name_evades_one_that_is_taken(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,8,8] y_fp16, float[batch,3,8,8] y) {
            x_fp16 = Add (x, w)
            n = Add (x_fp16, w_fp16)
            y = Relu (n)
            y_fp16 = LRN <size = 3> (n)
        }""",
        {"w": normal(1, 3, 1, 1), "w_fp16": normal(1, 3, 1, 1, seed=1)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    names = [name for node in converted.half.graph.node for name in node.output]
    assert len(set(names)) == len(names)


def test_resize_keeps_its_scales_in_fp32(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (float[batch,3,16,16] y) {
            y = Resize <mode = "nearest"> (x, , scales)
        }""",
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    inputs = node_of(converted.half, "Resize").input
    types = types_of(converted.half)
    assert (types[inputs[0]], inputs[1], types[inputs[2]]) == (HALF, "", FLOAT)


def test_clip_bounds_beyond_fp16_become_its_own(tmp_path: Path) -> None:
    source = graph(
        "g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) { y = Clip (x, low, high) }",
        {"low": np.array(0, np.float32), "high": np.array(3.4e38, np.float32)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert converted.plan.halved == {"Clip"}
    assert_well_typed(converted.half)
    converted.assert_close()
    bounds = {t.name: numpy_helper.to_array(t) for t in converted.half.graph.initializer}
    assert bounds["high_fp16"] == np.float16(65504)


def test_a_subgraph_reads_an_fp32_copy_of_an_outer_value(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x, bool c) => (float[batch,3,8,8] y) {
            r = Relu (x)
            z = If (c) <
                then_branch = then () => (float[batch,3,8,8] t) { t = Neg (r) },
                else_branch = other () => (float[batch,3,8,8] e) { e = Identity (r) }
            >
            y = Add (z, r)
        }"""
    )
    for condition in (True, False):
        feeds = {"x": IMAGE, "c": np.array(condition)}
        converted = Converted(source, tmp_path, {"x": IMAGE} | feeds)
        assert converted.plan.kept == {"If": "control flow"}
        assert_well_typed(converted.half)
        converted.assert_close()
        assert types_of(converted.half)[node_of(converted.half, "Add").input[0]] == HALF


def test_an_integer_cast_of_an_fp32_value_is_not_rounded_on_the_way(tmp_path: Path) -> None:
    source = graph("g (float[4] x) => (int64[4] y) { y = Cast <to = 7> (x) }")
    converted = Converted(source, tmp_path, {"x": np.array([1, 2049, 3001, 4099], np.float32)})
    assert_well_typed(converted.half)
    assert run_reference(converted.half, converted.feeds)["y"].tolist() == [1, 2049, 3001, 4099]
    assert casts(converted.half) == 1


def test_shape_and_argmax_read_fp16_as_it_is(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,3,8,8] x) => (int64[4] s, int64[batch,1,8,8] top, float[batch,3,8,8] up) {
            r = Relu (x)
            s = Shape (r)
            top = ArgMax <axis = 1> (r)
            i = Cast <to = 6> (r)
            up = Cast <to = 1> (i)
        }"""
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    assert casts(converted.half) == 3
    assert types_of(converted.half)[node_of(converted.half, "Shape").input[0]] == HALF


def test_every_argument_of_a_variadic_operator_changes(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,4,8,8] x) => (float[batch,16,8,8] y) {
            a = Relu (x)
            b = LRN <size = 3> (x)
            y = Concat <axis = 1> (a, b, x, c)
        }""",
        {"c": normal(2, 4, 8, 8, seed=2)},
    )
    converted = Converted(source, tmp_path, {"x": normal(2, 4, 8, 8)})
    assert_well_typed(converted.half)
    converted.assert_close()
    types = types_of(converted.half)
    assert {types[name] for name in node_of(converted.half, "Concat").input} == {HALF}


def test_an_input_that_is_an_output_is_left_alone(tmp_path: Path) -> None:
    source = graph(
        "g (float[batch,3,8,8] x) => (float[batch,3,8,8] x, float[batch,3,8,8] y) { y = Relu (x) }"
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()


def test_a_weight_that_is_also_listed_as_input_becomes_a_constant(tmp_path: Path) -> None:
    source = graph(
        "g (float[2,3,8,8] x, float[4,3,1,1] w) => (float[2,4,8,8] y) { y = Conv (x, w) }",
        {"w": normal(4, 3, 1, 1)},
    )
    converted = Converted(source, tmp_path, {"x": IMAGE})
    assert [value.name for value in converted.half.graph.input] == ["x"]
    assert_well_typed(converted.half)
    converted.assert_close()


def test_the_result_is_the_same_every_time(tmp_path: Path) -> None:
    source = residual_network()
    digests = set()
    for run in ("a", "b"):
        folder = tmp_path / run
        folder.mkdir()
        Converted(source, folder, {"x": IMAGE})
        digests.add(sha256_of(folder / "half.onnx"))
    assert len(digests) == 1


def test_a_residual_network_compiles_strongly_typed_in_fp16(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx-cu13 is not installed")
    converted = Converted(residual_network(), tmp_path, {"x": IMAGE})
    assert_well_typed(converted.half)
    converted.assert_close()
    options = CompileOptions(compute_capabilities=("8.9",))
    engine = compile_onnx(load_compiler("tensorrt-rtx"), tmp_path / "half.onnx", options)
    heavy = {kind: n for kind, n in engine.census.items() if kind.split()[0] == "CONVOLUTION"}
    assert heavy == {"CONVOLUTION HALF": 5}
    assert engine.census["MATRIX_MULTIPLY HALF"] == 1
    assert not any(kind.endswith("FLOAT") for kind in engine.census)


STEPS = ("Conv", "Relu", "Add", "MaxPool", "Concat", "Clip", "Cast", "LRN", "Mul")


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """A random chain in which each step may also read any value before it."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    values = [("x", 4)]
    for at, kind in enumerate(draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))):
        (source, channels), name = draw(st.sampled_from(values)), f"v{at}"
        inputs: list[str] = [source]
        attributes: dict[str, Any] = {}
        if kind == "Conv":
            constants[f"w{at}"] = normal(4, channels, 3, 3, seed=at, scale=0.2)
            inputs, attributes, channels = [source, f"w{at}"], {"pads": [1] * 4}, 4
        elif kind == "MaxPool":
            attributes = {"kernel_shape": [3, 3], "pads": [1] * 4}
        elif kind in {"Add", "Concat"}:
            peers = [v for v in values if kind == "Concat" or v[1] == channels]
            other, more = draw(st.sampled_from(peers))
            inputs = [source, other]
            if kind == "Concat":
                attributes, channels = {"axis": 1}, channels + more
        elif kind == "Clip":
            constants[f"k{at}"] = np.array(3e8, np.float32)
            inputs = [source, "", f"k{at}"]
        elif kind == "Mul":
            constants[f"k{at}"] = np.array(draw(st.sampled_from([3e4, 1e-2])), np.float32)
            inputs = [source, f"k{at}"]
        elif kind == "Cast":
            nodes.append(helper.make_node("Cast", [source], [f"h{at}"], to=HALF))
            inputs, attributes = [f"h{at}"], {"to": FLOAT}
        elif kind == "LRN":
            attributes = {"size": 3}
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        values.append((name, channels))
    shown = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=2, unique=True))
    outputs = dict.fromkeys([values[-1], *shown])
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 4, 5, 5])
    ys = [helper.make_tensor_value_info(n, FLOAT, ["batch", c, 5, 5]) for n, c in outputs]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    drawn = helper.make_graph(nodes, "chain", [x], ys, weights)
    return helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chains())
def test_any_chain_stays_well_typed_and_close(tmp_path: Path, source: onnx.ModelProto) -> None:
    feeds = {"x": normal(2, 4, 5, 5)}
    converted = Converted(source, tmp_path, feeds)
    onnx.checker.check_model(converted.half, full_check=True)
    types = types_of(converted.half)
    for value in converted.half.graph.value_info:
        assert types[value.name] == value.type.tensor_type.elem_type
    expected, other = run_ort(source, feeds), run_reference(source, feeds)
    # The evaluator normalises large values otherwise in LRN (55,121 in place of 24): where the two
    # differ in FP32, they do not say what FP16 is to give.
    is_known = all(np.allclose(other[name], expected[name], rtol=1e-2) for name in expected)
    if is_known and all(np.isfinite(value).all() for value in expected.values()):
        converted.assert_close(2e-2)

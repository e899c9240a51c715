from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.core.errors import ModelFileError
from deploykit.graph import convert_to_half, plan_half, read_model, tidy
from deploykit.graph.activations import (
    ActivationPair,
    expose_magnitudes,
    expose_only,
    input_names,
    pair_activations,
    with_input_shape,
)
from deploykit.graph.half_range import RangeProbe, expose_probes
from deploykit.graph.qdq import QdqPolicy, insert_qdq, plan_qdq
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """net (float[batch,16,6,6] x) => (float[batch,16,4,4] y) {
    [first] c = Conv <pads = [1,1,1,1]> (x, w)
    [relu] r = Relu (c)
    [second] y = Conv (r, v)
}"""
WEIGHTS = {
    "w": normal(16, 16, 3, 3, scale=0.1),
    "v": normal(16, 16, 3, 3, seed=3, scale=0.1),
}


def parsed(text: str = TEXT) -> ir.Model:
    model = ir.from_proto(graph(text, WEIGHTS if "Conv" in text else {}))
    tidy(model, rename=False)
    return model


def names(pairs: tuple[ActivationPair, ...]) -> list[tuple[str, str, str]]:
    return [(pair.name, pair.reference, pair.node) for pair in pairs]


def test_the_same_graph_twice() -> None:
    found = pair_activations(parsed(), parsed())
    assert names(found.pairs) == [("c", "c", "first"), ("r", "r", "relu"), ("y", "y", "second")]
    assert [pair.reads for pair in found.pairs] == [(), ("c",), ("r",)]
    assert [pair.readers for pair in found.pairs] == [("relu",), ("second",), ()]
    assert (found.of_candidate, found.of_reference) == (3, 3)
    assert found.candidate_only == found.reference_only == ()


def test_through_the_casts_of_fp16() -> None:
    model = parsed()
    half = convert_to_half(model, plan_half(model, {}, 4.0))
    found = pair_activations(half, model)
    assert names(found.pairs) == [
        ("x_fp16", "x", "x_fp16/Cast"),
        ("c", "c", "first"),
        ("r", "r", "relu"),
        ("y_fp16", "y", "second"),
    ]
    assert (found.of_candidate, found.of_reference) == (3, 3)
    # The other way round: a node's own output is what counts, not the cast that has its name.
    back = pair_activations(model, half)
    assert names(back.pairs)[-1] == ("y", "y_fp16", "second")
    assert back.candidate_only == back.reference_only == ()


def test_through_q_dq_pairs_and_casts() -> None:
    model = parsed()
    int8 = insert_qdq(model, plan_qdq(model, QdqPolicy()), {"x": 1.0, "r": 1.0})
    int8 = convert_to_half(int8, plan_half(int8, {}, 4.0))
    found = pair_activations(int8, model)
    by_name = {pair.name: pair for pair in found.pairs}
    assert by_name["x_dequantized"].reference == "x"
    assert by_name["r_dequantized"].reference == "r"
    assert by_name["r_dequantized"].reads == ("r",)
    assert by_name["r_dequantized"].readers == ("second",)
    assert by_name["y_fp16"].reference == "y"
    assert not any(name.startswith(("w_", "v_")) for name in by_name)  # weights are none
    assert (found.of_candidate, found.of_reference) == (3, 3)
    assert found.candidate_only == found.reference_only == ()


def test_values_of_other_names_are_found_by_their_node() -> None:
    renamed = parsed(TEXT.replace("c = ", "conv = ").replace("(c)", "(conv)"))
    found = pair_activations(renamed, parsed())
    assert names(found.pairs)[0] == ("conv", "c", "first")


def test_an_input_of_another_name_is_still_the_input() -> None:
    model = parsed(TEXT.replace("] x)", "] image)").replace("(x,", "(image,"))
    half = convert_to_half(model, plan_half(model, {}, 4.0))
    assert names(pair_activations(half, parsed()).pairs)[0][:2] == ("image_fp16", "x")


def test_says_what_only_one_side_has() -> None:
    fewer = TEXT.replace("[relu] r = Relu (c)", "").replace("(r, v)", "(c, v)")
    more = TEXT.replace("[relu] r = Relu (c)", "[abs] a = Abs (c)\n[relu] r = Relu (a)")
    found = pair_activations(parsed(more), parsed(fewer))
    assert found.candidate_only == ("a", "r")
    assert found.reference_only == ()
    # What is not matched is passed over: the nearest value that is.
    assert {pair.name: pair.reads for pair in found.pairs}["y"] == ("c",)
    back = pair_activations(parsed(fewer), parsed(more))
    assert back.reference_only == ("a", "r")
    assert (back.of_candidate, back.of_reference) == (2, 4)


def test_integers_and_constants_are_no_activations() -> None:
    text = """net (float[batch,4] x) => (float[batch,4] y) {
        s = Shape (x)
        a = Abs (x)
        r = Reshape (a, s)
        y = Identity (r)
    }"""
    model = ir.from_proto(graph(text))
    shaped = with_input_shape(model, (2, 4))
    assert [pair.name for pair in pair_activations(shaped, shaped).pairs] == ["a", "r"]


def test_lengths_follow_from_the_shape_of_the_input() -> None:
    model = parsed()
    shaped = with_input_shape(model, (2, 16, 6, 6))
    pairs = pair_activations(shaped, shaped).pairs
    assert [pair.numbers for pair in pairs] == [2 * 16 * 36, 2 * 16 * 36, 2 * 16 * 16]
    assert [pair.numbers for pair in pair_activations(model, model).pairs] == [None] * 3
    assert str(model.graph.inputs[0].shape) == "[batch,16,6,6]"  # untouched


def test_only_the_part_that_is_needed_is_kept(tmp_path: Path) -> None:
    model = read_model(save(graph(TEXT, WEIGHTS), tmp_path / "m.onnx"))
    content = expose_only(with_input_shape(model, (2, 16, 6, 6)), ["r", "c"])
    part = onnx.load_from_string(content.content).graph
    assert [value.name for value in part.output] == ["r", "c"]
    assert [node.name for node in part.node] == ["first", "relu"]
    assert [tensor.name for tensor in part.initializer] == ["w"]
    found = run_ort(content, {"x": normal(2, 16, 6, 6)})
    np.testing.assert_array_equal(found["r"], np.maximum(found["c"], 0))
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_the_name_of_the_input() -> None:
    assert input_names(parsed()) == ("x",)


BESIDE = """net (float[n,4] age, float[n,3,6,6] x) => (float[n,4] y) {
    [double] d = Add (age, age)
    [pool] p = GlobalAveragePool (x)
    [sum] s = ReduceSum <keepdims = 0> (p)
    [join] y = Mul (d, s)
}"""


def test_what_follows_from_other_inputs_is_an_activation_too() -> None:
    model = parsed(BESIDE)
    assert input_names(model) == ("x", "age")
    found = pair_activations(convert_to_half(model, plan_half(model, {}, 4.0)), model)
    pairs = {pair.name: pair.reference for pair in found.pairs}
    assert pairs["age_fp16"] == "age"
    assert pairs["d"] == "d"
    assert found.reference_only == ()
    shaped = with_input_shape(model, (5, 3, 6, 6))
    assert [list(value.shape or ()) for value in shaped.graph.inputs] == [[5, 4], [5, 3, 6, 6]]


def test_a_graph_without_input() -> None:
    model = ir.from_proto(graph("net () => (float[4] y) { y = Abs (a) }", {"a": normal(4)}))
    with pytest.raises(ModelFileError, match="takes no input, so it has no activations to compare"):
        with_input_shape(model, (1, 4))


def test_nodes_that_are_called_as_what_is_added_keep_their_names() -> None:
    """onnxruntime refuses two nodes of one name."""
    text = """net (float[N,4] x) => (float[N,4] y) {
        [t_ReduceMax] t = Abs (x)
        [t_ReduceSum] u = Add (t, t)
        [t_nothing_Abs] y = Div (t, u)
    }"""
    model = parsed(text)
    shown, extremes = expose_magnitudes(model)
    x = normal(3, 4)
    found = run_ort(shown, {"x": x})
    assert found[extremes["u"].largest] == 2 * np.abs(x).max()
    probes = [RangeProbe("t_ReduceSum", "t"), RangeProbe("t_nothing_Abs", "u")]
    (least, other) = run_ort(expose_probes(model, probes), {"x": x}).values()
    assert (least, other) == (np.abs(x).min(), 2 * np.abs(x).min())

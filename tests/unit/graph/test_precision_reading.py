"""Graphs of any maker: what runs in what is read from types and Q/DQ pairs alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.precision import Precision
from deploykit.graph import read_model, tidy
from deploykit.graph.node_precisions import Known, read_precision
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.graph.node_precisions import GraphPrecision, NodePrecision

STEP = np.float32(0.1)
CONSTANTS: dict[str, NDArray[Any]] = {
    "step": np.asarray(STEP),
    "zero": np.asarray(0, np.int8),
    "q_weight": np.ones((4, 3, 3, 3), np.int8),
    "weight": normal(4, 3, 3, 3),
}
PAIR = "{0}q = QuantizeLinear ({0}, step, zero)  {0}d = DequantizeLinear ({0}q, step, zero)"
WEIGHT = "wd = DequantizeLinear (q_weight, step, zero)"


def read(
    folder: Path,
    nodes: str,
    *,
    asked: Precision = Precision.INT8,
    batch: int = 1,
    known: Known | None = None,
    header: str = "float[N,3,8,8] x",
    result: str = "float[N,A,B,C] y",
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> GraphPrecision:
    text = f"g ({header}) => ({result}) {{ {nodes} }}"
    words = set(re.findall(r"\w+", text))
    known_values = {**CONSTANTS, **(constants or {})}
    source = graph(text, {name: value for name, value in known_values.items() if name in words})
    model = read_model(save(source, folder / "g.onnx"))
    tidy(model, rename=False)
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    return read_precision(model, asked, batch, known or Known())


def by_name(found: GraphPrecision) -> dict[str, NodePrecision]:
    return {node.name: node for node in found.nodes}


def test_a_convolution_between_pairs(tmp_path: Path) -> None:
    found = read(tmp_path, f"{PAIR.format('x')} {WEIGHT} c = Conv (xd, wd) y = Relu (c)")
    assert by_name(found)["c"].precision is Precision.INT8
    assert by_name(found)["y"].kernel == "c"
    assert (found.casts, found.qdq_pairs, found.int8_weights) == (0, 1, 1)
    assert found.multiply_adds_in[Precision.INT8] == 4 * 36 * 27


@pytest.mark.parametrize(
    ("data", "kernel", "reason"),
    [
        ("xd", "weight", "no Q/DQ pair stands before its second operand"),
        ("x", "wd", "no Q/DQ pair stands before its input"),
        ("x", "weight", "no Q/DQ pair stands before its input and its second operand"),
        ("xd", "wd", None),
    ],
)
def test_the_operand_that_lacks_a_pair_is_named(
    tmp_path: Path, data: str, kernel: str, reason: str | None
) -> None:
    nodes = f"""{PAIR.format("x")} {WEIGHT}
        data = Cast <to = 10> ({data})  kernel = Cast <to = 10> ({kernel})
        c = Conv (data, kernel)  y = Cast <to = 1> (c)"""
    node = by_name(read(tmp_path, nodes))["c"]
    assert node.precision is (Precision.FP16 if reason else Precision.INT8)
    assert node.reason == reason


def test_a_reason_that_was_written_down_goes_first(tmp_path: Path) -> None:
    known = Known({"y": "the last layer is kept"})
    found = read(tmp_path, "y = Conv (x, weight)", known=known)
    assert by_name(found)["y"].reason == "the last layer is kept"


def test_what_has_no_fp16_form_says_so_without_a_record(tmp_path: Path) -> None:
    nodes = "h = Cast <to = 10> (x) r = Relu (h) f = Cast <to = 1> (r) y = LRN <size = 3> (f)"
    found = by_name(read(tmp_path, nodes, asked=Precision.FP16))
    assert found["r"].precision is Precision.FP16
    assert found["y"].reason == "its intermediate squares overflow"


def test_pooling_between_pairs_runs_on_int8(tmp_path: Path) -> None:
    pool = "p = MaxPool <kernel_shape = [2,2]> (xd)"
    after = f"{PAIR.format('p')} {WEIGHT} y = Conv (pd, wd)"
    assert by_name(read(tmp_path, f"{PAIR.format('x')} {pool} {after}"))["p"].precision == "int8"
    plain = f"p = MaxPool <kernel_shape = [2,2]> (x) {after}"
    node = by_name(read(tmp_path, plain))["p"]
    assert node.precision is Precision.FP32
    before = by_name(read(tmp_path, f"{PAIR.format('x')} {pool} y = Relu (p)"))["p"]
    assert before.precision is Precision.FP32


def test_a_concatenation_needs_pairs_on_all_sides(tmp_path: Path) -> None:
    ends = f"{PAIR.format('k')} y = Conv (kd, six)"
    constants = {"six": normal(2, 6, 1, 1)}
    whole = f"{PAIR.format('x')} n = Neg (x) {PAIR.format('n')} k = Concat <axis = 1> (xd, nd)"
    found = by_name(read(tmp_path, f"{whole} {ends}", constants=constants))
    assert found["k"].precision is Precision.INT8
    half = f"{PAIR.format('x')} n = Neg (x) k = Concat <axis = 1> (xd, n)"
    found = by_name(read(tmp_path, f"{half} {ends}", constants=constants))
    assert found["k"].precision is Precision.FP32


def test_a_move_through_reshape_and_transpose(tmp_path: Path) -> None:
    nodes = f"""{PAIR.format("x")} t = Transpose <perm = [0,1,3,2]> (xd) r = Flatten (t)
        {PAIR.format("r")} y = Relu (rd)"""
    found = by_name(read(tmp_path, nodes, result="float[N,A] y"))
    assert found["t"].precision is found["r"].precision is Precision.INT8
    assert found["t"].kernel == "t"
    assert found["r"].kernel is None


def test_operators_of_whole_numbers_are_int8_by_themselves(tmp_path: Path) -> None:
    nodes = """xq = QuantizeLinear (x, step, zero)
        c = QLinearConv (xq, step, zero, q_weight, step, zero, step, zero)
        y = DequantizeLinear (c, step, zero)"""
    found = read(tmp_path, nodes)
    assert [(node.op_type, node.precision) for node in found.nodes] == [("QLinearConv", "int8")]
    assert found.integer_ops == {"QLinearConv": 1}


def test_a_weight_that_is_quantized_as_the_graph_runs(tmp_path: Path) -> None:
    nodes = f"""{PAIR.format("x")} wq = QuantizeLinear (weight, step, zero)
        wd = DequantizeLinear (wq, step, zero) y = Conv (xd, wd)"""
    found = read(tmp_path, nodes)
    assert by_name(found)["y"].precision is Precision.INT8
    assert (found.qdq_pairs, found.int8_weights) == (1, 1)


def test_shapes_have_no_row(tmp_path: Path) -> None:
    nodes = "s = Shape (x) z = Reshape (x, s) y = Relu (z)"
    assert list(by_name(read(tmp_path, nodes))) == ["z", "y"]


def test_a_fixed_batch_is_counted_as_it_is(tmp_path: Path) -> None:
    fixed = read(tmp_path, "y = Conv (x, weight)", batch=1, header="float[5,3,8,8] x")
    opened = read(tmp_path, "y = Conv (x, weight)", batch=5)
    assert fixed.multiply_adds == opened.multiply_adds == 5 * 4 * 36 * 27


def test_an_open_height_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"input 'x' has open dimensions: \(N, 3, H, 8\)"):
        read(tmp_path, "y = Conv (x, weight)", header="float[N,3,H,8] x")


def test_nodes_of_one_name(tmp_path: Path) -> None:
    source = graph("g (float[N,3] x) => (float[N,3] y) { a = Relu (x) y = Neg (a) }")
    for node in source.graph.node:
        node.name = "same"
    model = read_model(save(source, tmp_path / "g.onnx"))
    with pytest.raises(ModelFileError, match="have no names of their own; tidy it first"):
        read_precision(model, Precision.FP32, 1)


def test_no_work_has_no_shares(tmp_path: Path) -> None:
    found = read(tmp_path, "y = Relu (x)", asked=Precision.FP32)
    assert found.multiply_adds == 0
    assert found.to_dict()["share"] == dict.fromkeys(("fp32", "fp16", "bf16", "int8", "fp8"), 0.0)
    assert found.to_dict()["nodes"][0]["reason"] is None

"""What an export would make of a graph: compared with what it does make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, read_artifact, read_model, tidy, write_model
from deploykit.graph.node_precisions import planned_half, planned_int8, read_precision
from deploykit.graph.qdq import QdqPolicy, plan_qdq
from deploykit.precision.fp16 import HEADROOM
from deploykit.precision.quantization.conversion import Int8Options, quantize_to_int8
from tests.graphs import graph, normal, save
from tests.unit.graph.halving import halving

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.graph.node_precisions import GraphPrecision, NodePrecision

RESIDUAL = """g (float[N,3,8,8] x) => (float[N,4] y) {
    c1 = Conv <pads = [1,1,1,1]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1,1,1,1]> (r1, w2)
    s = Add (c2, r1)
    r2 = Relu (s)
    p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r2)
    c3 = Conv (p, w3)
    m = GlobalAveragePool (c3)
    f = Flatten (m)
    y = Gemm <transB = 1> (f, w4)
}"""
WEIGHTS = {
    "w1": normal(16, 3, 3, 3),
    "w2": normal(16, 16, 3, 3, seed=1),
    "w3": normal(16, 16, 1, 1, seed=2),
    "w4": normal(4, 16, seed=3),
}
MULTIPLY_ADDS = {
    "c1": 16 * 64 * 27,
    "c2": 16 * 64 * 144,
    "c3": 16 * 16 * 16,
    "y": 4 * 16,
}


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    read = read_model(save(graph(RESIDUAL, WEIGHTS), tmp_path / "g.onnx"))
    tidy(read, rename=False)
    for node in read.graph:  # so that the tests can name nodes by what they make
        node.name = str(node.outputs[0].name)
    return read


def int8(
    model: ir.Model, amax: Mapping[str, float] | None = None, **policy: tuple[str, ...]
) -> GraphPrecision:
    planned = planned_int8(model, amax or {}, HEADROOM, QdqPolicy(**policy))  # type: ignore[arg-type]  # only patterns here
    return read_precision(planned.model, Precision.INT8, 1, planned.known)


def fp16(model: ir.Model, amax: Mapping[str, float] | None = None) -> GraphPrecision:
    planned = planned_half(model, amax or {}, HEADROOM)
    return read_precision(planned.model, Precision.FP16, 1, planned.known)


def by_name(found: GraphPrecision) -> dict[str, NodePrecision]:
    return {node.name: node for node in found.nodes}


def precisions(found: GraphPrecision) -> dict[str, str]:
    return {node.name: str(node.precision) for node in found.nodes}


def test_the_plan_of_int8(model: ir.Model) -> None:
    found = int8(model)
    nodes = by_name(found)
    assert list(nodes) == ["c1", "r1", "c2", "s", "r2", "p", "c3", "m", "f", "y"]
    heavy = {name: str(nodes[name].precision) for name in MULTIPLY_ADDS}
    assert heavy == {"c1": "int8", "c2": "int8", "c3": "int8", "y": "fp16"}
    assert {n: nodes[n].multiply_adds for n in MULTIPLY_ADDS} == MULTIPLY_ADDS
    assert nodes["y"].reason == "its weight (4, 16) is too small to gain from INT8"
    assert nodes["m"].reason == "averages keep the bits that INT8 would drop"
    assert nodes["s"].kernel == nodes["r2"].kernel == "c2"
    assert nodes["f"].kernel is None
    assert found.int8_weights == 3


def test_what_trials_decide_is_said(model: ir.Model) -> None:
    trials = {node.name: node.trial for node in int8(model).nodes if node.trial}
    assert trials == {"c1": "first layer", "s": "skip operand"}


def test_shares_add_up(model: ir.Model) -> None:
    found = int8(model)
    total = sum(MULTIPLY_ADDS.values())
    assert found.multiply_adds == total
    assert found.multiply_adds_in[Precision.INT8] == total - 64
    shares = found.to_dict()["share"]
    assert {name: share for name, share in shares.items() if share} == {
        "int8": (total - 64) / total,
        "fp16": 64 / total,
    }
    heavy = {each: count for each, count in found.heavy_in.items() if count}
    assert heavy == {Precision.INT8: 3, Precision.FP16: 1}


def test_what_is_excluded_says_so(model: ir.Model) -> None:
    nodes = by_name(int8(model, exclude=("c[23]",)))
    assert nodes["c2"].precision is nodes["c3"].precision is Precision.FP16
    assert nodes["c2"].reason == "excluded by 'c[23]'"
    assert nodes["s"].reason == "no quantized convolution ends in this addition"


def test_both_reasons_of_what_stays_fp32(model: ir.Model) -> None:
    nodes = by_name(int8(model, {"c3": 1e5}, exclude=("c3",)))
    assert nodes["c3"].precision is Precision.FP32
    assert nodes["c3"].reason == "not FP16: c3 reaches 1e+05; not INT8: excluded by 'c3'"
    assert nodes["m"].precision is Precision.FP32


def test_int8_stays_int8_beside_large_values(model: ir.Model) -> None:
    node = by_name(int8(model, {"c3": 1e5}))["c3"]
    assert node.precision is Precision.INT8
    assert node.reason is None


def test_the_plan_of_fp16(model: ir.Model) -> None:
    found = fp16(model, {"c2": 2e4})
    assert set(precisions(found).values()) == {"fp16", "fp32"}
    high = {node.name: node.reason for node in found.nodes if node.precision is Precision.FP32}
    assert high == {"c2": "c2 reaches 2e+04", "s": "c2 reaches 2e+04"}
    assert [node.name for node in found.heaviest_above(Precision.FP16)] == ["c2"]
    assert found.qdq_pairs == found.int8_weights == 0
    # x to FP16, r1 to FP32 for both that stay, s back to FP16, y to FP32
    assert found.casts == 4


@pytest.mark.parametrize("rest", [Precision.FP16, Precision.FP32])
def test_an_export_makes_the_same_of_it(model: ir.Model, tmp_path: Path, rest: Precision) -> None:
    source = write_model(model, tmp_path / "fp32.onnx", Precision.FP32)
    amax = dict.fromkeys(plan_qdq(model).tensors, 1.0)
    options = Int8Options(rest=rest)
    graph = LoadedGraph(source)
    quantize_to_int8(
        graph, amax, tmp_path / "int8.onnx", options=options, halve=halving({"c3": 1e5})
    )
    written = read_precision(read_model(tmp_path / "int8.onnx"), Precision.INT8, 1)
    planned = int8(model, {"c3": 1e5})
    if rest is Precision.FP16:
        assert precisions(written) == precisions(planned)
        assert (written.casts, written.qdq_pairs) == (planned.casts, planned.qdq_pairs)
    else:
        assert written.casts == 0
        assert by_name(written)["y"].reason == "nothing in the graph is FP16"
    assert written.qdq_pairs == planned.qdq_pairs
    assert written.int8_weights == planned.int8_weights == 3


def test_what_a_file_of_fp16_does_not_say(model: ir.Model, tmp_path: Path) -> None:
    planned = planned_half(model, {"c3": 1e5}, HEADROOM)
    write_model(planned.model, tmp_path / "half.onnx", Precision.FP16)
    artifact = read_artifact(tmp_path / "half.onnx")
    found = read_precision(read_model(artifact.path), artifact.precision, 1)
    assert by_name(found)["c3"].reason == "the file does not say why"


def test_the_graph_that_is_planned_for_is_left_as_it_was(model: ir.Model) -> None:
    before = [(node.name, [value.name for value in node.inputs if value]) for node in model.graph]
    int8(model)
    fp16(model)
    after = [(node.name, [value.name for value in node.inputs if value]) for node in model.graph]
    assert after == before

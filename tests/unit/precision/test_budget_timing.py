"""Predicted times against figures by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deploykit.core.precision import Precision
from deploykit.costs.network import LayerCost
from deploykit.costs.peaks import DevicePeak
from deploykit.costs.predicted import predicted_ms
from deploykit.graph import tidy
from deploykit.precision.budget.grouping import groups_of
from deploykit.precision.budget.solver import pareto
from deploykit.precision.budget.timing import REST, group_costs, group_table
from tests.graphs import graph, normal

CHAIN = """net (float[N, 64, 8, 8] x) => (float[N, 32] y) {
    [first] a = Conv (x, w1)
    [relu] b = Relu (a)
    [pool] m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (b)
    [second] c = Conv (m, w2)
    [third] d = Conv (c, w2)
    [flat] f = Flatten (d)
    [last] y = Gemm <transB = 1> (f, w3)
}"""
WEIGHTS = {
    "w1": normal(64, 64, 1, 1, seed=1),
    "w2": normal(64, 64, 1, 1, seed=2),
    "w3": normal(32, 1024, seed=3),
}
FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def peak(bytes_per_s: float) -> DevicePeak:
    return DevicePeak(
        "made up", 1e9, None, 2e9, 4e9, bytes_per_s, 0, frozenset(), "this test"
    )  # fmt: skip


@pytest.fixture
def model() -> ir.Model:
    found = ir.from_proto(graph(CHAIN, WEIGHTS))
    tidy(found, rename=False)
    return found


def test_a_kernel_takes_its_longer_side() -> None:
    kernel = LayerCost("k", ("Conv",), INT8, 500, 100, 200, 300, winograd=False)
    assert predicted_ms(kernel, peak(1e12)) == pytest.approx(1000 / 4e9 * 1e3)
    assert predicted_ms(kernel, peak(1e6)) == pytest.approx(600 / 1e6 * 1e3)
    unknown = DevicePeak("old", 1e9, None, None, None, 1e12, 0, frozenset(), "this test")
    assert predicted_ms(kernel, unknown) == float("inf")


def test_a_group_computes_at_its_formats_rate(model: ir.Model) -> None:
    groups = groups_of(model)
    assert groups == (("first",), ("second", "third"), ("last",))  # they share a weight
    costs, fast = group_costs(model, groups, batch=2), peak(1e15)
    work = 2 * 2 * 64 * 64 * 64  # FLOP of the first layer: batch, places, channels
    for precision, rate in ((FP32, 1e9), (FP16, 2e9), (INT8, 4e9)):
        can = frozenset({"first"})
        assert costs.ms(0, precision, fast, can) == pytest.approx(work / rate * 1e3)
    assert costs.ms(0, INT8, fast) == pytest.approx(costs.ms(0, FP16, fast))  # it cannot be INT8


def test_where_memory_binds_bytes_count(model: ir.Model) -> None:
    costs = group_costs(model, groups_of(model), batch=2)
    moved = 64 * 64 + 2 * 64 * 64 + 2 * 64 * 64  # weight, input, output behind the ReLU
    assert costs.ms(0, FP16, peak(1e3)) == pytest.approx(2 * moved)
    pooled = 2 * 64 * 64 + 2 * 64 * 16
    assert costs.ms(REST, FP16, peak(1e3)) == pytest.approx(2 * pooled)


def test_a_change_of_format_reads_and_writes_what_is_passed(model: ir.Model) -> None:
    costs, slow = group_costs(model, groups_of(model), batch=2), peak(1e3)
    assert costs.passed == {(0, REST): 2 * 64 * 64, (REST, 1): 2 * 64 * 16, (1, 2): 2 * 64 * 16}
    assert costs.reformat_ms((1, 2), (INT8, FP16), slow) == pytest.approx(2 * 64 * 16 * 3)
    assert costs.reformat_ms((2, 1), (FP32, INT8), slow) == pytest.approx(2 * 64 * 16 * 5)
    assert costs.reformat_ms((1, 2), (FP16, FP16), slow) == 0
    assert costs.reformat_ms((0, 2), (INT8, FP16), slow) == 0  # they are no neighbours


def test_what_a_detour_into_another_format_costs_decides(model: ir.Model) -> None:
    costs, formats = group_costs(model, groups_of(model), batch=2), (INT8, FP16)
    can = frozenset({"first", "second", "third", "last"})
    noise = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    cheap = group_table(costs, formats, noise, peak(1e15), can)
    assert pareto(cheap)[-1].formats == (0, 0, 0)
    dear = group_table(costs, formats, noise, peak(2e4), can)
    assert pareto(dear)[-1].formats != (0, 0, 0)  # the pooling between stays FP16

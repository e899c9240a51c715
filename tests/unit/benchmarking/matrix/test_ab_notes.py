"""What `bench --ab` says of a lower precision that is slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.backends import LayerConversion
from deploykit.benchmarking.matrix.ab_run import AbRun, run_to_plain
from deploykit.benchmarking.matrix.cells import Cell
from deploykit.benchmarking.statistics.ab import AbReport
from deploykit.benchmarking.statistics.comparing import Comparison, Ratio
from deploykit.core.precision import Precision

FP16, INT8 = Precision.FP16, Precision.INT8
FOUND = (LayerConversion("cast", "c", "fc", "FP32", "FP16", at_border=False),)
SLOWER, SAME = Ratio(1.2, 1.1, 1.3), Ratio(1.0, 0.9, 1.1)


def run(a: Precision, b: Precision, ratio: Ratio) -> AbRun:
    cells = [Cell("r", "r", "tensorrt", precision, 8) for precision in (a, b)]
    report = AbReport("latency_ms", 50, 200, 200, 1.0, 1.2, SAME, Comparison(ratio, 0.02))
    return AbRun(cells[0], cells[1], report, (), Path("ab.json"), FOUND)


def test_the_layers_of_a_slower_lower_precision() -> None:
    found = run(FP16, INT8, SLOWER)
    assert found.notes == ("B: 1 layer of its engine only converts: cast FP32 to FP16 at fc",)
    assert run_to_plain(found)["conversions"][0]["neighbour"] == "fc"


@pytest.mark.parametrize(
    "found",
    [run(FP16, INT8, SAME), run(INT8, FP16, SLOWER), run(INT8, INT8, SLOWER)],
    ids=["as fast", "a higher one", "the same"],
)
def test_nothing_is_said_of_others(found: AbRun) -> None:
    assert found.notes == ()

"""A run in which a lower precision is slower says so, with the layers that only convert."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends import LayerConversion
from deploykit.benchmarking.report.slower import (
    conversions_sentence,
    slower_sentence,
    with_notes_on_slower,
)
from deploykit.benchmarking.results import BenchmarkRun
from deploykit.benchmarking.statistics.comparing import Ratio
from deploykit.core.precision import Precision
from tests.unit.benchmarking.statistics.noise import SUBJECT, SWITCHES, independent, result_of

if TYPE_CHECKING:
    from deploykit.benchmarking.results import BenchmarkResult

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
INNER = LayerConversion("dequantize", "d", "layer1.conv2", "INT8", "FP16", at_border=False)
BORDER = LayerConversion("reformat", "r", "stem", "FP32", "INT8", at_border=True)


def cell(
    precision: Precision, times_5_ms: float = 1.0, count: int = 400, **changes: Any
) -> BenchmarkResult:
    series = independent(np.random.default_rng(3), count, 0.01) * times_5_ms
    subject = {key: changes.pop(key) for key in ("model", "backend", "batch") if key in changes}
    made = result_of(series, subject=replace(SUBJECT, precision_asked=precision, **subject))
    return replace(made, **changes)


def notes(*results: BenchmarkResult) -> list[tuple[str, ...]]:
    return [each.notes for each in with_notes_on_slower(BenchmarkRun(results)).results]


def test_int8_that_is_slower_than_fp16_is_said_at_its_row() -> None:
    fp16, int8 = notes(cell(FP16), cell(INT8, 1.2, conversions=(BORDER, INNER)))
    assert fp16 == ()
    (note,) = int8
    assert note.startswith("int8 takes 1.20 times as long as fp16 (1.")
    assert note.endswith(
        "2 layers of its engine only convert: dequantize INT8 to FP16 at layer1.conv2, reformat "
        "FP32 to INT8 at stem; measured one after the other, to be sure: deploykit bench --ab"
    )


def test_each_higher_precision_that_is_faster_is_named() -> None:
    _, _, int8 = notes(cell(FP32, 1.1), cell(FP16), cell(INT8, 1.5, notes=("built",)))
    assert int8[0] == "built"
    assert [note.split(" (")[0] for note in int8[1:]] == [
        "int8 takes 1.36 times as long as fp32",
        "int8 takes 1.50 times as long as fp16",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"times_5_ms": 0.7},
        {"times_5_ms": 1.01},
        {"times_5_ms": 1.3, "batch": 16},
        {"times_5_ms": 1.3, "model": "nin"},
        {"times_5_ms": 1.3, "backend": "tensorrt-rtx"},
        {"times_5_ms": 1.3, "count": 12},
        {"times_5_ms": 1.3, "switches": replace(SWITCHES, cuda_graph=True)},
        {"times_5_ms": 1.3, "environment": {"cpu": "another"}},
    ],
    ids=["faster", "under 2 %", "batch", "model", "backend", "few samples", "switches", "machine"],
)
def test_nothing_is_said_of_what_is_not_slower_or_not_the_same(other: dict[str, Any]) -> None:
    assert notes(cell(FP16), cell(INT8, **other)) == [(), ()]


def test_nothing_is_said_of_a_higher_precision_or_one_of_as_many_bits() -> None:
    assert notes(cell(FP16), cell(FP32, 2.0)) == [(), ()]
    assert notes(cell(INT8), cell(INT8, 2.0)) == [(), ()]


def test_nothing_is_said_of_a_cpu_which_emulates() -> None:
    assert notes(cell(FP32, backend="ort"), cell(INT8, 2.0, backend="ort")) == [(), ()]


def test_highest_rates_have_no_interval() -> None:
    served = replace(SWITCHES, scenario="server", rate_per_s=9.0, bound_ms=10.0)
    assert notes(cell(FP16, switches=served), cell(INT8, 2.0, switches=served)) == [(), ()]


def test_the_sentence() -> None:
    ratio = Ratio(1.234, 1.1, 1.3)
    assert slower_sentence(INT8, FP16, ratio, None) == (
        "int8 takes 1.23 times as long as fp16 (1.10 to 1.30); "
        "which layers of its engine only convert is not known"
    )
    assert conversions_sentence([BORDER]) == (
        "1 layer of its engine only converts: reformat FP32 to INT8 at stem"
    )


def test_many_layers_and_long_names_are_cut() -> None:
    long = replace(INNER, neighbour="conv + " * 20, before="", after="")
    said = conversions_sentence([BORDER, long, INNER, INNER, INNER])
    assert said.startswith(
        f"5 layers of its engine only convert: dequantize at {('conv + ' * 20)[:57]}..., "
    )
    assert said.endswith("layer1.conv2, and 2 more")
    assert "stem" not in said

"""The precision of a graph and of its nodes, by types."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deploykit.core.precision import Precision
from deploykit.graph.element_types import (
    has_bf16,
    precision_of_type,
    quantized_precision,
    stored_precision,
)

TYPES = ir.DataType


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({TYPES.FLOAT, TYPES.INT64, None}, Precision.FP32),
        ({TYPES.FLOAT, TYPES.FLOAT16}, Precision.FP16),
        ({TYPES.FLOAT, TYPES.BFLOAT16}, Precision.BF16),
        (set(), Precision.FP32),
    ],
)
def test_stored_weights(types: set[ir.DataType | None], expected: Precision) -> None:
    assert stored_precision(types) is expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (TYPES.FLOAT, Precision.FP32),
        (TYPES.DOUBLE, Precision.FP32),
        (TYPES.FLOAT16, Precision.FP16),
        (TYPES.BFLOAT16, Precision.BF16),
        (TYPES.INT8, Precision.FP32),
        (None, Precision.FP32),
    ],
)
def test_results_of_a_node(dtype: ir.DataType | None, expected: Precision) -> None:
    assert precision_of_type(dtype) is expected


def _pair(
    zero: ir.DataType | None, op_type: str = "QuantizeLinear", stored: ir.DataType | None = None
) -> ir.Node:
    values = [ir.Value(name=name) for name in ("x", "scale")]
    if zero is not None:
        values.append(ir.Value(name="zero", type=ir.TensorType(zero)))
    if stored is not None:
        values[0].type = ir.TensorType(stored)
    return ir.Node("", op_type, values)


def test_pairs_are_told_apart_by_their_zero_point() -> None:
    every = (None, TYPES.INT8, TYPES.UINT8, TYPES.FLOAT8E5M2)
    assert [quantized_precision(_pair(each)) for each in every] == [Precision.INT8] * 4
    assert quantized_precision(_pair(TYPES.FLOAT8E4M3FN)) is Precision.FP8


def test_weights_without_a_zero_point_are_told_by_what_is_stored() -> None:
    restored = [
        quantized_precision(_pair(None, "DequantizeLinear", stored))
        for stored in (TYPES.FLOAT8E4M3FN, TYPES.INT8, None)
    ]
    assert restored == [Precision.FP8, Precision.INT8, Precision.INT8]
    made = _pair(None)
    made.outputs[0].type = ir.TensorType(TYPES.FLOAT8E4M3FN)
    assert quantized_precision(made) is Precision.FP8


@pytest.mark.parametrize(
    ("dtype", "expected"), [(TYPES.BFLOAT16, True), (TYPES.FLOAT16, False), (TYPES.FLOAT, False)]
)
@pytest.mark.parametrize("is_told", [False, True])
def test_bf16_is_seen_by_types_and_by_casts(
    dtype: ir.DataType, expected: object, *, is_told: bool
) -> None:
    x = ir.Value(name="x", type=ir.TensorType(TYPES.FLOAT), shape=ir.Shape([1]))
    cast = ir.node("Cast", [x], attributes={"to": int(dtype)})
    if is_told:  # files need not have the types of values between nodes
        cast.outputs[0].type = ir.TensorType(dtype)
    graph = ir.Graph([x], cast.outputs, nodes=[cast], opset_imports={"": 22})
    assert has_bf16(ir.Model(graph, ir_version=10)) is expected

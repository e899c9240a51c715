"""The precision of a graph and of its nodes, by types."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deploykit.core.precision import Precision
from deploykit.graph.element_types import (
    precision_of_type,
    quantized_precision,
    rest_of,
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
    ("dtype", "precision", "rest"),
    [
        (ir.DataType.BFLOAT16, Precision.INT8, Precision.BF16),
        (ir.DataType.BFLOAT16, Precision.FP16, Precision.BF16),
        (ir.DataType.BFLOAT16, Precision.BF16, None),
        (ir.DataType.FLOAT16, Precision.INT8, None),
    ],
)
def test_bf16_in_a_graph_of_another_precision_is_its_rest(
    dtype: ir.DataType, precision: Precision, rest: Precision | None
) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    cast = ir.node("Cast", [x], attributes={"to": int(dtype)})
    cast.outputs[0].type = ir.TensorType(dtype)
    model = ir.Model(
        ir.Graph([x], cast.outputs, nodes=[cast], opset_imports={"": 22}), ir_version=10
    )
    assert rest_of(model, precision) is rest

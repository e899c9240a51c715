from __future__ import annotations

from typing import Any

import pytest

from deploykit.benchmarking.matrix.cells import (
    Cell,
    Matrix,
    first_look,
    parse_batches,
    plan_cells,
)
from deploykit.core.errors import (
    EngineIncompatibleError,
    UnknownNameError,
    UsageError,
)
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.models import families, names

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
NO_GPU = dict.fromkeys(
    ("tensorrt", "tensorrt-rtx", "ort-cuda", "eager-cuda", "compile-cuda"), "no GPU on this machine"
)


def keys(matrix: Matrix, unavailable: Any = NO_GPU, own: Any = None) -> list[str]:
    return [cell.key for cell in plan_cells(matrix, unavailable, own or {})]


def test_the_matrix_is_every_combination_in_order() -> None:
    assert keys(Matrix(("nin", "resnet18"), (1, 8))) == [
        "nin/ort/fp32/b1",
        "nin/ort/fp32/b8",
        "nin/eager/fp32/b1",
        "nin/eager/fp32/b8",
        "resnet18/ort/fp32/b1",
        "resnet18/ort/fp32/b8",
        "resnet18/eager/fp32/b1",
        "resnet18/eager/fp32/b8",
    ]


def test_on_a_gpu_engines_come_first_in_all_precisions() -> None:
    assert keys(Matrix(("nin",), (1,)), {}) == [
        *(
            f"nin/{name}/{each}/b1"
            for name in ("tensorrt", "tensorrt-rtx")
            for each in (FP32, FP16, INT8)
        ),
        "nin/ort-cuda/fp32/b1",
        "nin/ort-cuda/fp16/b1",
        "nin/ort/fp32/b1",
        "nin/eager-cuda/fp32/b1",
        "nin/eager-cuda/fp16/b1",
        "nin/eager/fp32/b1",
    ]
    assert keys(Matrix(("nin",), (1,), precisions=(FP16,), only_best=True), {}) == [
        "nin/tensorrt/fp16/b1"
    ]


def test_what_was_asked_for_is_measured_where_it_is_possible() -> None:
    matrix = Matrix(("nin",), (1,), precisions=(INT8,), backends=("ort", "eager"))
    assert keys(matrix) == ["nin/ort/int8/b1"]


def test_what_takes_minutes_to_start_is_measured_where_it_is_named() -> None:
    matrix = Matrix(("nin",), (1,), backends=("compile-cuda",))
    assert keys(matrix, {}) == ["nin/compile-cuda/fp32/b1", "nin/compile-cuda/fp16/b1"]


def test_a_converted_file_keeps_its_precision_and_no_definition_runs_it() -> None:
    matrix = Matrix(("half.onnx",), (1,))
    assert keys(matrix, own={"half.onnx": FP16}) == ["half/ort/fp16/b1"]
    message = (
        r"ort, eager cannot measure half\.onnx as it was asked\n"
        "eager-cuda runs architectures in FP32, FP16 only; compile-cuda runs .*; "
        "eager runs architectures in FP32 only; a converted file has the precision it has"
    )
    with pytest.raises(UsageError, match=message):
        keys(Matrix(("half.onnx",), (1,), precisions=(FP32,)), own={"half.onnx": FP16})


def test_a_first_look_is_fp32_but_for_what_has_its_precision() -> None:
    matrix = Matrix(("nin", "half.onnx"), (1,), only_best=True, fp32_unasked=True)
    assert keys(matrix, {}, {"half.onnx": FP16}) == [
        "nin/tensorrt/fp32/b1",
        "half/tensorrt/fp16/b1",
    ]


def test_eager_cannot_run_int8() -> None:
    with pytest.raises(UsageError, match=r"eager cannot measure nin as it was asked\n.*eager runs"):
        keys(Matrix(("nin",), (1,), precisions=(INT8,), backends=("eager",)))


def test_no_backend_says_why_of_each() -> None:
    matrix = Matrix(("nin",), (1,), backends=("tensorrt", "ort-cuda"))
    message = "no backend to measure with\ntensorrt: no GPU on this machine\nort-cuda: no GPU"
    with pytest.raises(EngineIncompatibleError, match=message):
        keys(matrix)


def test_an_unknown_backend_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match="unknown backend 'tensorrt-rtz'\ndid you mean: ten"):
        Matrix(("nin",), (1,), backends=("tensorrt-rtz",))


def test_two_targets_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"a/m\.onnx and b/m\.onnx would both be called m\n"):
        Matrix(("a/m.onnx", "b/m.onnx"), (1,))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("nin", 4),
        ("ort/", 2),
        ("*/b8", 2),
        ("nin/eager/*/b[1]", 1),
        ("/b1", 2),
    ],
)
def test_a_filter_is_a_part_or_a_pattern(given: str, kept: int) -> None:
    found = keys(Matrix(("nin", "vgg11"), (1, 8), filters=(given,)))
    assert len(found) == kept * (1 if given.startswith("nin") else 2)


def test_an_unknown_filter_is_refused_with_some_names() -> None:
    message = (
        r"no cell matches the filter 'resnet' or 'x'\nthe cells are nin/ort/fp32/b1, "
        r"nin/ort/fp32/b2, nin/ort/fp32/b4, nin/ort/fp32/b8, and 4 more\na filter is part"
    )
    with pytest.raises(UsageError, match=message):
        keys(Matrix(("nin",), (1, 2, 4, 8), filters=("resnet", "x")))


@pytest.mark.parametrize("text", ["0", "-1", "1,,8", "eight", "1.5", "", "1;8", "²"])
def test_a_batch_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--batch is .*\nexpected whole numbers from 1 up"):
        parse_batches(text)


def test_a_first_look_has_one_architecture_of_each_family() -> None:
    chosen = first_look()
    assert [sum(name in members for name in chosen) for members in families().values()] == [
        1
    ] * len(families())
    assert "nin" in chosen
    assert sorted(name for family in families().values() for name in family) == sorted(names())


def test_a_network_of_torchvision_is_a_definition() -> None:
    assert keys(Matrix(("torchvision:swin_t",), (1,))) == [
        "torchvision-swin_t/ort/fp32/b1",
        "torchvision-swin_t/eager/fp32/b1",
    ]


def test_a_cell_survives_json() -> None:
    cell = Cell("models/m.onnx", "m", "ort", FP16, 8)
    assert from_plain(Cell, {**to_plain(cell), "precision": "fp16"}, Source("cell")) == cell

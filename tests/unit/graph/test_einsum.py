"""`Einsum` as a matrix product, judged by numpy.einsum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.core.precision import Precision
from deploykit.graph import convert_to_half, plan_half, read_model, tidy, write_model
from deploykit.graph.qdq import plan_qdq
from deploykit.graph.rewrites import einsums_to_products
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graphs import Array

SIZES = {"b": 3, "g": 2, "h": 4, "i": 5, "j": 6, "d": 7, "e": 8}


def shape_of(term: str) -> tuple[int, ...]:
    return tuple(SIZES[label.lower()] for label in term.replace(" ", ""))


def einsum(
    equation: str, left: Array, right: Array, *, dims: tuple[str, str], constant: str = ""
) -> onnx.ModelProto:
    """``y = Einsum(x, w)``; ``dims`` are the declared shapes, ``constant`` names an initializer."""
    declared = {"x": f"float[{dims[0]}] x", "w": f"float[{dims[1]}] w"}
    declared.pop(constant, None)
    rank = np.einsum(equation.replace(" ", ""), left, right).ndim
    result = ",".join(f"y{axis}" for axis in range(rank))
    model = graph(
        f"g ({', '.join(declared.values())}) => (float[{result}] y) "
        f'{{ y = Einsum <equation = "{equation}"> (x, w) }}',
        {constant: {"x": left, "w": right}[constant]} if constant else {},
    )
    model.graph.output[0].type.tensor_type.shape.SetInParent()  # a scalar has a shape, of no axes
    model.graph.node[0].name = "attention"
    return model


def tidied(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    loaded = read_model(save(model, folder / "source.onnx"))
    tidy(loaded, rename=False)
    write_model(loaded, folder / "tidy.onnx", Precision.FP32)
    return onnx.load(folder / "tidy.onnx")


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    loaded = ir.from_proto(model)
    found = einsums_to_products(loaded)
    assert [node.op_type for node in loaded.graph] == ["Einsum"]
    return found


def declared(array: Array, open_axes: tuple[int, ...] = ()) -> str:
    """A shape for the graph's text, with the first axis and ``open_axes`` left open."""
    return ",".join(
        f"n{length}" if axis in open_axes else str(length)
        for axis, length in enumerate(array.shape)
    )


PRODUCTS = {
    "BGHID,BGHJD->BGHIJ": ["Transpose", "MatMul"],
    "B G H I J, B G H J D -> B G H I D": ["MatMul"],
    "bihd,bjhd->bhij": ["Transpose", "Transpose", "MatMul"],
    "bhij,bjhd->bihd": ["Transpose", "MatMul", "Transpose"],
    "bid,de->bie": ["MatMul"],
    "bid,ed": ["Transpose", "MatMul", "Transpose"],
    "bid,dhe->bihe": ["Reshape", "MatMul", "Reshape"],
    "bihd,hde->bie": ["Reshape", "Reshape", "MatMul"],
    "bghi,bghi->bgh": ["Reshape", "Reshape", "MatMul", "Reshape"],
    "bi,bi->bi": ["Mul"],
    "bi,ib->ib": ["Transpose", "Mul"],
    "bi,bj->bij": ["Reshape", "Reshape", "MatMul"],
    "bi,bi->": ["Reshape", "Reshape", "MatMul", "Reshape"],
    "bhij,bhjgd->bhidg": ["Transpose", "Reshape", "MatMul", "Reshape"],
    "bij,j->bi": ["Reshape", "MatMul", "Reshape"],
    "i,bij->jb": ["Reshape", "Transpose", "Reshape", "MatMul", "Reshape"],
}


@pytest.mark.parametrize("equation", PRODUCTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_computes_what_numpy_computes(equation: str, batch: int, tmp_path: Path) -> None:
    terms = equation.partition("->")[0].split(",")
    left, right = (normal(*shape_of(term), seed=seed) for seed, term in enumerate(terms))
    dims = declared_terms(terms)
    model = tidied(einsum(equation, left, right, dims=dims), tmp_path)
    left, right = (
        cut(array, term, batch) for array, term in zip((left, right), terms, strict=True)
    )
    got = run_ort(model, {"x": left, "w": right})["y"]
    expected = np.einsum(equation.replace(" ", ""), left, right)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert operators(model) == PRODUCTS[equation]


def declared_terms(terms: list[str]) -> tuple[str, str]:
    """The shapes of both operands with an open batch."""
    left, right = (
        ",".join("batch" if label in "bB" else str(SIZES[label.lower()]) for label in term)
        for term in (term.replace(" ", "") for term in terms)
    )
    return left, right


def cut(array: Array, term: str, batch: int) -> Array:
    where = [slice(batch) if label in "bB" else slice(None) for label in term.replace(" ", "")]
    return np.ascontiguousarray(array[tuple(where)])


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("...ij,...jd->...id", (3, 4, 5, 6), (3, 4, 6, 7)),
        ("...ij,jd->...id", (3, 4, 5, 6), (6, 7)),
        ("ij,...jd->...id", (5, 6), (3, 4, 6, 7)),
        ("...j,...j", (3, 4, 6), (3, 4, 6)),
        ("...ij,...jd->...id", (3, 4, 5, 6), (1, 4, 6, 7)),
        ("...ij,...jd", (5, 6), (6, 7)),
    ],
)
def test_an_ellipsis_stands_for_axes_of_the_batch(
    equation: str, left: tuple[int, ...], right: tuple[int, ...], tmp_path: Path
) -> None:
    first, second = normal(*left, seed=1), normal(*right, seed=2)
    dims = declared(first), declared(second)
    model = tidied(einsum(equation, first, second, dims=dims), tmp_path)
    assert "Einsum" not in operators(model)
    got = run_ort(model, {"x": first, "w": second})["y"]
    np.testing.assert_allclose(got, np.einsum(equation, first, second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "constant", "expected"),
    [
        ("bid,dhe->bihe", "w", ["MatMul", "Reshape"]),
        ("bid,ed->bie", "w", ["MatMul"]),
        ("bihd,hde->bie", "w", ["Reshape", "MatMul"]),
        ("ed,bid->bie", "x", ["MatMul"]),
    ],
)
def test_a_constant_is_turned_once_and_is_the_layers_weight(
    equation: str, constant: str, expected: list[str], tmp_path: Path
) -> None:
    terms = equation.partition("->")[0].split(",")
    left, right = (normal(*shape_of(term), seed=seed) for seed, term in enumerate(terms))
    source = einsum(equation, left, right, dims=declared_terms(terms), constant=constant)
    model = tidied(source, tmp_path)
    assert operators(model) == expected
    assert {len(tensor.dims) for tensor in model.graph.initializer} <= {1, 2}
    feed = {"x": left} if constant == "w" else {"w": right}
    expected_values = np.einsum(equation, left, right)
    np.testing.assert_allclose(run_ort(model, feed)["y"], expected_values, rtol=1e-5, atol=1e-5)


def test_is_fp16_and_int8_as_any_layer_is(tmp_path: Path) -> None:
    left, right = normal(3, 5, 32), normal(64, 32, seed=1)
    source = einsum("bid,ed->bie", left, right, dims=("batch,5,32", "64,32"), constant="w")
    tidied(source, tmp_path)
    model = read_model(tmp_path / "tidy.onnx")
    (product,) = model.graph
    assert plan_qdq(model).weights[0].node == product.name == "attention/MatMul"
    plan = plan_half(model, {}, 4.0)
    assert plan.halved == {"attention/MatMul"}
    half = convert_to_half(model, plan)
    (half_product,) = (node for node in half.graph if node.op_type == "MatMul")
    assert [value and value.dtype for value in half_product.inputs] == [ir.DataType.FLOAT16] * 2


@pytest.mark.parametrize(
    ("equation", "dims", "reason"),
    [
        ("bii,bij->bij", ("b,5,5", "b,5,6"), "'bii,bij->bij' repeats a label within an operand"),
        ("bij,bjd->bd", ("b,5,6", "b,6,7"), "'bij,bjd->bd' sums i of one operand alone"),
        ("bij,bjd->bid", ("b,5,1", "b,6,7"), "j is 1 long in one operand and not in the other"),
        ("...ij,...jd->...id", ("b,5,6", "b,2,6,7"), "its ellipses stand for 1 and 2 axes"),
        (
            "bid,bdhe->bihe",
            ("b,5,7", "b,7,heads,e"),
            "more than one of the lengths that a Reshape would need is open",
        ),
    ],
)
def test_says_why_an_equation_stays(equation: str, dims: tuple[str, str], reason: str) -> None:
    model = graph(
        f"g (float[{dims[0]}] x, float[{dims[1]}] w) => (float y) "
        f'{{ y = Einsum <equation = "{equation}"> (x, w) }}'
    )
    model.graph.node[0].name = "attention"
    assert reasons(model) == {"attention": reason}


@pytest.mark.parametrize(
    ("equation", "lowered"),
    [("B I J, B J D -> B D", "abc,acd->ad"), ("zii,zIj", "abb,acd->cd"), ("...Ji,...iI->...", "")],
)
def test_one_that_stays_has_labels_that_tensorrt_reads(equation: str, lowered: str) -> None:
    """Renaming labels must not change the order of a result that is left to the alphabet."""
    left, right = normal(3, 6, 6), normal(3, 6, 7, seed=1)
    model = einsum(equation, left, right, dims=("b,6,6", "b,6,7"))
    loaded = ir.from_proto(model)
    einsums_to_products(loaded)
    (node,) = loaded.graph
    if lowered:
        assert node.attributes["equation"].as_string() == lowered
    expected = np.einsum(equation.replace(" ", ""), left, right)
    got = run_ort(ir.to_proto(loaded), {"x": left, "w": right})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_one_operand_or_three_stay() -> None:
    model = graph(
        'g (float[b,5,6] x) => (float[b,6,5] y) { y = Einsum <equation = "bij->bji"> (x) }'
    )
    model.graph.node[0].name = "turn"
    assert reasons(model) == {"turn": "it has 1 operands, not two"}


def test_an_ellipsis_needs_known_shapes() -> None:
    model = graph(
        "g (float x, float[b,6,7] w) => (float y) "
        '{ y = Einsum <equation = "...ij,...jd->...id"> (x, w) }'
    )
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.node[0].name = "attention"
    said = reasons(model)["attention"]
    assert (
        said
        == "the shape of an operand is not known, so what its ellipsis stands for is not either"
    )


def test_names_that_exist_are_not_taken_again(tmp_path: Path) -> None:
    source = graph(
        """g (float[b,5,6] x, float[b,7,6] w) => (float[b,5,7] y) {
            z_transpose = Relu (w)
            z_shape = Relu (x)
            z = Einsum <equation = "bij,bdj->bid"> (z_shape, z_transpose)
            y = Relu (z)
        }"""
    )
    left, right = normal(2, 5, 6), normal(2, 7, 6, seed=1)
    model = tidied(source, tmp_path)
    assert operators(model).count("MatMul") == 1
    expected = np.maximum(np.einsum("bij,bdj->bid", np.maximum(left, 0), np.maximum(right, 0)), 0)
    got = run_ort(model, {"x": left, "w": right})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

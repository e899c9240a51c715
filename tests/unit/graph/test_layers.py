from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.graph import describe_layers, read_model, tidy
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from deploykit.costs.network import ModelSummary


def describe(source: onnx.ModelProto, folder: Path, batch: int = 1) -> ModelSummary:
    model = read_model(save(source, folder / "m.onnx"))
    tidy(model, rename=False)
    return describe_layers(model, "m.onnx", batch)


# Expected figures are worked out by hand: products per output element times output elements.
CASES: list[tuple[str, str, Mapping[str, NDArray[Any]], int]] = [
    (
        "convolution",
        "g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv <pads = [1,1,1,1]> (x, w) }",
        {"w": normal(4, 3, 3, 3)},
        4 * 8 * 8 * (3 * 3 * 3),
    ),
    (
        "convolution with stride and groups",
        """g (float[1,4,9,9] x) => (float[1,6,4,4] y) {
            y = Conv <group = 2, strides = [2,2]> (x, w, b)
        }""",
        {"w": normal(6, 2, 3, 3), "b": normal(6)},
        6 * 4 * 4 * (2 * 3 * 3),
    ),
    (
        "depthwise convolution",
        """g (float[1,8,8,8] x) => (float[1,8,8,8] y) {
            y = Conv <group = 8, pads = [1,1,1,1]> (x, w)
        }""",
        {"w": normal(8, 1, 3, 3)},
        8 * 8 * 8 * 9,
    ),
    (
        "transposed convolution with groups",
        """g (float[1,4,5,5] x) => (float[1,6,10,10] y) {
            y = ConvTranspose <group = 2, strides = [2,2]> (x, w)
        }""",
        {"w": normal(4, 3, 2, 2)},
        4 * 5 * 5 * (3 * 2 * 2),
    ),
    (
        "linear layer",
        "g (float[1,20] x) => (float[1,10] y) { y = Gemm <transB = 1> (x, w, b) }",
        {"w": normal(10, 20), "b": normal(10)},
        10 * 20,
    ),
    (
        "transposed left side",
        "g (float[20,3] x) => (float[3,10] y) { y = Gemm <transA = 1> (x, w) }",
        {"w": normal(20, 10)},
        3 * 10 * 20,
    ),
    (
        "batched matrix product of two activations",
        """g (float[2,5,7,4] x) => (float[2,5,7,7] y) {
            t = Transpose <perm = [0,1,3,2]> (x)
            y = MatMul (x, t)
        }""",
        {},
        2 * 5 * 7 * 7 * 4,
    ),
    (
        "matrix times vector",
        "g (float[6,9] x) => (float[6] y) { y = MatMul (x, w) }",
        {"w": normal(9)},
        6 * 9,
    ),
    ("no product at all", "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu (x) }", {}, 0),
]


@pytest.mark.parametrize(
    ("text", "constants", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_multiply_adds(
    tmp_path: Path, text: str, constants: Mapping[str, NDArray[Any]], expected: int
) -> None:
    assert describe(graph(text, constants), tmp_path).multiply_adds == expected


def network() -> onnx.ModelProto:
    return graph(
        """g (float[batch,3,8,8] x) => (float[batch,5] y) {
            c = Conv <pads = [1,1,1,1]> (x, w, b)
            d = Conv <pads = [1,1,1,1]> (c, v, b)
            p = GlobalAveragePool (d)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, m)
        }""",
        {"w": normal(4, 3, 3, 3), "v": normal(4, 4, 3, 3), "b": normal(4), "m": normal(5, 4)},
    )


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_is_filled_in(tmp_path: Path, batch: int) -> None:
    summary = describe(network(), tmp_path, batch)
    assert summary.input_shape == (batch, 3, 8, 8)
    assert [layer.output_shape for layer in summary.layers] == [
        (batch, 4, 8, 8),
        (batch, 4, 8, 8),
        (batch, 4, 1, 1),
        (batch, 4),
        (batch, 5),
    ]
    assert summary.multiply_adds == batch * (4 * 64 * 27 + 4 * 64 * 36 + 20)


def test_rows_name_the_nodes_and_a_shared_weight_counts_once(tmp_path: Path) -> None:
    summary = describe(network(), tmp_path)
    rows = [(layer.name, layer.kind, layer.parameters) for layer in summary.layers]
    assert rows == [
        ("Conv", "Conv", 4 * 27 + 4),
        ("Conv_2", "Conv", 4 * 36 + 4),
        ("GlobalAveragePool", "GlobalAveragePool", 0),
        ("Flatten", "Flatten", 0),
        ("Gemm", "Gemm", 20),
    ]
    assert summary.parameters == 4 * 27 + 4 * 36 + 4 + 20


def test_integers_are_no_parameters(tmp_path: Path) -> None:
    source = graph(
        "g (float[batch,3,4] x) => (float[batch,12] y) { y = Reshape (x, shape) }",
        {"shape": np.array([-1, 12])},
    )
    assert describe(source, tmp_path).parameters == 0


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = read_model(save(network(), tmp_path / "m.onnx"))
    tidy(model, rename=False)
    describe_layers(model, "m.onnx", 3)
    assert str(model.graph.inputs[0].shape) == "[batch,3,8,8]"
    assert describe_layers(model, "m.onnx", 5).input_shape == (5, 3, 8, 8)


def test_an_open_height_is_refused(tmp_path: Path) -> None:
    source = graph("g (float[batch,3,h,w] x) => (float[batch,3,h,w] y) { y = Relu (x) }")
    with pytest.raises(UsageError, match=r"input 'x' has open dimensions: .*h, w.*\n.*--input"):
        describe(source, tmp_path)


def test_a_shape_that_cannot_be_inferred(tmp_path: Path) -> None:
    text = "g (float[1,3] x) => (float[1,3] y) { a = lab.F (x) y = Relu (a) }"
    source = graph(text, domain="lab")
    with pytest.raises(ModelFileError, match="no shape can be inferred for 'a'"):
        describe(source, tmp_path)


def test_a_model_without_input(tmp_path: Path) -> None:
    source = graph("g () => (float[2] y) { y = Relu (w) }", {"w": normal(2)})
    with pytest.raises(ModelFileError, match=r"m\.onnx takes no input"):
        describe(source, tmp_path)


SCATTERED = """g (float[N,4] x) => (float[N] y) <float[N] taken> {
    length = Shape <start = 0, end = 1> (x)
    count = Squeeze (length)
    places = Range (zero, count, one)
    flat = Reshape (x, all)
    taken = Gather (flat, places)
    y = Relu (taken)
}"""


def test_a_shape_that_inference_loses_is_as_the_file_has_it(tmp_path: Path) -> None:
    constants = {"zero": np.asarray(0), "one": np.asarray(1), "all": np.array([-1])}
    summary = describe(graph(SCATTERED, constants), tmp_path, batch=5)
    shapes = {layer.kind: layer.output_shape for layer in summary.layers}
    assert shapes["Gather"] == shapes["Relu"] == (5,)
    assert "Range" not in shapes


def test_an_int8_weight_counts_and_its_scale_does_not(tmp_path: Path) -> None:
    source = graph(
        """g (float[N,3,4,4] x) => (float[N,5,4,4] y) {
            q = QuantizeLinear (x, step, zero)
            d = DequantizeLinear (q, step, zero)
            w = DequantizeLinear <axis = 0> (stored, steps)
            y = Conv (d, w, bias)
        }""",
        {
            "step": np.asarray(0.1, np.float32),
            "zero": np.asarray(0, np.int8),
            "stored": np.ones((5, 3, 1, 1), np.int8),
            "steps": np.full(5, 0.1, np.float32),
            "bias": normal(5),
        },
    )
    assert describe(source, tmp_path).parameters == 5 * 3 + 5

"""Written-out sigmoids against numpy in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.graph import fuse_written_out, tidy
from tests import cli, graphs
from tests.small_tails import network, original, pictures

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

X = np.linspace(-300, 300, 60, dtype=np.float32).reshape(1, 5, 12)
CONSTANTS = {
    "one": np.array(1.0, np.float32),
    "ones": np.ones((1, 1), np.float32),
    "minus": np.array([-1.0], np.float32),
    "two": np.array(2.0, np.float32),
    "half": np.array(0.5, np.float32),
}


def fused(body: str) -> ir.Model:
    model = graphs.model_of(body, ("n,5,12", "n,5,12"), CONSTANTS)
    tidy(model, rename=False)
    return fuse_written_out(model)


def run(model: ir.Model) -> np.ndarray:
    import onnx_ir as ir

    return graphs.run_ort(ir.to_proto(model), {"x": X})["y"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


@pytest.mark.parametrize(
    ("body", "factor", "slope"),
    [
        ("m = Neg (x) e = Exp (m) a = Add (e, one) y = Div (one, a)", 1, 1),
        ("m = Neg (x) e = Exp (m) a = Add (ones, e) y = Div (ones, a)", 1, 1),
        ("m = Mul (x, minus) e = Exp (m) a = Add (one, e) y = Reciprocal (a)", 1, 1),
        ("m = Neg (x) e = Exp (m) a = Add (one, e) y = Pow (a, minus)", 1, 1),
        ("e = Exp (x) a = Add (one, e) y = Div (one, a)", 1, -1),
        ("m = Neg (x) e = Exp (m) a = Add (e, one) y = Div (two, a)", 2, 1),
        ("m = Neg (x) e = Exp (m) a = Add (e, one) y = Div (x, a)", X, 1),
        ("z = Mul (x, half) m = Neg (z) e = Exp (m) a = Add (e, one) y = Div (one, a)", 1, 0.5),
    ],
)
def test_it_is_one_operator_without_an_infinity(
    body: str, factor: np.ndarray, slope: float
) -> None:
    model = fused(body)
    found = [node.op_type for node in model.graph]
    assert "Sigmoid" in found
    assert not {"Exp", "Div", "Pow", "Reciprocal"} & set(found)
    near = 1e-7 * float(np.abs(factor).max())  # onnxruntime's operator ends at x = -18
    np.testing.assert_allclose(run(model), factor * sigmoid(slope * X), rtol=1e-5, atol=near)
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    "body",
    [
        "m = Neg (x) e = Exp (m) a = Add (e, two) y = Div (one, a)",
        "m = Neg (x) e = Exp (m) a = Sub (e, one) y = Div (one, a)",
        "m = Neg (x) e = Exp (m) a = Add (e, one) y = Div (a, one)",
        "m = Neg (x) e = Exp (m) a = Add (e, one) y = Pow (a, two)",
        "m = Neg (x) e = Exp (m) a = Add (e, one) s = Div (one, a) y = Log (s)",
        "m = Neg (x) e = Exp (m) a = Add (e, one) s = Reciprocal (a) y = Div (two, s)",
    ],
)
def test_what_is_no_sigmoid_stays(body: str) -> None:
    model = graphs.model_of(body, ("n,5,12", "n,5,12"), CONSTANTS)
    assert fuse_written_out(model) is model


def test_an_exponential_that_others_read_stays_beside_it() -> None:
    body = (
        "m = Neg (x) e = Exp (m) a = Add (e, one) s = Div (one, a) t = Min (e, two) y = Add (s, t)"
    )
    found = {node.op_type for node in fused(body).graph}
    assert {"Exp", "Sigmoid"} <= found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("scale", [20.0, 2000.0])
def test_a_classifier_whose_exponential_overflows(
    tmp_path: Path, precision: str, scale: float
) -> None:
    """Its outputs are right in FP32; exp overflows in FP16 alone, or in FP32 too."""
    nodes = """l0 = Gemm <transB = 1> (f, k4)  l = Mul (l0, far)  m = Neg (l)  e = Exp (m)
               a = Add (e, one)  y = Div (one, a)"""
    weights = {"far": np.array(scale, np.float32), "one": np.array(1, np.float32)}
    model = network(nodes, "float[N, 4] y", tmp_path, "net", **weights)
    images, out = pictures(tmp_path / "images", 4), tmp_path / "out"
    plain = ("--mean", "0,0,0", "--std", "1,1,1", "--resize", "16x16", "--head", "multilabel")
    called = cli.deploykit(
        "export", model, f"--{precision}", "--backend", "none", "-o", out, *plain, "--json"
    )
    assert called.code == 0, called.err
    answered = cli.deploykit("predict", out, *images, "--device", "cpu", "--top-k", 4, "--json")
    (wanted,) = original(model, images)
    for answer, row in zip(answered.data["predictions"], wanted, strict=True):
        for each in answer["top"]:
            assert each["probability"] == pytest.approx(row[each["index"]], abs=0.02)


def test_the_factor_of_a_gate_is_a_tensor_of_the_graph() -> None:
    body = "m = Neg (x) e = Exp (m) a = Add (e, one) y = Div (x, a)"
    (multiplied,) = (node for node in fused(body).graph if node.op_type == "Mul")
    assert multiplied.inputs[0] is not None
    assert multiplied.inputs[0].name == "x"

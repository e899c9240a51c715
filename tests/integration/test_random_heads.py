"""Random small heads: what `export` and `predict` say is what onnxruntime says of the file itself.

The expected probabilities are made here from the operators that the test wrote.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import cli
from tests.graphs import normal
from tests.small_tails import SIZE, network, original, pictures


@dataclass(frozen=True)
class Drawn:
    """A tail of ONNX text behind logits ``l`` (N, classes), and what ought to come of it."""

    classes: int
    nodes: str
    shape: str
    kind: str
    number: str
    """What is shown: ``chance``, ``softmax``, ``sigmoid``, ``exp``, ``class`` or ``value``."""


ENDS = {
    "softmax": ("y = Softmax <axis = 1> (l)", "multiclass", "chance"),
    "logits": ("y = Identity (l)", "multiclass", "softmax"),
    "log": ("y = LogSoftmax <axis = 1> (l)", "multiclass", "exp"),
    "sigmoid": ("y = Sigmoid (l)", "multilabel", "chance"),
    "class": ("y = ArgMax <axis = 1> (l)", "multiclass", "class"),
    "unit": ("y = LpNormalization <axis = 1> (l)", "raw", "value"),
}
SHAPED = {
    "": ("", ""),
    "maps": ("o = Constant <value_ints = [2, 3]> ()  {0} = Unsqueeze ({1}, o)", ", 1, 1"),
    "twice": (
        "o = Constant <value_ints = [2]> ()  u = Unsqueeze ({1}, o)  {0} = Squeeze (u, o)",
        "",
    ),
}


@st.composite
def heads(draw: st.DrawFn) -> Drawn:
    classes = draw(st.integers(1, 9))
    name = draw(st.sampled_from(sorted(ENDS)))
    if classes == 1 and name not in ("sigmoid", "logits"):
        name = "sigmoid"
    end, kind, number = ENDS[name]
    layer = draw(st.sampled_from(["gemm", "matmul", "conv"]))
    shaping, more = SHAPED[
        draw(st.sampled_from(sorted(SHAPED)) if name != "class" else st.just(""))
    ]
    body = {
        "gemm": f"l = Gemm <transB = 1> (f, k{classes})",
        "matmul": f"t = Transpose (k{classes})  m = MatMul (f, t)  l = Add (m, bias)",
        "conv": f"t = Constant <value_ints = [{classes}, 16, 1, 1]> ()  q = Reshape (k{classes}, t)"
        "  v = Conv (g, q)  l = Flatten (v)",
    }[layer]
    if shaping:
        end = f"{end.replace('y =', 'z =')}  {shaping.format('y', 'z')}"
    if classes == 1:
        kind, number = "binary", "chance" if name == "sigmoid" else "sigmoid"
    width = "1" if name == "class" else str(classes)
    dtype = "int64" if name == "class" else "float"
    return Drawn(classes, f"{body}  {end}", f"{dtype}[N, {width}{more}] y", kind, number)


def expected(values: np.ndarray, number: str) -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64)
    if number == "softmax":
        exponentials = np.exp(rows)
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
    if number == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-rows)))
    return np.asarray(np.exp(rows) if number == "exp" else rows)


@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(heads())
def test_predictions_are_those_of_the_file(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bias = normal(drawn.classes, seed=30)
        model = network(drawn.nodes, drawn.shape, folder, "own", bias=bias)
        images = pictures(folder / "images", 3)
        called = cli.deploykit(
            "export", model, "--backend", "none", "-o", folder / "out", "--json",
            "--mean", "0,0,0", "--std", "1,1,1", "--resize", f"{SIZE}x{SIZE}",
        )  # fmt: skip
        assert called.code == 0, called.err
        assert called.data["head"]["kind"] == drawn.kind, called.data
        args = (folder / "out", *images, "--top-k", 9, "--device", "cpu", "--json")
        found = cli.deploykit("predict", *args).data["predictions"]
        (values,) = original(model, images)
        for each, row in zip(found, expected(values, drawn.number), strict=True):
            np.testing.assert_allclose(shown(each["top"], drawn), row, rtol=1e-4, atol=1e-6)


def shown(top: list[dict[str, object]], drawn: Drawn) -> np.ndarray:
    """The numbers of an answer in the order of the outputs."""
    if drawn.number == "value":
        return np.ravel(np.array(top[0]["values"]))
    if drawn.number == "class":
        return np.array([each["index"] for each in top])
    if drawn.kind == "binary":
        return np.array([each["probability"] for each in top])
    by_index = sorted(top, key=lambda each: str(each["index"]))
    return np.array([each["probability"] for each in by_index])

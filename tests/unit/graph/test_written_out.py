"""Written-out normalisations and GELUs against numpy in double precision."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from deploykit.graph import fuse_written_out, tidy
from tests import graphs

SIZE = 12
RANDOM = np.random.default_rng(7)
X = (RANDOM.normal(size=(3, 5, SIZE)) * 4 + 1.5).astype(np.float32)
GAIN = RANDOM.normal(size=SIZE).astype(np.float32)
BIAS = RANDOM.normal(size=SIZE).astype(np.float32)
CONSTANTS: dict[str, np.ndarray] = {
    "g": GAIN,
    "b": BIAS,
    "g3": GAIN.reshape(1, 1, SIZE),
    "g2": RANDOM.normal(size=(5, SIZE)).astype(np.float32),
    "tokens": RANDOM.normal(size=(5, 1)).astype(np.float32),
    "e": np.array(1e-5, np.float32),
    "none": np.array(0.0, np.float32),
    "one": np.array(1.0, np.float32),
    "two": np.array(2.0, np.float32),
    "three": np.array(3.0, np.float32),
    "half": np.array(0.5, np.float32),
    "minus_half": np.array(-0.5, np.float32),
    "root2": np.array(1.4142135, np.float32),
    "inverse2": np.array([0.70710677], np.float32),
    "k": np.array(0.044715, np.float32),
    "c": np.array(0.7978846, np.float32),
    "ck": np.array(0.03567741, np.float32),
    "last": np.array([-1], np.int64),
    "second": np.array([1], np.int64),
    "both": np.array([1, 2], np.int64),
}


def model_of(body: str, opset: int = graphs.OPSET) -> ir.Model:
    return graphs.model_of(body, (f"n,5,{SIZE}", f"n,5,{SIZE}"), CONSTANTS, opset)


def run(model: ir.Model) -> np.ndarray:
    return graphs.run_ort(ir.to_proto(model), {"x": X})["y"]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def normal(axes: tuple[int, ...], *, centred: bool = True) -> np.ndarray:
    x = X.astype(np.float64)
    deviation = x - x.mean(axes, keepdims=True) if centred else x
    return np.asarray(deviation / np.sqrt((deviation**2).mean(axes, keepdims=True) + 1e-5))


CENTRE = "m = ReduceMean (x, last) d = Sub (x, m) "
TORCH = f"{CENTRE} s = Pow (d, two) v = ReduceMean (s, last) w = Add (v, e) r = Sqrt (w) "
LAYER_NORMS = {
    "torch's": (TORCH + "q = Div (d, r) z = Mul (q, g) y = Add (z, b)", GAIN, BIAS),
    "operands turned round": (
        TORCH.replace("(v, e)", "(e, v)") + "q = Div (d, r) z = Mul (g3, q) y = Add (b, z)",
        GAIN,
        BIAS,
    ),
    "by the reciprocal": (
        (
            f"{CENTRE} s = Mul (d, d) v = ReduceMean (s, last) w = Add (v, e) r = Sqrt (w) "
            "i = Reciprocal (r) q = Mul (d, i) z = Mul (q, g) y = Add (z, b)"
        ),
        GAIN,
        BIAS,
    ),
    "by a power of -1/2, without a bias": (
        (
            f"{CENTRE} s = Mul (d, d) v = ReduceMean (s, last) w = Add (v, e) "
            "i = Pow (w, minus_half) q = Mul (i, d) y = Mul (q, g)"
        ),
        GAIN,
        0,
    ),
    "one over the root, without a gain": (
        TORCH + "i = Div (one, r) y = Mul (d, i)",
        1,
        0,
    ),
    "the deviation twice": (
        TORCH + "d2 = Sub (x, m) q = Div (d2, r) z = Mul (q, g) y = Add (z, b)",
        GAIN,
        BIAS,
    ),
    "TensorFlow's": (
        TORCH + "i = Reciprocal (r) f = Mul (i, g) a = Mul (x, f) n = Mul (m, f) "
        "o = Sub (b, n) y = Add (a, o)",
        GAIN,
        BIAS,
    ),
}


@pytest.mark.parametrize(("body", "gain", "bias"), LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_layer_norm(body: str, gain: np.ndarray, bias: np.ndarray) -> None:
    fused = fuse_written_out(model_of(body))
    assert operators(fused) == ["LayerNormalization"]
    np.testing.assert_allclose(run(fused), normal((2,)) * gain + bias, rtol=1e-4, atol=1e-5)


def test_layer_norm_over_two_axes() -> None:
    body = TORCH.replace("last", "both") + "q = Div (d, r) z = Mul (q, g2) y = Add (z, b)"
    fused = fuse_written_out(model_of(body))
    assert operators(fused) == ["LayerNormalization"]
    wanted = normal((1, 2)) * CONSTANTS["g2"] + BIAS
    np.testing.assert_allclose(run(fused), wanted, rtol=1e-4, atol=1e-5)


LEFT_ALONE = {
    "over the tokens": TORCH.replace("last", "second") + "y = Div (d, r)",
    "without an epsilon": TORCH.replace("(v, e)", "(v, none)") + "y = Div (d, r)",
    "squares over another axis": (
        f"{CENTRE} s = Pow (d, two) v = ReduceMean (s, second) w = Add (v, e) r = Sqrt (w) "
        "y = Div (d, r)"
    ),
    "another value over the root": TORCH + "y = Div (x, r)",
    "cubes": TORCH.replace("(d, two)", "(d, three)") + "y = Div (d, r)",
    "the root over the deviation": TORCH + "y = Div (r, d)",
}


@pytest.mark.parametrize("body", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_no_layer_norm_stays(body: str) -> None:
    model = model_of(body)
    assert fuse_written_out(model) is model


def test_a_gain_for_each_token_stays_outside() -> None:
    fused = fuse_written_out(model_of(TORCH + "q = Div (d, r) y = Mul (q, tokens)"))
    assert operators(fused) == ["LayerNormalization", "Mul"]
    wanted = normal((2,)) * CONSTANTS["tokens"]
    np.testing.assert_allclose(run(fused), wanted, rtol=1e-4, atol=1e-5)


def test_a_normalised_value_that_others_read_keeps_them() -> None:
    fused = fuse_written_out(model_of(TORCH + "q = Div (d, r) z = Mul (q, g) y = Add (z, q)"))
    assert operators(fused) == ["LayerNormalization", "Mul", "Add"]
    np.testing.assert_allclose(run(fused), normal((2,)) * (GAIN + 1), rtol=1e-4, atol=1e-5)


RMS = (
    "s = Mul (x, x) v = ReduceMean (s, last) w = Add (v, e) r = Sqrt (w) q = Div (x, r) "
    "y = Mul (q, g)"
)


def test_rms_norm_needs_opset_23() -> None:
    old = model_of(RMS)
    assert fuse_written_out(old) is old
    fused = fuse_written_out(model_of(RMS, 23))
    assert operators(fused) == ["RMSNormalization"]
    wanted = normal((2,), centred=False) * GAIN
    np.testing.assert_allclose(run(fused), wanted, rtol=1e-4, atol=1e-5)


GROUPS = """<ir_version: 10, opset_import: ["" : {opset}]>
g (float[n,6,4,2] x) => (float[n,6,4,2] y) <float[3] i, float[3] o, float[6,1,1] g, float[6,1,1] b,
int64[3] split, int64[4] joined> {{
a = Reshape (x, split) c = InstanceNormalization <epsilon = 1e-4> (a, i, o)
d = Reshape (c, joined) z = Mul (d, g) y = Add (z, b) }}"""


def grouped(opset: int, gain: list[float]) -> ir.Model:
    proto = parser.parse_model(GROUPS.format(opset=opset))
    channels = np.arange(6, dtype=np.float32).reshape(6, 1, 1)
    data = {
        "i": np.array(gain, np.float32),
        "o": np.zeros(3, np.float32),
        "g": channels + 1,
        "b": -channels,
        "split": np.array([0, 3, -1]),
        "joined": np.array([0, 6, 4, 2]),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in data.items())
    model = ir.from_proto(proto)
    tidy(model, rename=False)
    return model


def test_group_norm() -> None:
    fused = fuse_written_out(grouped(21, [1, 1, 1]))
    assert operators(fused) == ["GroupNormalization"]
    x = RANDOM.normal(size=(2, 6, 4, 2)).astype(np.float32)
    session = ort.InferenceSession(
        ir.to_proto(fused).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    groups = x.reshape(2, 3, -1).astype(np.float64)
    deviation = groups - groups.mean(2, keepdims=True)
    groups = deviation / np.sqrt((deviation**2).mean(2, keepdims=True) + 1e-4)
    channels = np.arange(6).reshape(6, 1, 1)
    wanted = groups.reshape(x.shape) * (channels + 1) - channels
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("opset", "gain"), [(20, [1, 1, 1]), (21, [1, 2, 1])])
def test_group_norm_stays(opset: int, gain: list[float]) -> None:
    model = grouped(opset, gain)
    assert fuse_written_out(model) is model


ERF = "a = Div (x, root2) t = Erf (a) "
TANH = "a3 = Pow (x, three) a = Mul (a3, k) h = Add (x, a) q = Mul (h, c) t = Tanh (q) "
GELUS = {
    "torch's": ERF + "u = Add (t, one) z = Mul (x, u) y = Mul (z, half)",
    "half first": ERF + "u = Add (one, t) z = Mul (half, x) y = Mul (z, u)",
    "by the inverse root": (
        "a = Mul (inverse2, x) t = Erf (a) u = Add (t, one) z = Mul (u, half) y = Mul (z, x)"
    ),
    "halved by division": ERF + "u = Add (t, one) z = Mul (x, u) y = Div (z, two)",
    "multiplied out": ERF + "z = Mul (x, t) u = Add (z, x) y = Mul (u, half)",
}
TANH_GELUS = {
    "torch's": TANH + "u = Add (t, one) z = Mul (x, half) y = Mul (z, u)",
    "by products": (
        "p = Mul (x, x) a3 = Mul (p, x) a = Mul (k, a3) h = Add (a, x) q = Mul (c, h) t = Tanh (q) "
        "u = Add (one, t) z = Mul (x, u) y = Mul (half, z)"
    ),
    "factored": (
        "p = Mul (x, x) a = Mul (p, ck) h = Add (a, c) q = Mul (x, h) t = Tanh (q) "
        "u = Add (t, one) z = Mul (half, u) y = Mul (x, z)"
    ),
}


@pytest.mark.parametrize("body", GELUS.values(), ids=GELUS)
def test_gelu(body: str) -> None:
    fused = fuse_written_out(model_of(body))
    assert operators(fused) == ["Gelu"]
    x = X.astype(np.float64)
    wanted = x * (1 + np.vectorize(erf)(x / sqrt(2))) / 2
    np.testing.assert_allclose(run(fused), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("body", TANH_GELUS.values(), ids=TANH_GELUS)
def test_gelu_by_tanh(body: str) -> None:
    fused = fuse_written_out(model_of(body))
    assert operators(fused) == ["Gelu"]
    assert fused.graph[0].attributes["approximate"].as_string() == "tanh"
    x = X.astype(np.float64)
    wanted = x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    np.testing.assert_allclose(run(fused), wanted, rtol=1e-4, atol=1e-6)


NO_GELUS = {
    "another slope": (
        "a = Mul (x, half) t = Erf (a) u = Add (t, one) z = Mul (x, u) y = Mul (z, half)"
    ),
    "not halved": ERF + "u = Add (t, one) y = Mul (x, u)",
    "minus": ERF + "u = Sub (t, one) z = Mul (x, u) y = Mul (z, half)",
    "an erf alone": ERF + "y = Mul (t, half)",
    "a plain tanh": "t = Tanh (x) u = Add (t, one) z = Mul (x, u) y = Mul (z, half)",
}


@pytest.mark.parametrize("body", NO_GELUS.values(), ids=NO_GELUS)
def test_what_is_no_gelu_stays(body: str) -> None:
    model = model_of(body)
    assert fuse_written_out(model) is model


def test_a_biased_gelu_begins_behind_the_bias() -> None:
    body = "h = Add (x, b) a = Div (h, root2) t = Erf (a) u = Add (t, one) z = Mul (h, u) "
    body += "y = Mul (z, half)"
    assert operators(fuse_written_out(model_of(body))) == ["Add", "Gelu"]


def test_an_old_opset_is_raised_for_a_gelu() -> None:
    fused = fuse_written_out(model_of(GELUS["torch's"], 18))
    assert fused.graph.opset_imports[""] == 20
    assert operators(fused) == ["Gelu"]


def test_the_layer_keeps_its_value_and_its_module() -> None:
    model = model_of(TORCH + "q = Div (d, r) z = Mul (q, g) y = Add (z, b)")
    for node in model.graph:
        node.name = f"block/norm/{node.op_type}_{node.outputs[0].name}"
    (node,) = fuse_written_out(model).graph
    assert (node.name, node.outputs[0].name) == ("block/norm/LayerNormalization", "y")
    assert operators(model)[0] == "ReduceMean", "the graph that was given stays as it was"

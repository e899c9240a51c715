"""Overflows and underflows at each kind of operator that becomes FP16: an export keeps them out.

The kinds are read from the code of the conversion and from ONNX' own list of operators with an FP16
form, so that a kind without a fault, or a reason why none is possible, fails a test.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.bundle.manifest import CPU_MODEL
from deploykit.core.precision import Precision
from deploykit.exporting.steps import ExportOptions, export_bundle
from tests.graphs import graph, normal, run_ort, run_reference, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle

    Array = NDArray[Any]

SOURCES = ("graph/half.py", "graph/half_range.py", "graph/rounding.py", "precision/fp16.py")
OPSETS = (20, 23)
NEWER = {"Attention", "GroupNormalization", "RMSNormalization", "RotaryEmbedding"}
"""Operators that are tried in the second; all others in the first."""

AT_ONCE = 10
"""Branches in one network: many small exports take longer, and so do a few large ones."""

BY_ONNXRUNTIME = {"DeformConv", "GlobalLpPool", "LogSoftmax"}
"""Operators that onnx' evaluator lacks, is slow at, or overflows in: onnxruntime runs them."""

ERROR = 0.02
"""Of the largest value: FP16's own rounding in an exponential or a norm, never a lost branch."""

SHAPE = (2, 4, 8, 8)

# --- the faults
#
# A branch begins with s (N, 4, 8, 8), between 0 and 1, and ends in @q. The node [@] is what must
# be kept. k3e4 is 30000, n1e8 is 1e-8, i2_3 are the whole numbers 2 and 3, j3 is 3 without a
# dimension; the capital letters are in `constants`.

LARGE = "reaches|may pass 65504|may overflow"
SUMS = "are added up in it|reaches|may overflow"
SMALL = "FP16 loses|may pass 65504|gives NaN or infinity where"
SQUARES = "its intermediate squares overflow"


def through(body: str, *, last: str = "@p") -> tuple[str, str]:
    """Numbers of 1e-9 go through the operator, and a logarithm needs them."""
    return f"@a = Mul (s, n1e4) @z = Mul (@a, n1e5) {body} @q = Log ({last})", SMALL


def guard(body: str, guarded: str) -> tuple[str, str]:
    """A constant of 1e-8 that keeps the operand of what follows from 0, where s is under a half."""
    zeros = "@c = Sub (s, n5e1) @z = Relu (@c) @some = Greater (@z, Z0)"
    return f"{zeros} [@] @g = {body} @q = {guarded}", SMALL


PLANTED: dict[str, tuple[str, str]] = {
    # results beyond 65504
    "Add": ("@u = Mul (s, k6e4) [@] @q = Add (@u, k6e4)", LARGE),
    "Sub": ("@u = Mul (s, k6e4) @n = Neg (@u) [@] @q = Sub (@n, k6e4)", LARGE),
    "Sum": ("@u = Mul (s, k16e3) [@] @q = Sum (@u, @u, @u, @u, @u, @u, @u, @u)", LARGE),
    "Mul": ("@u = Mul (s, k3e2) [@] @q = Mul (@u, k3e3)", LARGE),
    "Div": ("[@] @q = Div (s, n1e5)", LARGE),
    "Pow": ("@u = Add (s, k9e0) [@] @q = Pow (@u, k5e0)", LARGE),
    "Exp": ("@u = Mul (s, k14e0) [@] @q = Exp (@u)", LARGE),
    "Sinh": ("@u = Mul (s, k15e0) [@] @q = Sinh (@u)", LARGE),
    "Cosh": ("@u = Mul (s, k15e0) [@] @q = Cosh (@u)", LARGE),
    "Reciprocal": ("@u = Mul (s, n1e6) [@] @q = Reciprocal (@u)", f"{LARGE}|{SMALL}"),
    "Softplus": ("@u = Mul (s, k9e4) [@] @q = Softplus (@u)", LARGE),
    "Selu": ("@u = Mul (s, k7e4) @c = Clip (@u, , k64e3) [@] @q = Selu (@c)", LARGE),
    "Elu": ("@n = Neg (s) [@] @q = Elu <alpha = 200000.0> (@n)", LARGE),
    "LeakyRelu": ("@n = Neg (s) [@] @q = LeakyRelu <alpha = 100000.0> (@n)", LARGE),
    "PRelu": ("@u = Mul (s, k3e2) @n = Neg (@u) [@] @q = PRelu (@n, k3e3)", LARGE),
    "Shrink": ("[@] @q = Shrink <bias = -70000.0, lambd = 0.01> (s)", LARGE),
    "ReduceProd": ("@u = Mul (s, k2e1) [@] @q = ReduceProd (@u, i3)", LARGE),
    "CumSum": ("@u = Mul (s, k16e3) [@] @q = CumSum (@u, j3)", LARGE),
    "BatchNormalization": (
        "@r = Relu (s) [@] @q = BatchNormalization <epsilon = 1e-11> (@r, G, Z, Z, Z)",
        LARGE,
    ),
    "InstanceNormalization": ("[@] @q = InstanceNormalization (s, B, Z)", LARGE),
    "LayerNormalization": ("[@] @q = LayerNormalization (s, E)", LARGE),
    "RMSNormalization": ("[@] @q = RMSNormalization (s, E)", LARGE),
    "GroupNormalization": ("[@] @q = GroupNormalization <num_groups = 4> (s, B, Z)", LARGE),
    "DFT": ("@u = Mul (s, k16e3) @w = Unsqueeze (@u, i4) [@] @q = DFT (@w, , j3)", LARGE),
    "ScatterElements": (
        """@u = Mul (s, k6e4) @i = ArgMax <axis = 3> (s) @m = ReduceMax (@u, i3)
        [@] @q = ScatterElements <axis = 3, reduction = "add"> (@u, @i, @m)""",
        LARGE,
    ),
    "ScatterND": (
        """@u = Mul (s, k7e4) @f = Slice (@u, i0, i1)
        [@] @q = ScatterND <reduction = "add"> (@u, I, @f)""",
        LARGE,
    ),
    "CastLike": ("@u = Mul (s, k9e4) @i = Cast <to = 7> (@u) [@] @q = CastLike (@i, s)", LARGE),
    # constants beyond it
    "Max": ("[@] @q = Max (s, k1e5)", LARGE),
    "Min": ("@n = Sub (Z0, k1e5) [@] @q = Min (s, @n)", LARGE),
    "Clip": ("[@] @q = Clip (s, k7e4)", LARGE),
    "Where": ("@b = Greater (s, n1e2) [@] @q = Where (@b, k1e5, s)", LARGE),
    "Pad": ("[@] @q = Pad (s, i0_0_0_0_0_0_1_1, k1e5)", LARGE),
    "OneHot": ("@a = ArgMax <axis = 3, keepdims = 0> (s) [@] @q = OneHot (@a, j8, O)", LARGE),
    # sums that an FP16 accumulator does not hold
    "Conv": ("@u = Mul (s, k4e4) [@] @q = Conv (@u, W)", SUMS),
    "ConvTranspose": ("@u = Mul (s, k4e4) [@] @q = ConvTranspose (@u, W)", SUMS),
    "MatMul": ("@u = Mul (s, k16e3) [@] @q = MatMul (@u, M)", SUMS),
    "Gemm": ("@f = Flatten (s) @u = Mul (@f, k16e3) [@] @q = Gemm (@u, F)", SUMS),
    "Einsum": (
        '@u = Mul (s, k4e3) [@] @q = Einsum <equation = "nchw,wk,kj->nchj"> (@u, M, M)',
        SUMS,
    ),
    "AveragePool": ("@u = Mul (s, k6e3) [@] @q = AveragePool <kernel_shape = [8,8]> (@u)", SUMS),
    "GlobalAveragePool": ("@u = Mul (s, k6e3) [@] @q = GlobalAveragePool (@u)", SUMS),
    "ReduceMean": ("@u = Mul (s, k6e3) [@] @q = ReduceMean (@u, i2_3)", SUMS),
    "ReduceSum": ("@u = Mul (s, k6e3) [@] @q = ReduceSum (@u, i2_3)", SUMS),
    "ReduceL1": ("@u = Mul (s, k6e3) [@] @q = ReduceL1 (@u, i2_3)", SUMS),
    "ReduceLogSum": ("@u = Mul (s, k6e3) [@] @q = ReduceLogSum (@u, i2_3)", SUMS),
    "Mean": ("@u = Mul (s, k16e3) [@] @q = Mean (@u, @u, @u, @u, @u, @u, @u, @u)", SUMS),
    "Det": ("@u = Mul (s, k5e2) @f = Slice (@u, i0_0, i2_2, i2_3) [@] @q = Det (@f)", LARGE),
    "DeformConv": (
        """@u = Mul (s, k4e4) @h = Slice (s, i0, i2, i1) @d = Mul (@h, Z0)
        [@] @q = DeformConv (@u, W, @d)""",
        LARGE,
    ),
    "AffineGrid": (
        """@f = Flatten (s) @h = Slice (@f, i0, i6, i1) @u = Mul (@h, k6e4)
        @t = Reshape (@u, i0_2_3) @n = Shape <end = 1> (s) @z = Concat <axis = 0> (@n, i1_4_4)
        [@] @q = AffineGrid (@t, @z)""",
        LARGE,
    ),
    "LogSoftmax": (
        "@u = Mul (s, k6e4) @v = Sub (@u, k3e4) @w = Add (@v, @v) [@] @q = LogSoftmax (@w)",
        "the logarithm of a Softmax, which FP16 loses",
    ),
    "Cast": (
        "@u = Mul (s, k9e4) @i = Cast <to = 7> (@u) [@] @q = Cast <to = 1> (@i)",
        "the operator has no FP16 form",
    ),
    "STFT": (
        """@u = Mul (s, k16e3) @f = Flatten (@u) @g = Unsqueeze (@f, i2)
        [@] @q = STFT (@g, j16, , j16)""",
        LARGE,
    ),
    "Col2Im": (
        """@u = Mul (s, k3e4) @f = Reshape (@u, i0_4_64) @h = Slice (@f, i0, i49, i2)
        [@] @q = Col2Im (@h, i8_8, i2_2)""",
        SUMS,
    ),
    "Resize": through('[@] @p = Resize <mode = "linear"> (@z, , S)'),
    "Attention": (
        "@u = Mul (s, k1e3) [@] @q = Attention (@u, @u, @u)",
        "products of queries and keys",
    ),
    "RotaryEmbedding": (
        """@u = Mul (s, k6e4) @h = Slice (s, i0, i4, i3) @m = ReduceMean <keepdims = 0> (@h, i1)
        @k = Add (@m, k1e0) [@] @q = RotaryEmbedding (@u, @k, @k)""",
        LARGE,
    ),
    # squares on the way
    "LRN": ("@u = Mul (s, k1e3) [@] @q = LRN <size = 3> (@u)", SQUARES),
    "LpNormalization": ("@u = Mul (s, k1e3) [@] @q = LpNormalization <axis = 1> (@u)", SQUARES),
    "LpPool": ("@u = Mul (s, k1e3) [@] @q = LpPool <kernel_shape = [2,2]> (@u)", SQUARES),
    "GlobalLpPool": ("@u = Mul (s, k1e3) [@] @q = GlobalLpPool (@u)", SQUARES),
    "ReduceL2": ("@u = Mul (s, k1e3) [@] @q = ReduceL2 (@u, i2_3)", SQUARES),
    "ReduceSumSquare": ("@u = Mul (s, k1e3) [@] @q = ReduceSumSquare (@u, i2_3)", SQUARES),
    "ReduceLogSumExp": ("@u = Mul (s, k2e1) [@] @q = ReduceLogSumExp (@u, i2_3)", SQUARES),
    "MeanVarianceNormalization": (
        "@u = Mul (s, k1e3) [@] @q = MeanVarianceNormalization <axes = [2,3]> (@u)",
        SQUARES,
    ),
    # what vanishes
    "Sqrt": ("@z = Mul (s, n1e9) [@] @q = Sqrt (@z)", SMALL),
    "Log": ("@z = Mul (s, n1e9) [@] @q = Log (@z)", SMALL),
    "Sigmoid": (
        "@u = Mul (s, k14e0) @n = Neg (@u) [@] @p = Sigmoid (@n) @q = Reciprocal (@p)",
        SMALL,
    ),
    "Softmax": ("@u = Mul (s, k3e1) [@] @p = Softmax (@u) @q = Log (@p)", SMALL),
    "Abs": through("[@] @p = Abs (@z)"),
    "Neg": through("[@] @p = Neg (@z) @m = Neg (@p)", last="@m"),
    "Relu": through("[@] @p = Relu (@z)"),
    "MaxPool": through("[@] @p = MaxPool <kernel_shape = [2,2]> (@z)"),
    "GlobalMaxPool": through("[@] @p = GlobalMaxPool (@z)"),
    "ReduceMax": through("[@] @p = ReduceMax (@z, i3)"),
    "ReduceMin": through("[@] @p = ReduceMin (@z, i3)"),
    "Concat": through("[@] @p = Concat <axis = 1> (@z, @z)"),
    "Split": through("[@] @p, @r = Split <axis = 1, num_outputs = 2> (@z)"),
    "Reshape": through("[@] @p = Reshape (@z, i0_256)"),
    "Flatten": through("[@] @p = Flatten (@z)"),
    "Transpose": through("[@] @p = Transpose <perm = [0,2,3,1]> (@z)"),
    "Slice": through("[@] @p = Slice (@z, i0, i3, i1)"),
    "Gather": through("[@] @p = Gather <axis = 1> (@z, i1_2)"),
    "GatherElements": through(
        "@i = ArgMax <axis = 3> (s) [@] @p = GatherElements <axis = 3> (@z, @i)"
    ),
    "GatherND": through(
        """@f = Flatten (@z) @g = Flatten (s) @i = ArgMax <axis = 1> (@g)
        [@] @p = GatherND <batch_dims = 1> (@f, @i)"""
    ),
    "Expand": through("[@] @p = Expand (@z, i1_4_8_8)"),
    "Tile": through("[@] @p = Tile (@z, i1_1_2_2)"),
    "Squeeze": through("@m = ReduceMax (@z, i2) [@] @p = Squeeze (@m, i2)"),
    "Unsqueeze": through("[@] @p = Unsqueeze (@z, i2)"),
    "DepthToSpace": through("[@] @p = DepthToSpace <blocksize = 2> (@z)"),
    "SpaceToDepth": through("[@] @p = SpaceToDepth <blocksize = 2> (@z)"),
    "Compress": through("@b = Greater (T, Z0) [@] @p = Compress <axis = 3> (@z, @b)"),
    "ReverseSequence": through(
        """@g = Flatten (s) @i = ArgMax <axis = 1, keepdims = 0> (@g) @n = Mul (@i, i0)
        @l = Add (@n, i4) [@] @p = ReverseSequence <batch_axis = 0, time_axis = 1> (@z, @l)"""
    ),
    "TopK": through("[@] @p, @r = TopK (@z, i2)"),
    "Trilu": through("[@] @p = Trilu (@z) @m = ReduceMax (@p, i3)", last="@m"),
    "CenterCropPad": through("[@] @p = CenterCropPad <axes = [2,3]> (@z, i4_4)"),
    "Celu": (through("[@] @p = Celu (@z)")[0], "the operator has no FP16 form"),
    "Gelu": through("[@] @p = Gelu (@z)"),
    "HardSwish": through("[@] @p = HardSwish (@z)"),
    "Mish": through("[@] @p = Mish (@z)"),
    "ThresholdedRelu": through("[@] @p = ThresholdedRelu <alpha = 0.0> (@z)"),
    "Tanh": through("[@] @p = Tanh (@z)"),
    "Erf": through("[@] @p = Erf (@z)"),
    "Sin": through("[@] @p = Sin (@z)"),
    "Tan": through("[@] @p = Tan (@z)"),
    "Asin": through("[@] @p = Asin (@z)"),
    "Atan": through("[@] @p = Atan (@z)"),
    "Asinh": through("[@] @p = Asinh (@z)"),
    "Softsign": through("[@] @p = Softsign (@z)"),
    "GridSample": through("@g = Slice (s, i0, i2, i3) [@] @p = GridSample (@z, @g)"),
    "Mod": (
        "@o = Sub (s, s) @z = Mul (s, n1e9) [@] @m = Mod <fmod = 1> (@o, @z) @q = Add (@m, s)",
        SMALL,
    ),
    "Atanh": ("@z = Mul (s, n1e5) @o = Sub (k1e0, @z) [@] @q = Atanh (@o)", SMALL),
}
"""A branch for each kind, and what the reason must say."""

GUARDS: dict[str, tuple[str, str]] = {
    "AddGuard": guard("Add (@z, n1e8)", "Sqrt (@g)"),
    "ClipGuard": guard("Clip (@z, n1e8)", "Div (s, @g)"),
    "MaxGuard": guard("Max (@z, n1e8)", "Log (@g)"),
    "SubGuard": guard("Sub (n1e8, @z)", "Reciprocal (@g)"),
    "WhereGuard": guard("Where (@some, @z, n1e8)", "Pow (@g, h)"),
}
FAULTS = PLANTED | GUARDS

KEPT_AS = {"CastLike": "Cast"}
"""Names of nodes that become another operator when a graph is read."""

IMPOSSIBLE: dict[str, frozenset[str]] = {
    "what comes out is bounded, or far smaller than what goes in": frozenset(
        {"Acos", "Acosh", "Cos", "GRU", "HardSigmoid", "Hardmax", "LSTM", "RNN"}
    ),
    "it is taken away when a graph is read": frozenset({"Dropout", "Identity"}),
    "no fractions come out; a decision that rounding turns shows in the outputs": frozenset(
        {
            "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf",
            "IsNaN", "Less", "LessOrEqual", "NonZero", "Round", "Shape", "Sign", "Size",
        }
    ),
    "its body stays FP32, whatever it is": frozenset({"If", "Loop", "Scan", "SequenceMap"}),
    "its scale stays FP32, or its graph is refused as quantized": frozenset(
        {"DequantizeLinear", "QLinearMatMul", "QuantizeLinear"}
    ),
    "its type is an attribute, or it reads no fractions": frozenset(
        {
            "Bernoulli", "BlackmanWindow", "Constant", "ConstantOfShape", "EyeLike",
            "HammingWindow", "HannWindow", "MelWeightMatrix", "Multinomial", "RandomNormal",
            "RandomNormalLike", "RandomUniform", "RandomUniformLike",
        }
    ),
    "it puts tensors into containers and takes them out": frozenset(
        {
            "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
            "SequenceAt", "SequenceConstruct", "SequenceInsert", "SplitToSequence",
        }
    ),
    "it picks or averages what goes in, and its rows are not the images": frozenset(
        {"MaxRoiPool", "MaxUnpool", "RoiAlign", "Unique"}
    ),
    "it is a loss: no network answers with it": frozenset(
        {"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}
    ),
}  # fmt: skip
"""Kinds without a fault of their own, by the reason."""


def kinds() -> set[str]:
    """Operators that the conversion's code names, and all that have an FP16 form."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    folder = Path(deploykit.__file__).parent
    nodes = (node for file in SOURCES for node in ast.walk(ast.parse((folder / file).read_text())))
    named = {str(node.value) for node in nodes if isinstance(node, ast.Constant)} & known
    return named | {name for name in known for opset in OPSETS if _has_half(name, opset)}


def _has_half(name: str, opset: int) -> bool:
    if not onnx.defs.has(name, opset, ""):
        return False
    schema = onnx.defs.get_schema(name, opset, "")
    types = [set(each.allowed_type_strs) for each in schema.type_constraints]
    either = {"tensor(float)", "tensor(float16)"}
    return not schema.deprecated and any(either <= each for each in types)


# --- graphs of them


def constants(body: str, dtype: type[np.floating[Any]]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for kind, digits, power in re.findall(r"\b([kn])(\d+)e(\d+)\b", body):
        number = float(f"{digits}e{'-' if kind == 'n' else ''}{power}")
        found[f"{kind}{digits}e{power}"] = np.array(number, dtype)
    for digits in re.findall(r"\bi(\d+(?:_\d+)*)\b", body):
        found[f"i{digits}"] = np.array([int(each) for each in digits.split("_")])
    given = {
        "W": np.ones((4, 4, 1, 1), dtype),
        "M": np.ones((8, 8), dtype),
        "F": np.ones((256, 3), dtype),
        "G": np.ones(4, dtype),
        "E": np.full(8, 1e5).astype(dtype),
        "B": np.full(4, 1e5).astype(dtype),
        "Z": np.zeros(4, dtype),
        "T": np.array([1, 0, 1, 0, 1, 1, 1, 1], dtype),
        "S": np.array([1, 1, 2, 2], np.float32),
        "h": np.array(-0.5, dtype),
        "Z0": np.zeros((), dtype),
        "O": np.array([0, 1e5]).astype(dtype),
        "I": np.zeros((1, 1), np.int64),
    }
    found |= {f"j{digit}": np.array(int(digit)) for digit in re.findall(r"\bj(\d+)\b", body)}
    words = set(re.findall(r"\w+", body))
    return {**found, **{name: value for name, value in given.items() if name in words}}


def branch(kind: str) -> str:
    body, _ = FAULTS[kind]
    lines = re.sub(r"\) (?=\[?@)", ")\n", body)
    return lines.replace("[@]", f"[{kind}]").replace("@", f"{kind}_")


@cache
def alone(kind: str, dtype: type[np.floating[Any]], type_: str) -> Array:
    """What the branch gives in one type on numbers of 0.01 to 0.99, by an oracle."""
    values = np.random.default_rng(0).uniform(0.01, 0.99, SHAPE).astype(dtype)
    with np.errstate(all="ignore"):
        if kind in BY_HAND:
            return BY_HAND[kind](values)
        text = f"g ({type_}[N,4,8,8] s) => ({type_} {kind}_q) {{\n{branch(kind)}\n}}"
        given = current(graph(text, constants(branch(kind), dtype)), [kind])
        return run_reference(given, {"s": values})[f"{kind}_q"]


def running_sum(values: Array) -> Array:
    """Sums over the last two axes that are rounded after each addition."""
    flat = values.reshape(*values.shape[:2], -1)
    return np.asarray(np.add.accumulate(flat, axis=-1, dtype=values.dtype)[..., -1:, None])


def of_squares(values: Array) -> Array:
    u = values * values.dtype.type(1000)
    return np.asarray(np.sqrt(running_sum(u * u)))


def normalised(values: Array) -> Array:
    u = values * values.dtype.type(1000)
    mean, square = (running_sum(each) / each.dtype.type(64) for each in (u, u * u))
    return np.asarray((u - mean) / np.sqrt(square - mean * mean))


def corners(values: Array) -> Array:
    u = (values.reshape(len(values), -1)[:, :6] * values.dtype.type(60000)).reshape(-1, 2, 3)
    place = values.dtype.type(0.75)  # of the last of four points between -1 and 1
    return np.asarray(u[..., 0] * place + u[..., 1] * place + u[..., 2])


def channel_sum(values: Array) -> Array:
    """A 1 x 1 convolution with weights of one."""
    u = values * values.dtype.type(40000)
    return np.asarray(np.add.accumulate(u, axis=1, dtype=values.dtype)[:, -1:])


def log_softmax(values: Array) -> Array:
    w = (values * values.dtype.type(60000) - values.dtype.type(30000)) * values.dtype.type(2)
    w = w - w.max(axis=-1, keepdims=True)
    return np.asarray(w - np.log(np.exp(w).sum(axis=-1, keepdims=True)))


def determinant(values: Array) -> Array:
    u = values[..., :2, :2] * values.dtype.type(500)
    return np.asarray(u[..., 0, 0] * u[..., 1, 1] - u[..., 0, 1] * u[..., 1, 0])


BY_HAND: dict[str, Callable[[Array], Array]] = {
    "AffineGrid": corners,
    "Cast": lambda s: np.trunc(s.astype(np.float32) * 90000).astype(s.dtype),
    "DeformConv": channel_sum,
    "Det": determinant,
    "AveragePool": lambda s: running_sum(s * s.dtype.type(6000)) / s.dtype.type(64),
    "GlobalAveragePool": lambda s: running_sum(s * s.dtype.type(6000)) / s.dtype.type(64),
    "GlobalLpPool": of_squares,
    "LogSoftmax": log_softmax,
    "MeanVarianceNormalization": normalised,
    "ReduceLogSumExp": lambda s: np.log(running_sum(np.exp(s * s.dtype.type(20)))),
}
"""In numpy, where the evaluator adds up in FP32, has no such operator, or avoids the overflow."""


def network(kinds: Sequence[str]) -> onnx.ModelProto:
    """A classifier with one class for each branch: the length of what the branch gives."""
    body = "\n".join(branch(kind) for kind in kinds)
    flat = [f"{kind}_flat = Flatten ({kind}_q)" for kind in kinds]
    ends = [f"{kind}_end = ReduceL2 ({kind}_flat, i1)" for kind in kinds]
    text = f"""net (float[N,3,8,8] x) => (float[N,{len(kinds)}] y) {{
        c = Conv (x, w)
        s = Sigmoid (c)
        {body}
        {chr(10).join([*flat, *ends])}
        all = Concat <axis = 1> ({", ".join(f"{kind}_end" for kind in kinds)})
        y = Mul (all, tame)
    }}"""
    lengths = [np.linalg.norm(alone(kind, np.float32, "float")) for kind in kinds]
    fixed = {"w": normal(4, 3, 1, 1), "tame": (1 / np.array(lengths)).astype(np.float32)}
    return current(graph(text, {**constants(text, np.float32), **fixed}), kinds)


def current(model: onnx.ModelProto, kinds: Sequence[str]) -> onnx.ModelProto:
    """The model with the opset that its operators need."""
    model.opset_import[0].version = OPSETS[bool(NEWER.intersection(kinds))]
    return model


# --- the tests


def test_each_kind_has_a_fault_or_a_reason_against_one() -> None:
    reasons = [name for names in IMPOSSIBLE.values() for name in names]
    assert sorted([*PLANTED, *reasons]) == sorted(kinds())


def groups() -> Iterator[list[str]]:
    for is_newer in (False, True):
        found = [
            kind for kind in FAULTS if (kind in NEWER) is is_newer and kind not in BY_ONNXRUNTIME
        ]
        yield from (found[at : at + AT_ONCE] for at in range(0, len(found), AT_ONCE))
    yield sorted(BY_ONNXRUNTIME)


@pytest.mark.parametrize("name", FAULTS)
def test_fp16_alone_breaks_it(name: str) -> None:
    exact, half = alone(name, np.float32, "float"), alone(name, np.float16, "float16")
    assert half.dtype == np.float16
    assert np.isfinite(exact).all()
    assert (~np.isfinite(half) | ((half == 0) & (exact != 0))).any()


@pytest.mark.parametrize("names", list(groups()), ids=lambda names: f"{names[0]} to {names[-1]}")
def test_an_export_keeps_it_out_of_fp16(names: Sequence[str], tmp_path: Path) -> None:
    original = save(network(names), tmp_path / "net.onnx")
    options = ExportOptions(Precision.FP16, backend="none", output=tmp_path / "bundle")
    made = export_bundle(str(original), options).bundle
    kept = made.manifest.conversion["kept_fp32"]
    reasons = {name: kept.get(KEPT_AS.get(name, name), "none") for name in names}
    assert not {
        each: said for each, said in reasons.items() if not re.search(FAULTS[each][1], said)
    }
    errors = dict(zip(names, branch_errors(original, made, names), strict=True))
    assert not {each: error for each, error in errors.items() if not error <= ERROR}


def branch_errors(original: Path, made: Bundle, names: Sequence[str]) -> list[float]:
    """How far each class is from that of the original, of its largest value."""
    feeds = {"x": np.load(made.folder / "golden.npz")["input"][:2]}
    if BY_ONNXRUNTIME.isdisjoint(names):
        expected, got = (
            run_reference(onnx.load(file), feeds)["y"] for file in (original, made.model_path)
        )
    else:
        expected, got = (
            run_ort(onnx.load(file), feeds)["y"] for file in (original, made.folder / CPU_MODEL)
        )
    error: Array = np.abs(got - expected).max(axis=0) / np.abs(expected).max(axis=0)
    return [float(each) for each in error]

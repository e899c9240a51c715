"""BF16: bit for bit in single operators, beside torch.bfloat16 in whole networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from deploykit.backends.ort import OrtRunner
from deploykit.comparison.converted import open_as_engine
from deploykit.comparison.reference import Runners
from deploykit.core.errors import ModelFileError
from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, read_artifact, read_model, tidy, write_model
from deploykit.graph.external_weights import split
from deploykit.graph.rounding import Stored, rounding_form
from deploykit.precision.bf16 import convert_to_bf16
from tests.graphs import graph, normal, save
from tests.unit.graph.halving import residual_network, types_of

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.precision.fp16 import HalfResult

Array = NDArray[Any]


def convert(source: onnx.ModelProto, folder: Path) -> HalfResult:
    model = read_model(save(source, folder / "source.onnx"))
    tidy(model, rename=False)
    artifact = write_model(model, folder / "fp32.onnx", Precision.FP32, ("origin",))
    return convert_to_bf16(LoadedGraph(artifact), folder / "bf16.onnx")


def answer(result: HalfResult, image: Array, stored: Stored = Stored.EVERY) -> Array:
    form = split(rounding_form(result.graph.model, stored), "the form")
    with OrtRunner(form) as runner:
        return next(iter(runner.run({runner.inputs[0].name: image}).values()))


def rounded(values: Array | np.float32) -> Array:
    """To the nearest BF16 number, halves to even, by ml_dtypes."""
    return np.asarray(values).astype(ml_dtypes.bfloat16).astype(np.float32)


def wide(seed: int = 0) -> Array:
    """Positive numbers over most of FP32's range: 1e-18 to 1e18."""
    generator = np.random.default_rng(seed)
    return np.asarray(10 ** generator.uniform(-18, 18, (2, 3, 32, 32)), np.float32)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("Mul (x, c)", lambda x, c: x * c),
        ("Add (x, c)", lambda x, c: x + c),
        ("Sub (x, c)", lambda x, c: x - c),
        ("Div (x, c)", lambda x, c: x / c),
        ("Sqrt (x)", lambda x, c: np.sqrt(x)),
        ("Relu (x)", lambda x, c: x),
        ("Transpose <perm = [0,2,3,1]> (x)", lambda x, c: x.transpose(0, 2, 3, 1)),
    ],
)
def test_single_operators_bit_for_bit(node: str, expected: Any, tmp_path: Path) -> None:
    shape = "float[2,32,32,3]" if "Transpose" in node else "float[2,3,32,32]"
    source = graph(
        f"g (float[2,3,32,32] x) => ({shape} y) {{ [n] y = {node} }}",
        {"c": np.array(1 / 3, np.float32)} if "c" in node.split("(")[1] else {},
    )
    got = answer(convert(source, tmp_path), wide())
    want = rounded(expected(rounded(wide()), rounded(np.float32(1 / 3))))
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    assert not np.array_equal(got, expected(wide(), np.float32(1 / 3)))


def test_what_fp16_cannot_hold_stays_a_number(tmp_path: Path) -> None:
    source = graph(
        """g (float[b,3,4,4] x) => (float[b,3,4,4] y) {
            s = Mul (x, x)
            g = Add (s, tiny)
            r = Sqrt (g)
            y = Div (x, r)
        }""",
        {"tiny": np.array(1e-12, np.float32)},
    )
    result = convert(source, tmp_path)
    assert not result.kept_fp32
    image = normal(1, 3, 4, 4, scale=1e6)
    image[0, 0] = 0
    got = answer(result, image)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[image != 0], np.sign(image[image != 0]), atol=2e-2)


def in_torch(image: Array, dtype: torch.dtype) -> Array:
    """The network of `residual_network`, by torch's own kernels."""
    made = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in residual_network().graph.initializer
    }
    w = {name: torch.from_numpy(array.copy()).to(dtype) for name, array in made.items()}
    x = torch.from_numpy(image).to(dtype)
    p1 = functional.max_pool2d(functional.conv2d(x, w["w1"], w["b1"], padding=1).relu(), 2)
    r2 = functional.conv2d(p1, w["w2"], padding=1).relu()
    r3 = (functional.conv2d(r2, w["w3"], padding=1) + p1).relu()
    c4 = functional.conv2d(r3, w["w4"], padding=1, stride=2)
    r4 = (c4 + functional.conv2d(r3, w["v4"], stride=2)).relu()
    y = functional.linear(r4.mean(dim=(2, 3)), w["w5"], w["b5"])
    return np.asarray(y.float().numpy())


@pytest.mark.parametrize("stored", list(Stored))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_network_beside_torch(seed: int, stored: Stored, tmp_path: Path) -> None:
    image = normal(2, 3, 8, 8, seed=seed)
    result = convert(residual_network(), tmp_path)
    got = answer(result, image, stored)
    exact, other = in_torch(image, torch.float32), in_torch(image, torch.bfloat16)
    largest = np.abs(exact).max()
    # Six layers of roundings at 2^-8 each, added as their square root, and twice that.
    bound = 2 * 6**0.5 * 2.0**-8 * largest
    assert 2.0**-14 * largest < np.abs(got - exact).max() < bound
    assert np.abs(got - other).max() < bound


def test_the_file(tmp_path: Path) -> None:
    result = convert(residual_network(), tmp_path)
    assert result.artifact == read_artifact(tmp_path / "bf16.onnx")
    assert result.artifact.precision is Precision.BF16
    assert result.artifact.parents[-1] == "origin"
    assert result.artifact.opset == 22
    assert (result.kept_heavy, result.halved) == (0, 14)
    proto = onnx.load(tmp_path / "bf16.onnx")
    onnx.checker.check_model(proto, full_check=True)
    found = types_of(proto)
    heavy = [node for node in proto.graph.node if node.op_type in {"Conv", "Gemm"}]
    narrow = {found[name] for node in heavy for name in (*node.input, *node.output)}
    assert len(heavy) == 6
    assert narrow == {onnx.TensorProto.BFLOAT16}
    border = {found[value.name] for value in (*proto.graph.input, *proto.graph.output)}
    assert border == {onnx.TensorProto.FLOAT}
    by_its_weights = onnx.load(tmp_path / "bf16.onnx")
    del by_its_weights.metadata_props[:]
    path = save(by_its_weights, tmp_path / "foreign.onnx")
    assert read_artifact(path).precision is Precision.BF16


def test_the_file_itself_runs_on_no_cpu_and_its_form_does(tmp_path: Path) -> None:
    result = convert(residual_network(), tmp_path)
    image = normal(2, 3, 8, 8)
    with pytest.raises(ModelFileError, match="NOT_IMPLEMENTED"):
        OrtRunner(result.artifact.path).run({"x": image})
    for fast in (False, True):
        with open_as_engine(Runners(), result.artifact, fast=fast) as runner:
            found = runner.run({"x": image})["y"]
        assert np.array_equal(found, answer(result, image, Stored.FUSED))


def test_operators_without_bf16_stay_fp32(tmp_path: Path) -> None:
    source = graph(
        """g (float[b,3,4,4] x) => (float[b,3,4,4] y) {
            f = Relu (x)
            d = Celu (f)
            l = LRN <size = 3> (f)
            y = Mul (d, l)
        }"""
    )
    result = convert(source, tmp_path)
    assert dict(result.kept_fp32) == {"Celu": "the operator has no BF16 form"}
    image = np.abs(normal(2, 3, 4, 4))
    # Of positive numbers Celu makes nothing; LRN of three channels with bias 1, alpha 1e-4 / 3.
    near = [rounded(image)[:, max(0, at - 1) : at + 2] for at in range(3)]
    sums = np.stack([np.square(each).sum(axis=1) for each in near], axis=1)
    want = rounded(rounded(image) * rounded(rounded(image) / (1 + 1e-4 / 3 * sums) ** 0.75))
    np.testing.assert_allclose(answer(result, image), want, rtol=2.0**-7)


def test_a_graph_that_cannot_be_raised_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("deploykit.graph.opset.version_converter.convert_version", refuse)
    with pytest.raises(ModelFileError, match=r"opset 20 cannot be raised to 22: .* in the way"):
        convert(residual_network(), tmp_path)

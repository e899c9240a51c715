"""ONNX files of a few nodes, each with what one test of the compilers needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

OPSET = 21
IMAGE = (8, 16, 16)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    dtype: DTypeLike = np.float32,
    shape: Sequence[int | str] = ("batch", *IMAGE),
    domain: str = "",
) -> Path:
    """Write a graph from input ``x`` to output ``y``."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = helper.make_tensor_value_info("x", element, shape)
    y = helper.make_tensor_value_info("y", element, None)
    graph = helper.make_graph(list(nodes), "small", [x], [y], list(constants))
    domains = [helper.make_opsetid("", OPSET)]
    if domain:
        domains.append(helper.make_opsetid(domain, 1))
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def convolution(
    path: Path, dtype: DTypeLike = np.float32, shape: Sequence[int | str] = ("batch", *IMAGE)
) -> Path:
    """Convolution, ReLU, global pooling and a linear layer: two heavy layers."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 8, 3, 3)).astype(dtype)
    matrix = rng.normal(size=(10, 16)).astype(dtype)
    constants = [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(matrix, "m")]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "m"], ["y"], name="linear", transB=1),
    ]
    return save(path, nodes, constants, dtype=dtype, shape=shape)


def half_converted(path: Path) -> Path:
    """An FP32 convolution, a cast, and an FP16 convolution."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
    constants = [
        numpy_helper.from_array(kernel, "k32"),
        numpy_helper.from_array(kernel.astype(np.float16), "k16"),
    ]
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Conv", ["x", "k32"], ["a"], name="conv32"),
        helper.make_node("Cast", ["a"], ["b"], name="down", to=half),
        helper.make_node("Conv", ["b", "k16"], ["c"], name="conv16"),
        helper.make_node("Cast", ["c"], ["y"], name="up", to=full),
    ]
    return save(path, nodes, constants)


def quantized(path: Path, dtype: DTypeLike = np.float32, *, weights_only: bool = False) -> Path:
    """A convolution and a linear layer between Q/DQ pairs; the latter behind a Flatten."""
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(np.array(0.02, dtype), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
        *_quantized_weights("k", (16, 8, 3, 3), dtype, rng),
        *_quantized_weights("m", (10, 16), dtype, rng),
    ]
    nodes = [
        *_quantize_dequantize("x", "xd"),
        helper.make_node("DequantizeLinear", ["kq", "ks", "kz"], ["k"], axis=0),
        helper.make_node("Conv", ["x" if weights_only else "xd", "k"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        *_quantize_dequantize("p", "pd"),
        helper.make_node("Flatten", ["p" if weights_only else "pd"], ["f"], name="flatten"),
        helper.make_node("DequantizeLinear", ["mq", "ms", "mz"], ["m"], axis=0),
        helper.make_node("Gemm", ["f", "m"], ["y"], name="linear", transB=1),
    ]
    used = [node for node in nodes if not (weights_only and node.output[0][-2:] in {"xd", "pd"})]
    return save(path, used, constants, dtype=dtype)


def one_node(path: Path, operator: str, name: str = "", domain: str = "") -> Path:
    """A single node from ``x`` to ``y``."""
    node = helper.make_node(operator, ["x"], ["y"], name=name, domain=domain)
    return save(path, [node], domain=domain)


def _quantized_weights(
    name: str, shape: tuple[int, ...], dtype: DTypeLike, rng: np.random.Generator
) -> list[onnx.TensorProto]:
    """INT8 values, a scale and a zero point per output channel."""
    values = rng.integers(-127, 128, shape).astype(np.int8)
    return [
        numpy_helper.from_array(values, f"{name}q"),
        numpy_helper.from_array(np.full(shape[0], 0.01, dtype), f"{name}s"),
        numpy_helper.from_array(np.zeros(shape[0], np.int8), f"{name}z"),
    ]


def _quantize_dequantize(source: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{target}_q"]),
        helper.make_node("DequantizeLinear", [f"{target}_q", "s", "z"], [target]),
    ]

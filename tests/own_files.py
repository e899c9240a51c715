"""Classifiers as users have them in ``.onnx`` files: of old exporters, with a fixed batch, odd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

tensor = helper.make_tensor_value_info

CLASSES = 10
SIZE = 8
CHANNELS = 4
WIDE = 16
BLOOD = 16
"""Values beside an image of `patients`."""


def node(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    *,
    batch: int | str = "n",
    opset: int = 20,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """A file that takes ``x`` (batch, 3, 8, 8) and gives ``y`` (batch, 10).

    Before opset 9 the weights are among the inputs, as exporters had to write them then.
    """
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    given = list(inputs or [tensor("x", TensorProto.FLOAT, (batch, 3, SIZE, SIZE))])
    if opset < 9:
        given += [tensor(t.name, t.data_type, list(t.dims)) for t in stored]
    made = list(outputs or [tensor("y", TensorProto.FLOAT, (batch, CLASSES))])
    graph = helper.make_graph(list(nodes), "net", given, made, stored)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3 if opset < 9 else 9)


def weights(channels: int = CHANNELS, **more: Any) -> dict[str, Array]:
    """Of a convolution with its BatchNorm, and of a linear layer; ``more`` beside them."""
    scale, shift, mean, spread = (normal(channels, seed=seed) for seed in range(1, 5))
    return {
        "w": normal(channels, 3, 3, 3),
        "scale": scale,
        "shift": shift,
        "mean": mean,
        "var": np.abs(spread) + np.float32(0.5),
        "fc": normal(CLASSES, channels * SIZE * SIZE, seed=5, scale=0.05),
        "bias": normal(CLASSES, seed=6),
        **more,
    }


def convolution(**normalise: Any) -> list[onnx.NodeProto]:
    """Conv and BatchNorm, named as an exporter names them; gives ``n``."""
    return [
        node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node(
            "BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], "bn", **normalise
        ),
    ]


def linear(source: str = "f", result: str = "y") -> onnx.NodeProto:
    return node("Gemm", [source, "fc", "bias"], [result], "fc", transB=1)


def old(opset: int, *, batch: int | str = "n", channels: int = CHANNELS) -> onnx.ModelProto:
    """As PyTorch of its day wrote it: BatchNorm apart, a Dropout with a ratio, a computed shape."""
    spatial: dict[str, object] = {"spatial": 1} if opset < 9 else {}
    axes = {"axes": [0]} if opset < 13 else {}
    more = {"zero": np.array(0), "rest": np.array([-1])}
    if opset >= 13:
        more["first"] = np.array([0])
    ratio = {"ratio": 0.4} if opset < 12 else {}
    nodes = [
        *convolution(**spatial),
        node("Relu", ["n"], ["r"], "relu"),
        node("Dropout", ["r"], ["d"], "drop", **ratio),
        node("Shape", ["d"], ["s"], "shape"),
        node("Gather", ["s", "zero"], ["b"], "size", axis=0),
        node("Unsqueeze", ["b", *(["first"] if opset >= 13 else [])], ["u"], "unsqueeze", **axes),
        node("Concat", ["u", "rest"], ["sizes"], "sizes", axis=0),
        node("Reshape", ["d", "sizes"], ["f"], "flatten"),
        linear(),
    ]
    return model(nodes, weights(channels, **more), batch=batch, opset=opset)


def written_shape(batch: int, shape: Sequence[int]) -> onnx.ModelProto:
    """A Reshape whose sizes are numbers in the file."""
    nodes = [
        *convolution(),
        node("Reshape", ["n", "sizes"], ["f"], "flatten"),
        linear(),
    ]
    return model(nodes, weights(sizes=np.array(shape)), batch=batch)


def classifier() -> onnx.ModelProto:
    """Small and old: opset 11, one image of 32 pixels at a time, BatchNorm beside its convolution.

    Large enough for INT8: 16 channels and more.
    """
    stored = {
        **weights(16),
        "w2": normal(32, 16, 3, 3, seed=7, scale=0.1),
        "fc": normal(CLASSES, 32, seed=8),
    }
    nodes = [
        *convolution(),
        node("Relu", ["n"], ["r"], "relu1"),
        node("Conv", ["r", "w2"], ["c2"], "conv2", kernel_shape=[3, 3], strides=[2, 2]),
        node("Relu", ["c2"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Reshape", ["p", "sizes"], ["f"], "flatten"),
        linear(),
    ]
    stored["sizes"] = np.array([1, 32])
    inputs = [tensor("x", TensorProto.FLOAT, (1, 3, 32, 32))]
    return model(nodes, stored, batch=1, opset=11, inputs=inputs)


def patients(batch: int | str = "n") -> onnx.ModelProto:
    """Blood values first, then the photograph, then the ward: a row of a table."""
    wide = WIDE * SIZE**2
    stored = {
        **weights(WIDE),
        "hidden": normal(BLOOD, WIDE, seed=7),
        "wards": normal(5, WIDE, seed=8),
        "fc": normal(CLASSES, wide + 2 * WIDE, seed=9, scale=0.05),
        "sizes": np.array([1 if batch == 1 else -1, wide]),
    }
    nodes = [
        *convolution(),
        node("Relu", ["n"], ["r"], "relu"),
        node("Reshape", ["r", "sizes"], ["flat"], "flat"),
        node("MatMul", ["blood", "hidden"], ["h"], "mlp"),
        node("Gather", ["wards", "ward"], ["e"], "embed"),
        node("Concat", ["flat", "h", "e"], ["f"], "join", axis=1),
        linear(),
    ]
    inputs = [
        tensor("blood", TensorProto.FLOAT, (batch, BLOOD)),
        tensor("x", TensorProto.FLOAT, (batch, 3, SIZE, SIZE)),
        tensor("ward", TensorProto.INT64, (batch,)),
    ]
    return model(nodes, stored, batch=batch, inputs=inputs)


def write_values(path: Path) -> Path:
    """For what `patients` takes beside images, forty rows."""
    rows = np.random.default_rng(3)
    np.savez(path, blood=rows.normal(scale=3.0, size=(40, BLOOD)), ward=rows.integers(0, 5, 40))
    return path


def channels_last(
    batch: int | str = "n",
    *,
    size: tuple[int | str, int | str] = (32, 32),
    normalised: bool = False,
    opset: int = 17,
) -> onnx.ModelProto:
    """As tf2onnx writes a small Keras network: ``x`` (batch, H, W, 3), convolutions channels first.

    A ``Transpose`` stands behind the input and another before the pooling over height and width.
    With ``normalised`` a rescaling, a mean of each channel and a padding stand before the first.
    """
    stored = {
        **weights(16),
        "w2": normal(32, 16, 3, 3, seed=7, scale=0.1),
        "dense": normal(32, CLASSES, seed=8),
        "rescale": np.array(0.5, np.float32),
        "channel": normal(1, 1, 1, 3, seed=9, scale=0.3),
        "border": np.array([0, 1, 2, 0, 0, 3, 0, 0]),
    }
    before = [
        node("Mul", ["x", "rescale"], ["x1"], "rescaling"),
        node("Sub", ["x1", "channel"], ["x2"], "normalization"),
        node("Pad", ["x2", "border"], ["x3"], "zero_padding"),
    ]
    nodes = [
        *(before if normalised else []),
        node("Transpose", ["x3" if normalised else "x"], ["t"], "first", perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"], "bn"),
        node("Relu", ["b"], ["r"], "relu1"),
        node("MaxPool", ["r"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m", "w2"], ["c2"], "conv2", kernel_shape=[3, 3]),
        node("Relu", ["c2"], ["r2"], "relu2"),
        node("Transpose", ["r2"], ["l"], "back", perm=[0, 2, 3, 1]),
        node("ReduceMean", ["l"], ["p"], "global_pool", axes=[1, 2], keepdims=0),
        node("MatMul", ["p", "dense"], ["d"], "dense"),
        node("Add", ["d", "bias"], ["y"], "dense_bias"),
    ]
    read = {name for each in nodes for name in each.input}
    used = {name: value for name, value in stored.items() if name in read}
    inputs = [tensor("x", TensorProto.FLOAT, (batch, *size, 3))]
    return model(nodes, used, batch=batch, opset=opset, inputs=inputs)

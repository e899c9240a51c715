"""A graph apart from its weights: what is handed to a runner, or lies in two files.

A protobuf message ends at 2 GiB, and every message that holds the weights is a copy of them. So
large initializers are marked as external data, and travel beside the message as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from deploykit.errors import ModelFileError
from deploykit.specs import SplitGraph

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from deploykit.specs import Array

PROTOBUF_LIMIT_BYTES: Final = 2**31 - 1
"""A protobuf message cannot be longer."""

SMALLEST_WEIGHT_BYTES: Final = 1024
"""What is smaller stays in the graph: shape inference and folding look at small constants."""

ALIGNMENT_BYTES: Final = 4096
"""Of each weight in a file of weights: a memory page, so that it can be mapped by itself."""

WEIGHT_TYPES: Final = frozenset(
    {
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
    }
)
"""What weights are stored in; integers of other types may be shapes, which are looked at."""

_MEMORY: Final = "memory"
"""A file name that is never opened: the runner is given the data."""


def weights_of(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The initializers of the main graph that need not be in its message, in graph order."""
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and _is_weight(value.const_value)
    }


def data_of(weight: ir.TensorProtocol) -> Array:
    """The numbers of a weight, without a copy wherever they lie as a runner can read them."""
    array: Array = np.require(weight.numpy(), requirements=["ALIGNED", "C_CONTIGUOUS"])
    return array


def offsets_of(weights: Mapping[str, ir.TensorProtocol]) -> dict[str, int]:
    """Where each weight begins in a file of all of them, one after another, in bytes."""
    offsets, end = {}, 0
    for name, weight in weights.items():
        offsets[name] = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        end = offsets[name] + weight.nbytes
    return offsets


def without_weights(model: ir.Model, location: str = _MEMORY) -> onnx.ModelProto:
    """The message of a graph whose weights are to be looked for in the file ``location``."""
    marked = model.clone()
    weights = weights_of(marked)
    offsets = offsets_of(weights)
    for name, weight in weights.items():
        marked.graph.initializers[name].const_value = ir.ExternalTensor(
            location,
            offsets[name],
            weight.nbytes,
            weight.dtype,
            shape=ir.Shape(weight.shape.numpy()),
            name=name,
        )
    return ir.to_proto(marked)


def put_back(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """The same graph, with the weights that its message was without."""
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = weight
    return model


def split(model: ir.Model, what: str) -> SplitGraph:
    """The graph for a runner; its weights are those of ``model`` itself, not copies.

    Raises:
        ModelFileError: ``what`` is larger than a message can be, even without its weights.
    """
    weights = {name: data_of(weight) for name, weight in weights_of(model).items()}
    return SplitGraph(serialise(without_weights(model), what), weights)


def serialise(proto: onnx.ModelProto, what: str, limit: int = PROTOBUF_LIMIT_BYTES) -> bytes:
    """The bytes of a message, the same ones for the same message.

    Raises:
        ModelFileError: ``what`` is longer than ``limit`` bytes.
    """
    size = proto.ByteSize()
    if not 0 < size <= limit:
        raise ModelFileError(
            f"{what} would have {size / 2**30:.1f} GiB beside its weights, "
            f"an ONNX file holds {limit / 2**30:.0f} GiB at most\n"
            "only initializers can lie in a file of their own: make its constants initializers"
        )
    return bytes(proto.SerializeToString(deterministic=True))


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in WEIGHT_TYPES and tensor.nbytes >= SMALLEST_WEIGHT_BYTES

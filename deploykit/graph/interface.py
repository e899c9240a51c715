"""Inputs and outputs of a graph: what a file declares of them, and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from deploykit.core.errors import ModelFileError
from deploykit.graph.editing import Names

if TYPE_CHECKING:
    from pathlib import Path


_LARGE_BYTES: Final = 2**10
"""Size from which a constant is a weight; constants for shapes are smaller."""


def first_look(path: Path) -> None:
    """Refuse a file by its inputs and outputs, before it is read as a graph.

    Raises:
        ModelFileError: a map, a sequence, an optional value or strings are among them.
    """
    try:
        # Without the weights: they say nothing of the inputs, and may be gigabytes.
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return  # whoever reads it next says what is wrong with it
    require_tensors(proto, path.name)


def require_tensors(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a model that takes or returns something else than tensors of numbers.

    Raises:
        ModelFileError: a map, a sequence, an optional value, strings.
    """
    for verb, values in (("takes", proto.graph.input), ("returns", proto.graph.output)):
        odd = [f"{value.name} ({_kind(value.type)})" for value in values if _kind(value.type)]
        if odd:
            raise ModelFileError(
                f"{name} {verb} {', '.join(odd)}\n"
                "expected numbers: images (batch, 3, H, W) in, outputs (batch, ...) out\n"
                "export the network alone, without what comes before and after it"
            )


def declare_outputs(proto: onnx.ModelProto) -> bool:
    """Give outputs without a shape the one that onnx infers, in place; True if there were any.

    Old converters leave it out, and the standard requires it.
    """
    bare = [value for value in proto.graph.output if _lacks_shape(value.type)]
    if not bare:
        return False
    known = _inferred(proto)
    for value in bare:
        found = known.get(value.name)
        if found is not None:
            value.type.CopyFrom(found.type)
    return True


def _inferred(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    apart = onnx.ModelProto()
    apart.CopyFrom(proto)
    for tensor in apart.graph.initializer:
        if len(tensor.raw_data) > _LARGE_BYTES:
            # Its numbers say nothing of shapes, and a message of more than 2 GiB is refused.
            tensor.ClearField("raw_data")
    # data_prop: follows the numbers in shapes too, so that the shape behind a Reshape is found.
    graph = onnx.shape_inference.infer_shapes(apart, data_prop=True).graph
    return {value.name: value for value in (*graph.output, *graph.value_info)}


def _lacks_shape(kind: onnx.TypeProto) -> bool:
    return kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")


def _kind(kind: onnx.TypeProto) -> str:
    """Kind of a value in words; empty for a tensor of numbers."""
    found = kind.WhichOneof("value") or "untyped"
    if found != "tensor_type":
        return found.removesuffix("_type")
    return "strings" if kind.tensor_type.elem_type == onnx.TensorProto.STRING else ""


def put_image_first(model: ir.Model, name: str) -> None:
    """Make ``name`` the first of the inputs; the others keep their order. In place."""
    inputs = model.graph.inputs
    at = next(index for index, value in enumerate(inputs) if value.name == name)
    inputs.insert(0, inputs.pop(at))


def put_first(model: ir.Model, name: str, *, flatten: bool) -> None:
    """Make ``name`` the first of the outputs; the others keep their order. In place.

    With ``flatten`` its last dimensions, which are all 1, are dropped: (N, K, 1, 1) becomes (N, K).
    """
    outputs = model.graph.outputs
    at = next(index for index, value in enumerate(outputs) if value.name == name)
    chosen = outputs.pop(at)
    outputs.insert(0, _flattened(model.graph, chosen) if flatten else chosen)


def _flattened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name = str(value.name)
    taken = Names(str(v.name) for node in graph for v in (*node.inputs, *node.outputs) if v)
    value.name = taken.fresh(f"{name}_unflattened")
    shape = None if value.shape is None else ir.Shape(value.shape[:2])
    flat = ir.Value(name=name, type=value.type, shape=shape)
    node = ir.Node("", "Flatten", [value], outputs=[flat], name=f"{name}/Flatten")
    graph.append(node)
    return flat

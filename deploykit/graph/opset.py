"""Conversion of old graphs to a newer opset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
import onnx_ir as ir
from onnx import helper, version_converter

from deploykit.core.errors import ModelFileError
from deploykit.graph.external_weights import (
    PROTOBUF_LIMIT_BYTES,
    put_back,
    weights_of,
    without_weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OPSET: Final = 20
"""Opset of our own exports; TensorRT 10.12 reads it."""

OLDEST_FOR_INT8: Final = 18
"""Oldest opset for INT8: scales per channel need 13, measuring a layer's error needs 18."""

OLDEST_FOR_FP8: Final = 19
"""Oldest opset with a type for FP8."""

OPSET_FOR_BF16: Final = 22
"""First opset whose convolutions and poolings take BF16; TensorRT 10.12 reads it."""

_IR_VERSIONS: Final = {OPSET: 9, OPSET_FOR_BF16: 10}
"""First IR version with each; below 4 the converter refuses weights that it adds itself."""

_RESIZE_BY_COORDINATES: Final = 11
"""First opset with a choice of coordinates for ``Resize``; older ones have one fixed layout."""


def raise_opset(
    model: ir.Model, *, needed: int = OLDEST_FOR_INT8, limit: int = PROTOBUF_LIMIT_BYTES
) -> ir.Model:
    """The graph in opset 20, or in ``needed`` if that is later.

    One that has the ``needed`` opset or a later one is returned as it is. The converter is not
    given the weights where they have more than ``limit`` bytes.

    Raises:
        ModelFileError: onnx's own converter cannot translate one of its operators.
    """
    opset = max(OPSET, needed)
    old = model.graph.opset_imports.get("", OPSET)
    if old >= needed:
        return model
    weights = weights_of(model)
    if sum(weight.nbytes for weight in weights.values()) <= limit:
        weights = {}
    proto = without_weights(model) if weights else ir.to_proto(model)
    proto.ir_version = max(proto.ir_version, _IR_VERSIONS[opset])
    try:
        raised = version_converter.convert_version(proto, opset)
        if not weights:  # which it would look for; the graph is checked again when it is written
            onnx.checker.check_model(raised)
    except Exception as exc:  # its C++ errors come as RuntimeError and onnx's own classes
        named = next(_untranslatable(proto, opset), "")
        # An assertion of its C++ code names that code first.
        reason = str(exc).strip().splitlines()[0].rpartition(" failed: ")[2]
        raise ModelFileError(
            f"opset {old} cannot be raised to {opset}{named and f': {named} is in the way'}\n"
            f"{reason}"
        ) from exc
    if old < _RESIZE_BY_COORDINATES:
        _lay_out_as_before(raised)
    return put_back(ir.from_proto(raised), weights)


def _lay_out_as_before(raised: onnx.ModelProto) -> None:
    # The converter leaves these out, and their defaults are another layout than the old one.
    old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for node in raised.graph.node:
        if node.op_type == "Resize":
            given = {attribute.name for attribute in node.attribute}
            node.attribute.extend(
                helper.make_attribute(key, value) for key, value in old.items() if key not in given
            )


def _untranslatable(proto: onnx.ModelProto, opset: int) -> Iterator[str]:
    """Nodes that the converter fails at when they stand alone."""
    # The converter's error does not name the node, so each is tried in a graph of its own.
    known = onnx.shape_inference.infer_shapes(proto).graph
    types = {v.name: v for v in (*known.input, *known.value_info, *known.output)}
    types |= {
        t.name: helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in known.initializer
    }
    for node in known.node:
        alone = helper.make_graph(
            [node],
            "alone",
            [types[name] for name in node.input if name in types],
            [types[name] for name in node.output if name in types],
        )
        model = helper.make_model(
            alone, opset_imports=proto.opset_import, ir_version=proto.ir_version
        )
        try:
            version_converter.convert_version(model, opset)
        except Exception:  # whatever it is: the whole model tells the reason
            yield f"{node.op_type} {node.name!r}" if node.name else node.op_type

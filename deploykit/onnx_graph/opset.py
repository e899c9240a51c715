"""Old graphs in the words of a newer ONNX standard."""

from __future__ import annotations

from typing import Final

import onnx
import onnx_ir as ir
from onnx import version_converter

from deploykit.errors import ModelFileError

OPSET: Final = 20
"""What our own exports are written in: TensorRT 10.12 reads it."""

OLDEST_FOR_INT8: Final = 18
"""Scales per channel need 13; measuring what quantization does to a layer needs 18."""


def raise_opset(model: ir.Model) -> ir.Model:
    """The graph in opset 20; one that is new enough for every conversion is returned as it is.

    Raises:
        ModelFileError: onnx's own converter cannot translate one of its operators.
    """
    if model.graph.opset_imports.get("", OPSET) >= OLDEST_FOR_INT8:
        return model
    try:
        raised = version_converter.convert_version(ir.to_proto(model), OPSET)
    except Exception as exc:  # its C++ errors come as RuntimeError and onnx's own classes
        old = model.graph.opset_imports[""]
        reason = str(exc).strip().splitlines()[0]
        raise ModelFileError(f"opset {old} cannot be raised to {OPSET}\n{reason}") from exc
    onnx.checker.check_model(raised)
    return ir.from_proto(raised)

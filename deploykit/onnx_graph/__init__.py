"""The only door to the onnx packages: reading, tidying, rewriting and describing graphs.

Graphs are held as `onnx_ir.Model`; what leaves this package is plain data or a file.
"""

from deploykit.onnx_graph.casts import halve
from deploykit.onnx_graph.declared import first_look
from deploykit.onnx_graph.files import read_artifact, read_model, write_model
from deploykit.onnx_graph.folding import fold, plain
from deploykit.onnx_graph.half import HEAVY_OPS, HalfPlan, plan_half
from deploykit.onnx_graph.layers import describe_layers
from deploykit.onnx_graph.logits import put_first, put_image_first
from deploykit.onnx_graph.magnitudes import Extremes, expose_magnitudes
from deploykit.onnx_graph.open_batch import open_batch
from deploykit.onnx_graph.opset import OLDEST_FOR_INT8, OPSET, raise_opset
from deploykit.onnx_graph.refusals import require_usable
from deploykit.onnx_graph.tidy import tidy

__all__ = [
    "HEAVY_OPS",
    "OLDEST_FOR_INT8",
    "OPSET",
    "Extremes",
    "HalfPlan",
    "describe_layers",
    "expose_magnitudes",
    "first_look",
    "fold",
    "halve",
    "open_batch",
    "plain",
    "plan_half",
    "put_first",
    "put_image_first",
    "raise_opset",
    "read_artifact",
    "read_model",
    "require_usable",
    "tidy",
    "write_model",
]

"""The only door to the onnx packages: reading, tidying, rewriting and describing graphs.

Graphs are held as `onnx_ir.Model`; what leaves this package is plain data or a file.
"""

from deploykit.graph.activations import Extremes, expose_magnitudes
from deploykit.graph.channels_last import ChannelsMoved, put_channels_first
from deploykit.graph.files import (
    first_look,
    put_first,
    put_image_first,
    read_artifact,
    read_model,
    write_model,
)
from deploykit.graph.folding import fold, plain
from deploykit.graph.foreign import declare_ranks, mended_of
from deploykit.graph.half import BF16, FP16, HEAVY_OPS, HalfPlan, convert_to_half, plan_half
from deploykit.graph.kernel_costs import describe_layers
from deploykit.graph.loaded import LoadedGraph, read_graph, write_graph
from deploykit.graph.open_batch import open_batch
from deploykit.graph.opset import (
    OLDEST_FOR_FP8,
    OLDEST_FOR_INT8,
    OPSET,
    OPSET_FOR_BF16,
    raise_opset,
)
from deploykit.graph.refusals import require_usable
from deploykit.graph.shapes import require_bounded
from deploykit.graph.tail import Tail, read_tails
from deploykit.graph.tidy import tidy, tidy_in_opset
from deploykit.graph.tiny_numbers import hide_tiny, show_tiny
from deploykit.graph.written_out import fuse_written_out

__all__ = [
    "BF16",
    "FP16",
    "HEAVY_OPS",
    "OLDEST_FOR_FP8",
    "OLDEST_FOR_INT8",
    "OPSET",
    "OPSET_FOR_BF16",
    "ChannelsMoved",
    "Extremes",
    "HalfPlan",
    "LoadedGraph",
    "Tail",
    "convert_to_half",
    "declare_ranks",
    "describe_layers",
    "expose_magnitudes",
    "first_look",
    "fold",
    "fuse_written_out",
    "hide_tiny",
    "mended_of",
    "open_batch",
    "plain",
    "plan_half",
    "put_channels_first",
    "put_first",
    "put_image_first",
    "raise_opset",
    "read_artifact",
    "read_graph",
    "read_model",
    "read_tails",
    "require_bounded",
    "require_usable",
    "show_tiny",
    "tidy",
    "tidy_in_opset",
    "write_graph",
    "write_model",
]

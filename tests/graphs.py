"""Small ONNX graphs written as text, and the oracles that several tests judge graphs with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.core.specs import SplitGraph
from deploykit.graph import tidy
from deploykit.graph.activations import expose_named

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

OPSET = 20


def graph(
    text: str,
    constants: Mapping[str, Array] | None = None,
    domain: str = "",
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Parse ``name (inputs) => (outputs) { nodes }`` and give it ``constants`` as initializers."""
    other = f', "{domain}" : 1' if domain else ""
    version = 9 if opset <= OPSET else 10  # of the format, which is raised with the opset
    model = onnx.parser.parse_model(
        f'<ir_version: {version}, opset_import: ["" : {opset}{other}]> {text}'
    )
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def model_of(
    body: str, shapes: tuple[str, str], constants: Mapping[str, Array], opset: int = OPSET
) -> ir.Model:
    """The tidy graph of nodes that make y of x, of the two ``shapes``; it has what they read."""
    x, y = shapes
    proto = graph(f"g (float[{x}] x) => (float[{y}] y) {{ {body} }}", opset=opset)
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(data, name) for name, data in constants.items() if name in read
    )
    model = ir.from_proto(proto)
    tidy(model, rename=False)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Reproducible FP32 noise."""
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return np.asarray(values.astype(np.float32))


def whole(split: SplitGraph) -> onnx.ModelProto:
    """The graph with its weights back in it."""
    model = onnx.load_from_string(split.content)
    for tensor in model.graph.initializer:
        if tensor.name in split.weights:
            tensor.CopyFrom(numpy_helper.from_array(split.weights[tensor.name], tensor.name))
    return model


def expose_outputs(model: ir.Model) -> tuple[SplitGraph, tuple[str, ...]]:
    """The graph with every FP32 value that a node computes as an output, and their names."""
    computed = (value for node in model.graph for value in node.outputs)
    names = tuple(str(value.name) for value in computed if value.dtype == ir.DataType.FLOAT)
    return expose_named(model, names), names


def run_ort(
    model: onnx.ModelProto | bytes | SplitGraph, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """All outputs by name, computed by onnxruntime without its own rewriting."""
    session = _session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs by name, computed by onnx's numpy evaluator, which rounds as the types say."""
    names = [output.name for output in model.graph.output]
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(model).run(names, dict(feeds))
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _session(model: onnx.ModelProto | bytes | SplitGraph) -> Any:
    if isinstance(model, SplitGraph):
        model = whole(model)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

"""Small ONNX graphs written as text, and the oracles that several tests judge graphs with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.specs import StepTimes, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    Array = NDArray[Any]

OPSET = 20


def graph(text: str, constants: Mapping[str, Array] | None = None, domain: str = "") -> onnx.ModelProto:
    """Parse ``name (inputs) => (outputs) { nodes }`` and give it ``constants`` as initializers."""
    other = f', "{domain}" : 1' if domain else ""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {OPSET}{other}]> {text}'
    )
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Reproducible FP32 noise."""
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return np.asarray(values.astype(np.float32))


def run_ort(model: onnx.ModelProto | bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
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


class OrtRunner:
    """A `deploykit.specs.Runner` for tests, straight on onnxruntime's CPU provider."""

    def __init__(self, model: bytes) -> None:
        self._session = _session(model)
        self.closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        return self.run(feeds), StepTimes(0.0)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _session(model: onnx.ModelProto | bytes) -> Any:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, "float32", tuple(value.shape))

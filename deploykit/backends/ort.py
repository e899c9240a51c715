"""onnxruntime behind the `Runner` protocol."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploykit.backends._feeds import check_feeds
from deploykit.errors import EngineIncompatibleError, ModelFileError, UsageError
from deploykit.specs import StepTimes, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from deploykit.specs import Array

_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_FATAL: Final = 4
"""onnxruntime's highest severity: below it, what it raises stands on standard error as well."""

_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

_LOAD_ERRORS: Final = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class OrtRunner:
    """Runs an ONNX file, or its bytes, on onnxruntime.

    The session is made on first use. ``optimise=False`` computes each node as the standard has
    it: the default optimisations compute something else for Q/DQ graphs than TensorRT does.
    ``device="cuda"`` raises where onnxruntime would quietly fall back to the CPU. With
    ``spin=False`` waiting threads sleep: right where others work on the same cores meanwhile.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        device: str = "cpu",
        threads: int | None = None,
        optimise: bool = True,
        spin: bool = True,
    ) -> None:
        if device not in _PROVIDERS:
            raise UsageError(f"unknown device {device!r}\npossible: {', '.join(_PROVIDERS)}")
        self._model: Path | bytes | None = model
        self._name = model.name if isinstance(model, Path) else "the graph"
        self._device = device
        self._threads = threads
        self._optimise = optimise
        self._spin = spin
        self._session: ort.InferenceSession | None = None
        self._specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` must be fed.

        Raises:
            ModelFileError: onnxruntime cannot load the model.
        """
        self._open()
        return self._specs[0]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns.

        Raises:
            ModelFileError: onnxruntime cannot load the model.
        """
        self._open()
        return self._specs[1]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name.

        Raises:
            ModelFileError: onnxruntime cannot load or execute the model.
            UsageError: names, types or shapes of ``feeds`` are not the model's.
        """
        session = self._open()
        check_feeds(self._name, feeds, self._specs[0])
        try:
            results = session.run(None, dict(feeds))
        except _LOAD_ERRORS as exc:
            raise ModelFileError(f"{self._name} failed to run\n{_reason(exc)}") from exc
        return dict(zip((spec.name for spec in self._specs[1]), results, strict=True))

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``, with its wall time; the CPU has no other steps."""
        start = time.perf_counter()
        outputs = self.run(feeds)
        return outputs, StepTimes(wall_ms=(time.perf_counter() - start) * 1e3)

    def close(self) -> None:
        """Give back the session; a second call does nothing."""
        self._session = None
        self._closed = True

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> ort.InferenceSession:
        if self._closed:
            raise UsageError(f"the runner of {self._name} is closed; open a new one")
        if self._session is None:
            self._session = session = self._new_session()
            self._model = None  # bytes would be held twice, here and by onnxruntime
            self._specs = (
                tuple(_spec(node) for node in session.get_inputs()),
                tuple(_spec(node) for node in session.get_outputs()),
            )
        return self._session

    def _new_session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if not self._optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if not self._spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = _PROVIDERS[self._device]
        if provider not in ort.get_available_providers():
            raise self._no_device("this onnxruntime was built without it")
        model = str(self._model) if isinstance(self._model, Path) else self._model
        try:
            # Without its fallback, which prints to standard output and goes on, on the CPU.
            session = ort.InferenceSession(
                model, options, providers=[provider], enable_fallback=False
            )
        except _LOAD_ERRORS as exc:
            raise ModelFileError(f"onnxruntime cannot load {self._name}\n{_reason(exc)}") from exc
        if provider not in session.get_providers():
            raise self._no_device("onnxruntime could not start it")
        return session

    def _no_device(self, reason: str) -> EngineIncompatibleError:
        return EngineIncompatibleError(
            f"{self._name} cannot run on {self._device}: {reason}\n"
            "deploykit doctor says what works on this machine"
        )


def _spec(node: Any) -> TensorSpec:
    # onnxruntime shows a dimension without a name as None.
    shape = tuple(
        f"{node.name}_{axis}" if dim is None else dim for axis, dim in enumerate(node.shape)
    )
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _reason(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else type(exc).__name__

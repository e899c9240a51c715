"""onnxruntime behind the `Runner` protocol, on the CPU and on the GPU."""

from __future__ import annotations

import os
import threading
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from deploykit.backends._backend import (
    CPU,
    GPU,
    NO_GPU,
    Ability,
    GraphBackend,
    GraphOptions,
    needs,
    not_installed,
)
from deploykit.backends._feeds import check_feeds
from deploykit.core.errors import EngineIncompatibleError, ModelFileError, UsageError, first_line
from deploykit.core.precision import OWN, Precision
from deploykit.core.regular_files import require_utf8
from deploykit.core.specs import Closing, SplitGraph, StepTimes, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnxruntime as ort

    from deploykit.core.environment import Gpu
    from deploykit.core.specs import Array

_MODULE: Final = "onnxruntime"
_DEFAULTS: Final = GraphOptions()
_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_LEFT_OUT: Final = {
    "cpu": ("DivMulFusion", "MatmulTransposeFusion", "Pad_Fusion"),
    "cuda": ("DivMulFusion", "Pad_Fusion"),
}
"""Optimisers that are not used.

The first turns ``1 / x * y`` into ``y / x``, and refuses the file where y comes from an Identity
or a Cast that changes nothing (1.31). Behind the second, FP16 attention (``Transpose -> MatMul``)
makes another read a null pointer, and the process dies: microsoft/onnxruntime#28392, 1.24 to 1.31
on x86-64. Without it a ViT takes 1.5 % longer. The third makes ``Pad -> MaxPool`` one node that
ignores the zeros, and so is wrong where a window is negative: microsoft/onnxruntime#24737, 1.31
too. BiT begins that way.
"""

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


def _load_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a model, a file or a device that it cannot use."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    return (
        errors.EPFail,
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    )


@cache
def _load_cuda_libraries() -> str:
    """Load CUDA's libraries from their pip packages; return what is missing, empty if nothing.

    The CUDA provider does not look there. Where torch was imported before they are loaded already.
    """
    import onnxruntime as ort

    preload = getattr(ort, "preload_dlls", None)
    if preload is None:  # before 1.21
        return ""
    said = StringIO()
    # It prints what it does not find, and standard output is for results.
    with redirect_stdout(said), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            preload()
        except (OSError, RuntimeError) as error:  # whether it matters shows when a session starts
            said.write(f"{error}\n")
    found = [*said.getvalue().splitlines(), *(str(each.message) for each in warned)]
    return "; ".join(line.strip() for line in found if line.strip())


@dataclass(frozen=True, slots=True)
class _Opened:
    """A session with what every call needs of it, looked up once."""

    session: ort.InferenceSession
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    names: tuple[str, ...]
    pid: int


class OrtRunner(Closing):
    """Runs an ONNX file, or its bytes, on onnxruntime.

    The session is made on first use, once; any number of threads may call ``run`` at the same
    time, and ``close`` lets the calls that are under way end well. A session does not survive a
    fork: its threads stay behind. Without ``optimise`` it computes each node as the standard has
    it: the default optimisations compute something else for Q/DQ graphs than TensorRT does.
    ``device="cuda"`` raises where onnxruntime would quietly fall back to the CPU. With
    ``in_order`` nodes run in the order of the file: onnxruntime's own begins with what the first
    output needs, and keeps all that only later outputs read.
    """

    def __init__(
        self,
        model: Path | bytes | SplitGraph,
        options: GraphOptions = _DEFAULTS,
        *,
        device: str = "cpu",
    ) -> None:
        if device not in _PROVIDERS:
            raise UsageError(f"unknown device {device!r}\npossible: {', '.join(_PROVIDERS)}")
        self._model: Path | bytes | SplitGraph | None = model
        self._name = model.name if isinstance(model, Path) else "the graph"
        self._device = device
        self._options = options
        self._opened: _Opened | None = None
        self._opening = threading.Lock()
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` must be fed.

        Raises:
            ModelFileError: onnxruntime cannot load the model.
        """
        return self._open().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns.

        Raises:
            ModelFileError: onnxruntime cannot load the model.
        """
        return self._open().outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name.

        Raises:
            ModelFileError: onnxruntime cannot load or execute the model.
            UsageError: names, types or shapes of ``feeds`` are not the model's; the runner is
                closed, or was opened by another process.
        """
        return self._run(feeds)[0]

    def run_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], StepTimes]:
        """As ``run``; ``compute_ms`` is the time within onnxruntime, ``wall_ms`` of the call."""
        start = time.perf_counter()
        outputs, compute_ms = self._run(feeds)
        wall_ms = (time.perf_counter() - start) * 1e3
        return outputs, StepTimes(wall_ms=wall_ms, compute_ms=compute_ms)

    def close(self) -> None:
        """Give back the session once no call uses it; a second ``close`` does nothing."""
        with self._opening:
            self._closed = True
            # In a fork the session's threads do not exist: taking it down could wait for them.
            if self._opened is None or self._opened.pid == os.getpid():
                self._opened = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def _run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """The outputs, and the milliseconds within onnxruntime."""
        opened = self._open()
        check_feeds(self._name, feeds, opened.inputs)
        given = dict(feeds)
        start = time.perf_counter()
        try:
            results = opened.session.run(opened.names, given)
        except _load_errors() as exc:
            fed = ", ".join(str(tuple(array.shape)) for array in given.values())
            raise ModelFileError(f"{self._name} failed to run on {fed}\n{first_line(exc)}") from exc
        compute_ms = (time.perf_counter() - start) * 1e3
        return dict(zip(opened.names, results, strict=True)), compute_ms

    def _open(self) -> _Opened:
        opened = self._opened or self._open_once()
        if opened.pid != os.getpid():
            raise UsageError(
                f"{self._name} was opened by process {opened.pid}, this is its fork {os.getpid()}\n"
                "a session does not survive a fork: open the model after it, in each process"
            )
        return opened

    def _open_once(self) -> _Opened:
        with self._opening:
            if self._closed:
                raise UsageError(f"the runner of {self._name} is closed; open a new one")
            if self._opened is None:  # or another thread was first
                try:
                    self._opened = _look_up(self._new_session())
                except UnicodeDecodeError as exc:
                    raise ModelFileError(
                        f"{self._name} has names that are no UTF-8\nexport it again"
                    ) from exc
                self._model = None  # it would be held twice, here and by onnxruntime
            return self._opened

    def _new_session(self) -> ort.InferenceSession:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        if self._options.threads is not None:
            options.intra_op_num_threads = self._options.threads
        if not self._options.optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self._options.in_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        if not self._options.spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = _PROVIDERS[self._device]
        if provider not in ort.get_available_providers():
            raise self._no_device("this onnxruntime was built without it")
        missing = _load_cuda_libraries() if self._device == "cuda" else ""
        model = _content(self._model, options)
        try:
            # Without its fallback, which prints to standard output and goes on, on the CPU.
            session = ort.InferenceSession(
                model,
                options,
                providers=[(provider, self._provider_options())],
                enable_fallback=False,
                disabled_optimizers=list(_LEFT_OUT[self._device]),
            )
        except _load_errors() as exc:
            raise ModelFileError(
                f"onnxruntime cannot load {self._name}\n{first_line(exc)}"
            ) from exc
        if provider not in session.get_providers():
            raise self._no_device("onnxruntime could not start it" + (missing and f"; {missing}"))
        return session

    def _provider_options(self) -> dict[str, str]:
        return {"device_id": str(self._options.gpu_index)} if self._device == "cuda" else {}

    def _no_device(self, reason: str) -> EngineIncompatibleError:
        return EngineIncompatibleError(
            f"{self._name} cannot run on {self._device}: {reason}\n"
            "deploykit doctor says what works on this machine"
        )


def _content(model: Path | bytes | SplitGraph | None, options: ort.SessionOptions) -> Any:
    """What a session is made from; ``options`` are given the weights that are apart from it."""
    if isinstance(model, SplitGraph):
        # onnxruntime copies them while it loads: they need not outlive that.
        values = [_value_of(array) for array in model.weights.values()]
        options.add_external_initializers(list(model.weights), values)
        return model.content
    if isinstance(model, Path):
        require_utf8(model)
        return str(model)
    return model


_BITS_OF: Final = {"bfloat16": ("uint16", 16), "float8_e4m3fn": ("uint8", 17)}
"""Types that numpy has not: the one that their bits are handed over in, their number in ONNX."""


def _value_of(array: Array) -> ort.OrtValue:
    import onnxruntime as ort

    if array.dtype.name not in _BITS_OF:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits, number = _BITS_OF[array.dtype.name]
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(bits), number)


def _look_up(session: ort.InferenceSession) -> _Opened:
    inputs = tuple(_spec(node) for node in session.get_inputs())
    outputs = tuple(_spec(node) for node in session.get_outputs())
    return _Opened(
        session=session,
        inputs=inputs,
        outputs=outputs,
        names=tuple(spec.name for spec in outputs),
        pid=os.getpid(),
    )


def _spec(node: Any) -> TensorSpec:
    # onnxruntime shows a dimension without a name as None.
    shape = tuple(
        f"{node.name}_{axis}" if dim is None else dim for axis, dim in enumerate(node.shape)
    )
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _notes_of_cpu(precision: Precision, _streams: int) -> Sequence[str]:
    if precision.facts.is_source:
        return ()
    return (f"{precision} is emulated on the CPU: this says nothing about a GPU",)


def _abilities_of_cpu(_gpus: Sequence[Gpu]) -> Sequence[Ability]:
    task = "validate, evaluate and check on the CPU"
    return (needs(task, _MODULE, "deploykit check"),)


def _product(left: Array, right: Array, threads: int) -> Callable[[], object]:
    """The product by onnxruntime, into memory that is there: new pages would add to its time."""
    import onnxruntime as ort

    from deploykit.graph.matrix_product import matrix_product

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    content, providers = matrix_product(right), [_PROVIDERS["cpu"]]
    session = ort.InferenceSession(content, options, providers=providers)
    binding = session.io_binding()
    binding.bind_cpu_input("left", left)
    result = ort.OrtValue.ortvalue_from_numpy(np.empty((len(left), right.shape[1]), np.float32))
    binding.bind_ortvalue_output("product", result)
    return partial(session.run_with_iobinding, binding)


BACKENDS: Final = (
    GraphBackend(
        name="ort-cuda",
        label="onnxruntime (ort-cuda)",
        rank=30,
        device=GPU,
        precisions=None,
        # A Q/DQ graph is computed node by node.
        usual=tuple(e for e in OWN if not (e.facts.quantized or e.facts.needs_cpu_form)),
        # Whether the CUDA libraries are found shows only when onnxruntime starts.
        problem=lambda gpus: not_installed(_MODULE) if gpus else NO_GPU,
        # None: it would say yes where the CUDA libraries are not found.
        abilities=lambda _gpus: (),
        open=partial(OrtRunner, device="cuda"),
        load_device="ort-cuda",
    ),
    GraphBackend(
        name="ort",
        label="onnxruntime (cpu)",
        rank=40,
        device=CPU,
        precisions=None,
        # The others are made for GPUs, a CPU only emulates them.
        usual=tuple(each for each in OWN if each.facts.is_source),
        problem=lambda _gpus: not_installed(_MODULE),
        notes=_notes_of_cpu,
        abilities=_abilities_of_cpu,
        product=_product,
        open=OrtRunner,
        load_device="cpu",
    ),
)

"""An engine and its execution contexts, computing with onnxruntime on a CUDA driver's streams.

A plan is an ONNX file's bytes. ``execute_async_v3`` queues its work on the stream of a CUDA driver,
so it runs where and when that driver says, in a replayed graph too. It needs a driver whose device
memory the host can read. What the real runtime leaves undefined is an assertion here.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from functools import cache
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.fakes.runtime_fake import RuntimeConfig, Script
    from tests.fakes.tensorrt_fake import ILogger

SCRATCH = 4096
_NUMPY = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
}


_C_FUNCTION: Any = ctypes.CFUNCTYPE(None).__base__
"""Class of all functions of C, which ``ctypes`` does not export."""


class HostWork:
    """Python functions queued on CUDA streams, each kept alive until the driver has called it.

    The driver may call a function long after it was queued, and a captured one any number of times:
    so it gets the address of one callback that is never freed, and a number for the function.
    """

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._numbers = count(1)
        self._waiting: dict[int, Callable[[], None]] = {}
        self._captured: dict[int, Callable[[], None]] = {}
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._run)

    def queue(self, stream: int, function: Callable[[], None]) -> int:
        """Queue ``function``; the number of one that was captured, for `forget`, otherwise 0.

        A function of a C library is queued as it is, with a null pointer: it lives on anyway.
        """
        if isinstance(function, _C_FUNCTION):
            self._launch(stream, function, None)
            return 0
        number = next(self._numbers)
        is_captured = self.is_capturing(stream)
        (self._captured if is_captured else self._waiting)[number] = function
        self._launch(stream, self._callback, number)
        return number if is_captured else 0

    def _launch(self, stream: int, function: Any, data: int | None) -> None:
        status = self._driver.cuLaunchHostFunc(
            ctypes.c_void_p(stream), function, ctypes.c_void_p(data)
        )
        assert status == 0, f"cuLaunchHostFunc answers {status}"

    def is_capturing(self, stream: int) -> bool:
        answer = ctypes.c_int()
        self._driver.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(answer))
        return bool(answer.value)

    def forget(self, numbers: Sequence[int]) -> None:
        """Let captured functions go; a graph that still replays one of them fails."""
        for number in numbers:
            del self._captured[number]

    def _run(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        (waiting or self._captured[number])()


@cache
def host_work() -> HostWork:
    """The one of this process: numbers of two would be mixed up."""
    return HostWork()


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaEngine:
    device_memory_size_v2 = SCRATCH

    def __init__(
        self, script: Script, plan: bytes, logger: ILogger, config: type[RuntimeConfig]
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(plan, options, providers=providers)
        self.script = script
        self.logger = logger
        self._config = config
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.input_names = [str(node.name) for node in inputs]
        self._nodes = {str(node.name): node for node in (*inputs, *outputs)}

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.script.profiles) or 1

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self.script.profiles[profile_index][name])

    @property
    def num_io_tensors(self) -> int:
        return len(self._nodes)

    def get_tensor_name(self, index: int) -> str:
        return list(self._nodes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.script.dtype or DataType[_NUMPY[self._nodes[name].type][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [dim if isinstance(dim, int) else -1 for dim in self._nodes[name].shape]

    def create_runtime_config(self) -> RuntimeConfig | None:
        allowed = self.script.allows("create_runtime_config", self.logger)
        return self._config(self.script) if allowed else None

    def create_execution_context(self, runtime_config: RuntimeConfig) -> ExecutionContext | None:
        assert runtime_config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.script.allows("create_execution_context", self.logger):
            return None
        return self._new_context()

    def _new_context(self) -> ExecutionContext:
        return ExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector | None:
        allowed = self.script.allows("create_engine_inspector", self.logger)
        return EngineInspector(self.script) if allowed else None

    def numpy_type(self, name: str) -> Any:
        return _NUMPY[self._nodes[name].type][1]


class EngineInspector:
    """``EngineInspector``; without a context it does not know the formats of open shapes."""

    execution_context: Any = None

    def __init__(self, script: Script) -> None:
        self._script = script

    def get_engine_information(self, format: Enum) -> str:  # noqa: A002
        assert format.name == "JSON"
        self._script.inspected.append(dict(self.execution_context.shapes))
        return self._script.layers


class ExecutionContext:
    """``IExecutionContext``; used by two threads at once it fails an assertion."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._script = engine.script
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._host_work = host_work()
        self._verbosity: Any = None
        self._captured: list[int] = []  # numbers of work that is done for as long as this lives
        self._in_use = Lock()
        self._script.contexts += 1
        self._profile = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The fake's own."""
        return self._shapes

    @property
    def nvtx_verbosity(self) -> Any:
        return self._verbosity

    @nvtx_verbosity.setter
    def nvtx_verbosity(self, verbosity: Enum) -> None:
        self._verbosity = verbosity

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle > 2, "the default stream"
        assert profile_index in range(self._engine.num_optimization_profiles)
        self._profile = profile_index
        self._shapes.clear()  # those of another profile
        self._script.chosen.append(profile_index)
        return self._script.allows("set_optimization_profile_async", self._engine.logger)

    def __del__(self) -> None:
        self._script.contexts -= 1
        self._host_work.forget(self._captured)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        self._shapes[name] = shape
        if self._script.profiles:
            least, _, most = self._script.profiles[self._profile][name]
            assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), shape
        return self._script.allows("set_input_shape", self._engine.logger)

    def infer_shapes(self) -> list[str]:
        if not self._script.allows("infer_shapes", self._engine.logger):
            raise RuntimeError("shape inference failed")
        if "all shapes" in self._script.refuses:
            return ["x"]
        return [name for name in self._engine.input_names if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._shapes:
            return list(self._shapes[name])
        first, *others = self._engine.get_tensor_shape(name)
        if -1 in others:
            return self._computed_shape(name)
        return [next(iter(self._shapes.values()))[0] if first == -1 else first, *others]

    def _computed_shape(self, name: str) -> list[int]:
        feeds = {
            known: np.zeros(shape, self._engine.numpy_type(known))
            for known, shape in self._shapes.items()
        }
        return list(self._engine.session.run([name], feeds)[0].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0
        self._addresses[name] = memory
        return self._script.allows("set_tensor_address", self._engine.logger)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        assert memory % 256 == 0
        self._scratch = memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._in_use.acquire(blocking=False), "one context in two threads"
        try:
            return self._execute(stream_handle)
        finally:
            self._in_use.release()

    def _execute(self, stream: int) -> bool:
        assert stream > 2, "the default stream"
        assert self._scratch
        assert self._verbosity is not None, "an engine with details marks each launch"
        if self._script.before is not None:
            self._script.before(stream)
        if not self._script.allows("execute_async_v3", self._engine.logger):
            return False
        is_captured = self._is_capturing(stream)
        self._script.captured += is_captured
        self._script.eager += not is_captured
        self._queue(stream)
        return True

    def _is_capturing(self, stream: int) -> bool:
        return self._host_work.is_capturing(stream)

    def _queue(self, stream: int) -> None:
        number = self._host_work.queue(stream, self._script.work or self._computation())
        if number:
            self._captured.append(number)

    def _computation(self) -> Callable[[], None]:
        """The work, with shapes and addresses as they are now."""
        engine, script, scratch = self._engine, self._script, self._scratch
        inputs = {name: self._memory(name) for name in engine.input_names}
        outputs = {n: self._memory(n) for n in self._addresses if n not in inputs}

        def compute() -> None:
            ctypes.memset(scratch, 0xAB, SCRATCH)
            feeds = {name: np.array(memory) for name, memory in inputs.items()}
            results = engine.session.run(list(outputs), feeds)
            for memory, result in zip(outputs.values(), results, strict=True):
                memory[...] = result
            script.computed += 1

        return compute

    def _memory(self, name: str) -> Any:
        shape = tuple(self.get_tensor_shape(name))
        dtype = np.dtype(self._engine.numpy_type(name))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_ubyte * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)

"""The part of the runtime's Python API that the runner calls, as types.

Both modules have it, ``tensorrt`` and ``tensorrt_rtx``. Their classes are compiled code without
types for a checker, so the runner is checked against these protocols, and tests check the
protocols against the real packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Dims(Protocol):
    """A shape; two of them cannot be compared, so that callers make it a tuple at once."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...


class Named(Protocol):
    """A member of one of the vendor's enumerations."""

    @property
    def name(self) -> str: ...  # noqa: D102


class EngineInspector(Protocol):
    """``EngineInspector``."""

    execution_context: Any

    def get_engine_information(self, format: Any, /) -> str: ...  # noqa: A002, D102


class ExecutionContext(Protocol):
    """``IExecutionContext``; for one thread at a time."""

    nvtx_verbosity: Any

    def set_optimization_profile_async(  # noqa: D102
        self, profile_index: int, stream_handle: int, /
    ) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...  # noqa: D102
    def infer_shapes(self) -> list[str]: ...  # noqa: D102
    def get_tensor_shape(self, name: str, /) -> Dims: ...  # noqa: D102
    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...  # noqa: D102
    def set_device_memory(self, memory: int, size: int, /) -> None: ...  # noqa: D102
    def execute_async_v3(self, stream_handle: int, /) -> bool: ...  # noqa: D102


class RuntimeConfig(Protocol):
    """``IRuntimeConfig``: how execution contexts are made."""

    def set_execution_context_allocation_strategy(self, strategy: Any, /) -> None: ...  # noqa: D102


class RuntimeCache(Protocol):
    """``IRuntimeCache``, of TensorRT for RTX only: kernels that it compiled for this GPU."""

    def deserialize(self, blob: bytes, /) -> bool: ...  # noqa: D102
    def serialize(self) -> Any: ...  # noqa: D102


class RtxRuntimeConfig(RuntimeConfig, Protocol):
    """``IRuntimeConfig`` of TensorRT for RTX."""

    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def create_runtime_cache(self) -> RuntimeCache | None: ...  # noqa: D102
    def set_runtime_cache(self, cache: Any, /) -> bool: ...  # noqa: D102


class CudaEngine(Protocol):
    """``ICudaEngine``."""

    @property
    def num_io_tensors(self) -> int: ...  # noqa: D102
    @property
    def num_optimization_profiles(self) -> int: ...  # noqa: D102
    @property
    def device_memory_size_v2(self) -> int: ...  # noqa: D102
    def get_tensor_name(self, index: int, /) -> str: ...  # noqa: D102
    def get_tensor_mode(self, name: str, /) -> Named: ...  # noqa: D102
    def get_tensor_dtype(self, name: str, /) -> Named: ...  # noqa: D102
    def get_tensor_shape(self, name: str, /) -> Dims: ...  # noqa: D102
    def get_tensor_profile_shape(  # noqa: D102
        self, name: str, profile_index: int, /
    ) -> Sequence[Dims]: ...
    def create_runtime_config(self) -> RuntimeConfig | None: ...  # noqa: D102
    def create_engine_inspector(self) -> EngineInspector | None: ...  # noqa: D102
    def create_execution_context(  # noqa: D102
        self, runtime_config: Any, /
    ) -> ExecutionContext | None: ...


class Runtime(Protocol):
    """``Runtime``."""

    def deserialize_cuda_engine(  # noqa: D102
        self, serialized_engine: bytes, /
    ) -> CudaEngine | None: ...


def as_tuple(dims: Dims) -> tuple[int, ...]:
    """The shape as a tuple; -1 is an open dimension."""
    return tuple(int(dims[axis]) for axis in range(len(dims)))

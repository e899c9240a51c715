"""The part of NVIDIA's runtime API that makes engines: the runtime, its settings and its cache.

`FakeRuntime` stands where the module ``tensorrt`` or ``tensorrt_rtx`` would; what it makes of a
plan is `execution_fake.CudaEngine`. A `Script` says what fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from tests.fakes.execution_fake import CudaEngine, ExecutionContextAllocationStrategy
from tests.fakes.tensorrt_fake import ILogger, ProfilingVerbosity, Severity

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.execution_fake import DataType


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class LayerInformationFormat(Enum):
    ONELINE = 0
    JSON = 1


@dataclass
class Script:
    """What the runtime refuses, by method name, and what it saw.

    ``before`` is called with the stream at each ``execute_async_v3``; ``work`` is queued in place
    of the computation; ``dtype`` replaces the tensors' own type. ``profiles`` are the engine's, by
    input (smallest, preferred, largest), if it has several; ``chosen`` are those of its contexts.
    ``layers`` is what an inspector prints, and ``inspected`` are the shapes that it was asked for.
    """

    refuses: set[str] = field(default_factory=set)
    said: str = "the reason"
    before: Callable[[int], None] | None = None
    work: Callable[[], None] | None = None
    dtype: DataType | None = None
    cache: bytes = b"kernels of this GPU"
    eager: int = 0
    captured: int = 0
    computed: int = 0
    contexts: int = 0
    strategies: list[CudaGraphStrategy] = field(default_factory=list)
    profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    layers: str = '{"Layers": []}'
    inspected: list[dict[str, tuple[int, ...]]] = field(default_factory=list)

    def allows(self, method: str, logger: ILogger) -> bool:
        if method in self.refuses:
            logger.log(Severity.ERROR, self.said)
        return method not in self.refuses


class RuntimeCache:
    """``IRuntimeCache``; a blob of another machine begins with other bytes."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.blob: bytes | None = None

    def deserialize(self, blob: bytes) -> bool:
        assert blob
        fits = blob.startswith(self._script.cache)
        if fits:
            self.blob = blob
        return fits

    def serialize(self) -> bytes | None:
        return None if "serialize" in self._script.refuses else self.blob or self._script.cache


class RuntimeConfig:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy


class RtxRuntimeConfig(RuntimeConfig):
    """``IRuntimeConfig`` of TensorRT for RTX."""

    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    @property
    def cuda_graph_strategy(self) -> CudaGraphStrategy:
        return (self._script.strategies or [CudaGraphStrategy.DISABLED])[-1]

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: CudaGraphStrategy) -> None:
        self._script.strategies.append(strategy)

    def create_runtime_cache(self) -> RuntimeCache | None:
        return (
            None if "create_runtime_cache" in self._script.refuses else RuntimeCache(self._script)
        )

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return "set_runtime_cache" not in self._script.refuses


class Runtime:
    def __init__(
        self,
        script: Script,
        config: type[RuntimeConfig],
        engine: type[CudaEngine],
        logger: ILogger,
    ) -> None:
        self._script, self._config, self._logger = script, config, logger
        self._engine = engine
        if not script.allows("Runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        if not self._script.allows("deserialize_cuda_engine", self._logger):
            return None
        return self._engine(self._script, serialized_engine, self._logger, self._config)


class FakeRuntime:
    """Stands for the imported module; ``script`` says what fails and sees what happens.

    ``engine`` is what computes.
    """

    __version__ = "11.4.0.106"

    ILogger = ILogger
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    LayerInformationFormat = LayerInformationFormat
    ProfilingVerbosity = ProfilingVerbosity
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(
        self, script: Script, *, rtx: bool = False, engine: type[CudaEngine] = CudaEngine
    ) -> None:
        config = RtxRuntimeConfig if rtx else RuntimeConfig
        self.Runtime: Callable[..., Runtime] = partial(Runtime, script, config, engine)

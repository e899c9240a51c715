"""The part of NVIDIA's Python API that deploykit calls, failing on demand.

`FakeTensorrt` stands where the module ``tensorrt`` or ``tensorrt_rtx`` would. It returns what its
`Script` says and records what it was told. A test compares every class, method and parameter here
with the real package, so that the fake cannot drift from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.fakes.network_fake import (
    DataType,
    ErrorCode,
    ILayer,
    INetworkDefinition,
    ITensor,
    LayerType,
    ParserError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0


class MemoryPoolType(Enum):
    WORKSPACE = 0


class ComputeCapability(Enum):
    CURRENT = 1
    SM75 = 75
    SM80 = 80
    SM89 = 89
    SM120 = 120


class HardwareCompatibilityLevel(Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class EngineValidity(Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class ILogger:
    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError


@dataclass
class Script:
    """What a fake compiler is given, what it answers, and what it was told.

    ``profile_index`` is the answer to every profile, ``None`` the place of each.
    """

    network: INetworkDefinition | None = field(default_factory=INetworkDefinition)
    parse_errors: Sequence[ParserError] = ()
    starts: bool = True
    plan: bytes | None = b"ftrt plan"
    said: Sequence[tuple[Severity, str]] = ()
    phases: Mapping[str, int] = field(default_factory=dict)
    profile_index: int | None = None
    profile_is_valid: bool = True
    shape_error: str | None = None
    accepts_capability: bool = True
    validity: tuple[EngineValidity, int] = (EngineValidity.VALID, 0)
    flags: int | None = None
    profiles: list[dict[str, tuple[Any, Any, Any]]] = field(default_factory=list)
    capabilities: dict[int, ComputeCapability] = field(default_factory=dict)
    pools: dict[MemoryPoolType, int] = field(default_factory=dict)
    greatest_level: int = 5
    level: int = 3
    compatibility: HardwareCompatibilityLevel = HardwareCompatibilityLevel.NONE
    verbosity: ProfilingVerbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
    device: bytes = b"9.0"
    cache_refusal: str = ""
    timed: list[bytes] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[Any, Any, Any]]:
        """Of the one profile that there is; nothing where there is none."""
        (shapes,) = self.profiles or [{}]
        return shapes


class ITimingCache:
    """Its bytes are the device that it is of and the layers that were timed, a line each."""

    def __init__(self, script: Script, content: bytes) -> None:
        self._script = script
        self.device, *self.layers = content.split(b"\n") if content else [script.device]

    def serialize(self) -> bytes | None:
        if self._script.cache_refusal == "serialize":
            return None
        return b"\n".join([self.device, *sorted(self.layers)])

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if input_cache.device != self.device:
            return False
        self.layers += [layer for layer in input_cache.layers if layer not in self.layers]
        return True


class IOptimizationProfile:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        if self._script.shape_error is not None:
            raise ValueError(self._script.shape_error)
        self.shapes[input] = (min, opt, max)

    def __bool__(self) -> bool:
        return self._script.profile_is_valid


class IBuilderConfig:
    num_compute_capabilities = 0
    progress_monitor: IProgressMonitor | None = None

    def __init__(self, script: Script, logger: ILogger) -> None:
        self._script = script
        self._logger = logger
        self.timings: ITimingCache | None = None

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if self._script.cache_refusal == "create":
            return None
        if self._script.cache_refusal == "raise":
            raise RuntimeError("cannot deserialize")
        return ITimingCache(self._script, serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = cache.device == self._script.device and self._script.cache_refusal != "set"
        if not fits:
            self._logger.log(Severity.ERROR, "the timing cache is of another device")
            return False
        self.timings = cache
        return True

    @property
    def builder_optimization_level(self) -> int:
        return self._script.level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        self._script.level = min(level, self._script.greatest_level)

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        return self._script.compatibility

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: HardwareCompatibilityLevel) -> None:
        self._script.compatibility = level

    @property
    def profiling_verbosity(self) -> ProfilingVerbosity:
        return self._script.verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, verbosity: ProfilingVerbosity) -> None:
        self._script.verbosity = verbosity

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._script.profiles.append(profile.shapes)
        last = len(self._script.profiles) - 1
        return last if self._script.profile_index is None else self._script.profile_index

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._script.pools[pool] = pool_size

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        assert index < self.num_compute_capabilities
        self._script.capabilities[index] = compute_capability
        return self._script.accepts_capability


class Builder:
    def __init__(self, script: Script, logger: ILogger) -> None:
        self._script = script
        self._logger = logger
        if not script.starts:
            self._say()
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        self._script.flags = flags
        return self._script.network

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._script, self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile(self._script)

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        self._say()
        assert config.progress_monitor is not None
        known = [] if config.timings is None else config.timings.layers
        for index in range(network.num_layers):
            name = network.get_layer(index).get_output(0).name.encode()
            if name not in known:
                self._script.timed.append(name)
                known.append(name)
        finished = all(
            self._go_through(config.progress_monitor, name, steps)
            for name, steps in self._script.phases.items()
        )
        return self._script.plan if finished else None

    def _say(self) -> None:
        for severity, text in self._script.said:
            self._logger.log(severity, text)

    def _go_through(self, monitor: IProgressMonitor, name: str, steps: int) -> bool:
        monitor.phase_start(name, None, steps)
        finished = all(monitor.step_complete(name, step) for step in range(steps))
        monitor.phase_finish(name)
        return finished


class OnnxParser:
    def __init__(self, script: Script, network: INetworkDefinition, logger: ILogger) -> None:
        self._script = script

    @property
    def num_errors(self) -> int:
        return len(self._script.parse_errors)

    def parse_from_file(self, model: str) -> bool:
        return not self._script.parse_errors

    def get_error(self, index: int) -> ParserError:
        return self._script.parse_errors[index]


class Runtime:
    def __init__(self, script: Script, logger: ILogger) -> None:
        self._script = script

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        return self._script.validity


class FakeTensorrt:
    """Stands for the imported module; ``script`` decides what its objects do."""

    __version__ = "11.4.0.106"

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    NetworkDefinitionCreationFlag: Any = NetworkDefinitionCreationFlag
    MemoryPoolType = MemoryPoolType
    HardwareCompatibilityLevel: Any = HardwareCompatibilityLevel
    ComputeCapability = ComputeCapability
    ProfilingVerbosity = ProfilingVerbosity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics

    def __init__(self, script: Script) -> None:
        self.Builder: Callable[..., Builder] = partial(Builder, script)
        self.OnnxParser: Callable[..., OnnxParser] = partial(OnnxParser, script)
        self.Runtime: Callable[..., Runtime] = partial(Runtime, script)


CLASSES = (
    Builder,
    IBuilderConfig,
    ILayer,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
    Runtime,
)
ENUMS = (
    ComputeCapability,
    DataType,
    EngineInvalidityDiagnostics,
    EngineValidity,
    ErrorCode,
    HardwareCompatibilityLevel,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
)
USED_ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "IBuilderConfig": (
        "builder_optimization_level",
        "hardware_compatibility_level",
        "num_compute_capabilities",
        "profiling_verbosity",
        "progress_monitor",
    ),
    "ILayer": ("type", "num_inputs", "num_outputs"),
    "INetworkDefinition": ("num_inputs", "num_layers", "num_outputs"),
    "ITensor": ("name", "dtype", "shape"),
    "OnnxParser": ("num_errors",),
}

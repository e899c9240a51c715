"""Checked by mypy with the stubs of ``tensorrt``, never run: its classes are what the runner
takes them for. Each function is an assignment, which mypy refuses where one is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorrt as trt

if TYPE_CHECKING:
    from deploykit.backends.trt import api


def logger(severity: trt.ILogger.Severity) -> trt.ILogger:
    assert severity.name  # what `logger_into` reads
    return trt.ILogger()


def runtime(made: trt.Runtime) -> None:
    _: api.Runtime = made


def engine(made: trt.ICudaEngine) -> None:
    _: api.CudaEngine = made


def context(made: trt.IExecutionContext) -> None:
    _: api.ExecutionContext = made


def inspector(made: trt.EngineInspector) -> None:
    _: api.EngineInspector = made


def config(made: trt.IRuntimeConfig) -> None:
    _: api.RuntimeConfig = made


def builder_config(config: trt.IBuilderConfig, profile: trt.IOptimizationProfile) -> None:
    """What the builder sets, which it knows as `Any`."""
    config.builder_optimization_level = 3
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    cache: trt.ITimingCache = config.create_timing_cache(b"")
    attached: bool = config.set_timing_cache(cache, ignore_mismatch=False)
    combined: bool = cache.combine(cache, ignore_mismatch=False)
    index: int = config.add_optimization_profile(profile)
    assert attached
    assert combined
    assert index == 0
    assert bytes(cache.serialize())


def names() -> tuple[object, ...]:
    """What is read from the module itself."""
    return (
        trt.Runtime(logger(trt.ILogger.Severity.ERROR)),
        trt.ExecutionContextAllocationStrategy.USER_MANAGED,
        trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
        trt.LayerInformationFormat.JSON,
        trt.TensorIOMode.INPUT.name == "INPUT",
        trt.DataType.FLOAT.name,
    )

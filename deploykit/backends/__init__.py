"""Backends run or compile a graph; none imports another.

A backend is one file of this folder, or of an installed package, that defines ``BACKEND`` of one
of the three classes here; `_registry` finds it.
"""

from deploykit.backends._backend import (
    CPU,
    GPU,
    Ability,
    AnyBackend,
    Backend,
    EngineBackend,
    GraphBackend,
    GraphOptions,
    ModuleBackend,
    ModuleOptions,
    needs,
    not_installed,
)
from deploykit.backends._engines import (
    HEADER_BYTES,
    CompiledEngine,
    CompileOptions,
    Compiler,
    EngineHeader,
    EngineOptions,
    EngineRunner,
    InspectedRunner,
    LayerConversion,
    engine_fits,
)

__all__ = [
    "CPU",
    "GPU",
    "HEADER_BYTES",
    "Ability",
    "AnyBackend",
    "Backend",
    "CompileOptions",
    "CompiledEngine",
    "Compiler",
    "EngineBackend",
    "EngineHeader",
    "EngineOptions",
    "EngineRunner",
    "GraphBackend",
    "GraphOptions",
    "InspectedRunner",
    "LayerConversion",
    "ModuleBackend",
    "ModuleOptions",
    "engine_fits",
    "needs",
    "not_installed",
]

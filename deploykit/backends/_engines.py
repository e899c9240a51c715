"""Nouns of backends that compile: compiler, build options, engine, header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from deploykit.core.artifacts import HARDWARE_COMPATIBILITY, THIS_GPU
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.environment import Gpu


@dataclass(frozen=True)
class Compiler:
    """A compiler that imports on this machine; ``version`` has all its parts: "1.7.1.116".

    ``is_portable``: it builds for a list of architectures without having a GPU.
    """

    name: str
    version: str
    module: Any = field(repr=False, compare=False)
    is_portable: bool = False

    @property
    def label(self) -> str:
        """Name and version, as messages show them."""
        return f"{self.name} {self.version}"


OPTIMIZATION_LEVELS: Final = range(6)
"""``IBuilderConfig.builder_optimization_level``; both compilers take 3 where nothing is said."""


@dataclass(frozen=True)
class CompileOptions:
    """Choices of one build.

    ``workspace_bytes`` limits the scratch memory of a layer, ``None`` leaves the compiler's own
    limit. ``compute_capabilities``, as ("8.6", "8.9"), is for portable compilers only; empty means
    every one that the compiler knows from 8.0 up. Another builds for the GPU that it runs on, which
    is the driver's ``gpu_index``, and with ``hardware_compatibility``, one of
    `HARDWARE_COMPATIBILITY`, for others too. ``optimization_level`` is from 0, the fastest build,
    to 5; ``None`` is the compiler's own. ``timing_folder`` is where a compiler that times kernels
    keeps what it measured, for the next build; ``None``: nowhere.
    """

    profile: ShapeProfile = field(default_factory=ShapeProfile)
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    hardware_compatibility: str = THIS_GPU
    timing_folder: Path | None = None
    gpu_index: int = 0

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"a workspace of {self.workspace_bytes} bytes: expected 1 or more")
        if self.optimization_level not in (None, *OPTIMIZATION_LEVELS):
            raise UsageError(
                f"an optimization level of {self.optimization_level}: expected "
                f"{OPTIMIZATION_LEVELS[0]} (the fastest build) to {OPTIMIZATION_LEVELS[-1]}"
            )
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise UsageError(
                f"a hardware compatibility of {self.hardware_compatibility!r}: expected one of "
                f"{', '.join(HARDWARE_COMPATIBILITY)}"
            )


@dataclass(frozen=True)
class CompiledEngine:
    """A serialized engine and what is known of it.

    ``profile`` has the accepted shapes, one batch where the model fixes it. ``census`` counts the
    layers by kind and precision. ``build_s`` is the time of parsing and compiling. ``warnings``
    are the compiler's own, each once.
    """

    plan: bytes = field(repr=False)
    profile: ShapeProfile
    compute_capabilities: tuple[str, ...]
    census: Mapping[str, int]
    build_s: float
    warnings: tuple[str, ...]


HEADER_BYTES: Final = 64
"""As many of an engine's first bytes as a header is judged by: ``Runtime.engine_header_size`` of
TensorRT for RTX 1.7."""


@dataclass(frozen=True, slots=True)
class EngineHeader:
    """Judgement over an engine's first bytes; "unknown" is no fault of the engine."""

    state: Literal["valid", "invalid", "unknown"]
    reason: str


@dataclass(frozen=True, slots=True)
class LayerConversion:
    """A layer of an engine that computes nothing: it changes the type of a value, or its layout.

    ``kind`` is one of `CONVERSIONS`, ``layer`` its name in the engine, ``neighbour`` the layer that
    it was put in front of or behind. ``before`` and ``after`` are the types, or the layouts where
    the type stays; empty where the engine was built without them. ``at_border``: the value is an
    input or an output of the network.
    """

    kind: str
    layer: str
    neighbour: str
    before: str
    after: str
    at_border: bool

    @property
    def sentence(self) -> str:
        """As messages show it.

        >>> LayerConversion("reformat", "copy 1", "conv1 + relu1", "FP16", "INT8", False).sentence
        'reformat FP16 to INT8 at conv1 + relu1'
        """
        types = f" {self.before} to {self.after}" if self.before and self.after else ""
        return f"{self.kind}{types} at {self.neighbour}"


CONVERSIONS: Final = ("reformat", "quantize", "dequantize", "cast")
"""A Q/DQ layer that stands alone was not fused into what it is for."""


@runtime_checkable
class InspectedRunner(Runner, Protocol):
    """A runner that can say which layers of its engine only convert."""

    def conversions(self, feeds: Mapping[str, Any]) -> tuple[LayerConversion, ...]:
        """The `LayerConversion` layers that a call with these feeds runs, in their order."""


@runtime_checkable
class EngineRunner(Runner, Protocol):
    """A runner whose outputs may stay on the GPU."""

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """As ``run``; the outputs are arrays on the GPU."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options with which an engine is run.

    ``cuda_graphs`` replays launches. ``cache`` is a file for what a portable engine compiles on
    its machine. ``spin`` waits for the GPU by asking, not asleep; ``None`` is the driver's own.
    ``gpu_index`` is the driver's number of the GPU.
    """

    cuda_graphs: bool = True
    cache: Path | None = None
    spin: bool | None = None
    gpu_index: int = 0


def engine_fits(
    record: EngineRecord, gpus: Sequence[Gpu], compilers: Mapping[str, str]
) -> tuple[bool, str]:
    """True if the engine runs on the first of ``gpus``, and the reason if not (otherwise empty).

    ``compilers`` gives the version of each compiler whose runtime is installed, by name. An engine
    loads only with the exact version that made it, and only on the compute capabilities that it
    was made for, see `EngineRecord.runs_on`.
    """
    reason = _misfit_of_version(record, compilers) or _misfit_of_gpu(record, gpus)
    return not reason, reason


def _misfit_of_version(record: EngineRecord, compilers: Mapping[str, str]) -> str:
    installed = compilers.get(record.compiler)
    if installed is None:
        return f"{record.compiler} is not installed"
    if installed != record.compiler_version:
        return f"compiled by {record.compiler} {record.compiler_version}, installed is {installed}"
    return ""


def _misfit_of_gpu(record: EngineRecord, gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return "no GPU on this machine"
    own = gpus[0].compute_capability
    if record.hardware_compatibility not in HARDWARE_COMPATIBILITY:
        return f"compiled for GPUs that are unknown here: {record.hardware_compatibility!r}"
    if not record.runs_on(own):
        return f"compiled for compute capability {record.targets}, this GPU has {own}"
    return ""


def old_driver(label: str, needed_cuda: int | None, driver: str | None) -> str:
    """Why a driver is too old for a compiler's libraries; empty where it is not, or not known.

    ``driver`` is the newest CUDA that it supports, ``needed_cuda`` the major version that they are
    made for.

    >>> old_driver("TensorRT", 13, "12.8"), old_driver("TensorRT", 12, "13.0")
    ('TensorRT needs a driver for CUDA 13, this one ends at 12.8', '')
    """
    if driver is None or needed_cuda is None or int(driver.partition(".")[0]) >= needed_cuda:
        return ""
    return f"{label} needs a driver for CUDA {needed_cuda}, this one ends at {driver}"

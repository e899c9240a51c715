"""Nouns of backends that compile: compiler, build options, engine, header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class CompileOptions:
    """Choices of one build.

    ``workspace_bytes`` limits the scratch memory of a layer, ``None`` leaves the compiler's own
    limit. ``compute_capabilities``, as ("8.6", "8.9"), is for portable compilers only; empty means
    every one that the compiler knows from 8.0 up and that has ``least_compute_capability``.
    Another builds for the GPU that it runs on, which is the driver's ``gpu_index``.
    """

    profile: ShapeProfile = field(default_factory=ShapeProfile)
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    gpu_index: int = 0
    least_compute_capability: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"a workspace of {self.workspace_bytes} bytes: expected 1 or more")


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
    was made for.
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
    if own not in record.compute_capabilities:
        built_for = ", ".join(record.compute_capabilities)
        return f"compiled for compute capability {built_for}, this GPU has {own}"
    return ""

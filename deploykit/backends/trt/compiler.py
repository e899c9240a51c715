"""Engine compilers of this machine, and the one that a build uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.environment import install_line, require
from deploykit.core.errors import BuildError, MissingDependencyError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.environment import Gpu


TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"

MODULES: Final[Mapping[str, str]] = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
"""Python module of each compiler, by the compiler's name on the command line."""

BACKENDS: Final = ("auto", *MODULES, "none")
"""Values of ``--backend`` of a build."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that imports on this machine; ``version`` has all its parts: "1.7.1.116"."""

    name: str
    version: str
    module: Any = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        """Name and version, as messages show them."""
        return f"{self.name} {self.version}"

    @property
    def is_portable(self) -> bool:
        """True if it builds for a list of compute capabilities, without a GPU."""
        return self.name == TENSORRT_RTX


def load_compiler(name: str) -> Compiler:
    """Import the module of one compiler.

    Raises:
        UnknownNameError: ``name`` is not one of `MODULES`.
        MissingDependencyError: its package is not installed or does not load.
    """
    if name not in MODULES:
        raise UnknownNameError("compiler", name, MODULES, ", ".join(MODULES))
    module = require(MODULES[name])
    return Compiler(name, str(module.__version__), module)


def loadable_compilers() -> dict[str, Compiler]:
    """Every compiler whose module imports, by name."""
    found = (_load_or_none(name) for name in MODULES)
    return {compiler.name: compiler for compiler in found if compiler is not None}


def choose_compiler(backend: str, gpus: Sequence[Gpu]) -> Compiler | None:
    """The compiler that ``--backend`` stands for on a machine with these GPUs.

    "auto" is TensorRT where there is a GPU and ``tensorrt`` loads, otherwise TensorRT for RTX,
    which needs no GPU. "none" is ``None``: stop after the ONNX file.

    Raises:
        UnknownNameError: ``backend`` is not one of `BACKENDS`.
        MissingDependencyError: no compiler, or not the one asked for, can be imported.
        BuildError: TensorRT is asked for on a machine without a GPU.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("compiler", backend, BACKENDS, ", ".join(BACKENDS))
    if backend == "none":
        return None
    if backend == "auto":
        return _choose_automatically(gpus)
    if backend == TENSORRT:
        require_gpu(gpus)
    return load_compiler(backend)


def require_gpu(gpus: Sequence[Gpu]) -> Gpu:
    """The GPU that TensorRT builds on.

    Raises:
        BuildError: there is none.
    """
    if not gpus:
        raise BuildError(
            "tensorrt times its kernels on the GPU that the engine is for, and there is none here\n"
            f"build on the target, or for RTX-class GPUs with --backend {TENSORRT_RTX}"
        )
    return gpus[0]


def _choose_automatically(gpus: Sequence[Gpu]) -> Compiler:
    compiler = (_load_or_none(TENSORRT) if gpus else None) or _load_or_none(TENSORRT_RTX)
    if compiler is None:
        raise MissingDependencyError(
            "no engine compiler can be imported on this machine\n"
            f"install one: {install_line(MODULES[TENSORRT_RTX])} (needs no GPU), "
            f"or on the target: {install_line(MODULES[TENSORRT])}\n"
            "or stop after the ONNX file with --backend none"
        )
    return compiler


def _load_or_none(name: str) -> Compiler | None:
    try:
        return load_compiler(name)
    except MissingDependencyError:
        return None


RTX_CAPABILITIES: Final = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX 1.7 executes on, its own list from Ampere on."""

"""NVIDIA's two compilers on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.backends._engines import Compiler
from deploykit.core.environment import require
from deploykit.core.errors import BuildError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.environment import Gpu


TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"

MODULES: Final[Mapping[str, str]] = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
"""Python module of each compiler, by the compiler's name on the command line."""


def load_compiler(name: str) -> Compiler:
    """Import the module of one compiler.

    Raises:
        UnknownNameError: ``name`` is not one of `MODULES`.
        MissingDependencyError: its package is not installed or does not load.
    """
    if name not in MODULES:
        raise UnknownNameError("compiler", name, MODULES, ", ".join(MODULES))
    module = require(MODULES[name])
    return Compiler(name, str(module.__version__), module, is_portable=name == TENSORRT_RTX)


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


RTX_CAPABILITIES: Final = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX 1.7 executes on, its own list from Ampere on."""

"""NVIDIA's two compilers on this machine, and the messages that they print."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._engines import Compiler
from deploykit.core.environment import install_line, require
from deploykit.core.errors import BuildError, MissingDependencyError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.core.environment import Gpu


_ERRORS: Final = ("INTERNAL_ERROR", "ERROR")
_WARNING: Final = "WARNING"
# Follows nearly every error on a machine without a driver, whatever the error was.
_ECHO: Final = "catchCudaError"
# "In validate at /_src/optimizer/api/network.cpp:4023": a place in the vendor's own source.
_SOURCE_PLACE: Final = re.compile(r"\s*\(?In \w+ at \S+:\d+(?=\s|\)|$)")


@dataclass
class Messages:
    """Errors and warnings of one compilation in the order in which they came."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        """Keep errors and each different warning; information and debug lines are dropped."""
        line = clean(text)
        if severity in _ERRORS:
            self.errors.append(line)
        elif severity == _WARNING and line not in self.warnings:
            self.warnings.append(line)

    def reason(self) -> str:
        """The most telling line about a failure: the first error that is not an echo of another."""
        telling = [line for line in self.errors if _ECHO not in line]
        candidates = [*telling, *self.errors, *reversed(self.warnings)]
        return candidates[0] if candidates else "it gave no reason"


def clean(text: str) -> str:
    """One line without the places in the vendor's source code.

    >>> clean(" Error Code 4: no profile. In validate at /_src/api/network.cpp:4023)")
    'Error Code 4: no profile.)'
    """
    return " ".join(_SOURCE_PLACE.sub("", text).split())


def logger_into(messages: Messages, module: Any) -> Any:
    """An ``ILogger`` of ``module`` that writes to ``messages``.

    The base class comes with the module, so the class is made here. It has no constructor of its
    own: the binding requires that the inherited one runs.
    """

    def log(_self: Any, severity: Any, msg: str) -> None:
        messages.add(severity.name, msg)

    return type("MessageLogger", (module.ILogger,), {"log": log})()


TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"

MODULES: Final[Mapping[str, str]] = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
"""Python module of each compiler, by the compiler's name on the command line."""


def load_compiler(name: str) -> Compiler:
    """Import the module of one compiler.

    Raises:
        UnknownNameError: ``name`` is not one of `MODULES`.
        MissingDependencyError: its package is not installed, does not load, or is too old.
    """
    if name not in MODULES:
        raise UnknownNameError("compiler", name, MODULES, ", ".join(MODULES))
    module = require(MODULES[name])
    version = str(module.__version__)
    if name == TENSORRT and _numbers(version) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise MissingDependencyError(
            f"TensorRT {version} is too old: deploykit needs {least} or later\n"
            f"install it: {install_line(MODULES[TENSORRT])}"
        )
    return Compiler(name, version, module, is_portable=name == TENSORRT_RTX)


LEAST_VERSION: Final = (10, 12)
"""Oldest TensorRT whose strongly typed networks, and contexts by configuration, are as in 11."""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


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

RTX_GPUS: Final = "A100, RTX 30, L4 and RTX 40, RTX 50"
"""GPUs of `RTX_CAPABILITIES` as people call them."""

LEAST_CAPABILITY: Final = "7.5"
"""Oldest compute capability of TensorRT 10 and 11 (its support matrix): T4 and RTX 20."""

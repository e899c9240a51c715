"""Artifacts on disk: ONNX graphs, engine records and their hashes.

The records here are plain data; a folder that holds them together is a `deploykit.bundle.manifest`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003
from typing import TYPE_CHECKING, Final

from deploykit.core.precision import Precision  # noqa: TC001
from deploykit.core.sizes import ShapeProfile  # noqa: TC001
from deploykit.core.specs import TensorSpec  # noqa: TC001

if TYPE_CHECKING:
    from io import BufferedReader

UNPROVEN: Final = "compiled, execution not proven"
"""How the warning of an engine begins that its vendor does not vouch for."""

WEIGHTS_SUFFIX: Final = ".data"
"""After the name of an ONNX file: the file beside it with the weights of a large model."""


ENGINE_SUFFIX: Final = ".engine"

DIGITS: Final = 8
"""Of the sha256 of its content, at the end of an engine's name: no two engines share a name."""

_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, only if it is a regular one or a link to one.

    A named pipe would make the reader wait for somebody who writes, a device may never end.

    Raises:
        OSError: it cannot be opened, or is something else; ``strerror`` says what.
    """
    # A pipe without a writer is not waited for. Windows has neither the flag nor the pipe there.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as exc:
        kind = _kind_of(path)
        if kind is None:
            raise
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path)) from exc
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_kind_of(path)}, not a file", str(path))
    return file


def _kind_of(path: Path) -> str | None:
    """What ``path`` is where it is no regular file, and is there."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return None


def sha256_of(path: Path) -> str:
    """Hex digest of a regular file's content, read in blocks."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_of(source_sha256: str, weights_sha256: str | None) -> str:
    """One hex digest for a definition and its weights, both by their own."""
    return sha256_of_bytes(f"{source_sha256}\n{weights_sha256}".encode())


def sha256_of_bytes(data: bytes) -> str:
    """Hex digest of ``data``."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX file and where it came from; ``parents`` are hashes, the nearest first.

    ``sha256`` covers the weights of a large model too, which lie in a file beside: the ONNX file
    has that file's hash within.
    """

    path: Path
    sha256: str
    precision: Precision
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineRecord:
    """One compiled ``.engine`` file of a bundle.

    ``precision_census`` counts the layers of the parsed network that do arithmetic, by kind and
    precision: ``{"CONVOLUTION HALF": 53, "MATRIX_MULTIPLY HALF": 1}``. ``compute_capabilities``
    are as ``("8.6", "8.9")``; an engine of TensorRT has one, its own GPU's.
    """

    file: str
    sha256: str
    bytes: int
    compiler: str
    compiler_version: str
    compute_capabilities: tuple[str, ...]
    profile: ShapeProfile
    precision: Precision
    precision_census: Mapping[str, int]
    build_s: float
    warnings: tuple[str, ...] = field(default=())

    @property
    def label(self) -> str:
        """Compiler, version and where it is bound to one the GPU: ``tensorrt-11.4.0.106-sm90``.

        The file's name without the digits of its content, which engines of before do not have.
        """
        stem = self.file.removesuffix(ENGINE_SUFFIX)
        return stem.removesuffix(f"-{self.sha256[:DIGITS]}")

    @property
    def is_unproven(self) -> bool:
        """Whether it compiled, but nobody vouches for what it computes."""
        return any(warning.startswith(UNPROVEN) for warning in self.warnings)

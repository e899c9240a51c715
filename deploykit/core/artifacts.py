"""Artifacts on disk: ONNX graphs, engine records and their hashes.

The records here are plain data; a folder that holds them together is a `deploykit.bundle.manifest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003
from typing import Final

from deploykit.core.precision import Precision
from deploykit.core.regular_files import open_regular
from deploykit.core.sizes import ShapeProfile  # noqa: TC001
from deploykit.core.specs import TensorSpec  # noqa: TC001

UNPROVEN: Final = "compiled, execution not proven"
"""How the warning of an engine begins that its vendor does not vouch for."""

WEIGHTS_SUFFIX: Final = ".data"
"""After the name of an ONNX file: the file beside it with the weights of a large model."""

ENGINE_SUFFIX: Final = ".engine"

THIS_GPU: Final = "none"
SAME_CC: Final = "same-cc"
AMPERE_PLUS: Final = "ampere+"

HARDWARE_COMPATIBILITY: Final = (THIS_GPU, SAME_CC, AMPERE_PLUS)
"""Which GPUs an engine of TensorRT is compiled for: the kind that it was built on, all of its
compute capability, or all from `AMPERE` on."""

AMPERE: Final = (8, 0)
"""The compute capability that engines of `AMPERE_PLUS` begin at."""

DIGITS: Final = 8
"""Of the sha256 of its content, at the end of an engine's name: no two engines share a name."""


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
    has that file's hash within. ``has_bf16`` says of a graph of another precision that it has
    values of BF16 too.
    """

    path: Path
    sha256: str
    precision: Precision
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parents: tuple[str, ...] = ()
    has_bf16: bool = False

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Its own, and BF16 where it has that too."""
        return (self.precision, Precision.BF16) if self.has_bf16 else (self.precision,)

    @property
    def needs_cpu_form(self) -> bool:
        """Whether no program but a compiler of engines has kernels for it."""
        return any(each.facts.needs_cpu_form for each in self.precisions)


@dataclass(frozen=True)
class EngineRecord:
    """One compiled ``.engine`` file of a bundle.

    ``precision_census`` counts the layers of the parsed network that do arithmetic, by kind and
    precision: ``{"CONVOLUTION HALF": 53, "MATRIX_MULTIPLY HALF": 1}``. ``compute_capabilities``
    are as ``("8.6", "8.9")``; an engine of TensorRT has one, that of the GPU that it was built on.
    ``ran_on`` is the GPU on which its outputs were compared before a manifest named it; ``None``
    where it did not run. ``optimization_level`` is ``None`` where it was left to the compiler.
    ``hardware_compatibility`` is one of `HARDWARE_COMPATIBILITY`, and may let it run on others.
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
    ran_on: str | None = None
    optimization_level: int | None = None
    hardware_compatibility: str = THIS_GPU

    @property
    def label(self) -> str:
        """Compiler, version and where it is bound to one the GPU: ``tensorrt-11.4.0.106-sm90``.

        The file's name without the digits of its content, which engines of before do not have.
        """
        stem = self.file.removesuffix(ENGINE_SUFFIX)
        return stem.removesuffix(f"-{self.sha256[:DIGITS]}")

    @property
    def targets(self) -> str:
        """The compute capabilities that it runs on, in words: "8.6, 8.9", "8.0 and later"."""
        if self.hardware_compatibility == AMPERE_PLUS:
            return f"{AMPERE[0]}.{AMPERE[1]} and later"
        return ", ".join(self.compute_capabilities)

    def runs_on(self, compute_capability: str) -> bool:
        """Whether it was compiled for GPUs of this compute capability, as "8.9"."""
        if self.hardware_compatibility == AMPERE_PLUS:
            major, minor = compute_capability.split(".")
            return (int(major), int(minor)) >= AMPERE
        return compute_capability in self.compute_capabilities

    @property
    def is_unproven(self) -> bool:
        """Whether it compiled, but nobody vouches for what it computes."""
        return any(warning.startswith(UNPROVEN) for warning in self.warnings)

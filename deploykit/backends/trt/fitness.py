"""Check of an engine by the first bytes of its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._engines import HEADER_BYTES, EngineHeader
from deploykit.backends.trt.compiler import TENSORRT, TENSORRT_RTX, load_compiler
from deploykit.backends.trt.messages import Messages, logger_into
from deploykit.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping


# The tag of the general TensorRT and the place of the version are read so by NVIDIA's trtexec
# (samples/common/sampleEngines.cpp, printPlanVersion); the tag of RTX was read from its engines,
# which hold their version in the same place.
_TAGS: Final[Mapping[str, bytes]] = {TENSORRT: b"ftrt", TENSORRT_RTX: b"vtrt"}
_VERSION_PLACE: Final = slice(24, 28)

_CAUSES: Final[Mapping[str, str]] = {
    "VERSION_MISMATCH": "it was compiled by another version",
    "UNSUPPORTED_CC": "it was not compiled for this GPU's compute capability",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged or not an engine of this compiler",
}


def read_header(plan: bytes, compiler_name: str) -> EngineHeader:
    """Judge an engine by its first bytes, `HEADER_BYTES` of them or more.

    A valid header says nothing about the rest of the file; that is what its hash is for.
    """
    if compiler_name == TENSORRT_RTX:
        try:
            module = load_compiler(TENSORRT_RTX).module
        except MissingDependencyError:
            return _judge_by_tag(plan, compiler_name)
        return _judge_by_runtime(plan, module)
    return _judge_by_tag(plan, compiler_name)


def _judge_by_tag(plan: bytes, compiler_name: str) -> EngineHeader:
    owner = next((name for name, tag in _TAGS.items() if plan.startswith(tag)), None)
    if len(plan) < HEADER_BYTES:
        return EngineHeader("invalid", f"{len(plan)} bytes are too few for an engine")
    if owner is None:
        return _unrecognised(compiler_name)
    version = ".".join(str(byte) for byte in plan[_VERSION_PLACE])
    if owner != compiler_name:
        return EngineHeader("invalid", f"it is an engine of {owner} {version}")
    return EngineHeader("unknown", f"it is an engine of {owner} {version}; only its tag was read")


def _unrecognised(compiler_name: str) -> EngineHeader:
    """A header with an unknown tag: newer versions of TensorRT may have changed theirs."""
    reason = f"it does not begin like an engine of {compiler_name}"
    return EngineHeader("unknown" if compiler_name == TENSORRT else "invalid", reason)


def _judge_by_runtime(plan: bytes, module: Any) -> EngineHeader:
    # The logger must outlive the runtime, which keeps only its address.
    logger = logger_into(Messages(), module)
    validity, diagnostics = module.Runtime(logger).get_engine_validity(plan)
    if validity.name == "VALID":
        return EngineHeader("valid", "")
    if validity.name == "SUBOPTIMAL":
        return EngineHeader(
            "valid", "it runs here, perhaps slower than an engine compiled for this GPU"
        )
    return _judge_diagnostics(int(diagnostics), module)


def _judge_diagnostics(diagnostics: int, module: Any) -> EngineHeader:
    """Explain the validity INVALID; without a cause the runtime only lacks a driver to ask."""
    flags = module.EngineInvalidityDiagnostics.__members__
    raised = [name for name, flag in flags.items() if int(flag) & diagnostics]
    causes = [_CAUSES[name] for name in raised if name in _CAUSES]
    if causes:
        return EngineHeader("invalid", "; ".join(causes))
    return EngineHeader("unknown", "the CUDA driver is needed to judge it")

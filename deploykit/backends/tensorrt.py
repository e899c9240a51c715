"""TensorRT and TensorRT for RTX: two compilers of one kind; headers and the runner of engines."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._backend import GPU, NO_GPU, Ability, EngineBackend, needs
from deploykit.backends._engines import HEADER_BYTES, EngineHeader, old_driver
from deploykit.backends.trt.compiler import (
    LEAST_CAPABILITY,
    MODULES,
    RTX_CAPABILITIES,
    RTX_GPUS,
    TENSORRT,
    TENSORRT_RTX,
    Messages,
    load_compiler,
    logger_into,
    require_gpu,
)
from deploykit.core import environment
from deploykit.core.artifacts import UNPROVEN
from deploykit.core.errors import MissingDependencyError
from deploykit.core.precision import OWN, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.backends._engines import (
        CompiledEngine,
        CompileOptions,
        Compiler,
        EngineOptions,
        EngineRunner,
    )
    from deploykit.core.environment import Gpu
    from deploykit.core.progress import ProgressTask
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import QueryQueue, Runner


# The tag of the general TensorRT and the place of the version are read so by NVIDIA's trtexec
# (samples/common/sampleEngines.cpp, printPlanVersion); the tag of RTX was read from its engines,
# which hold their version in the same place.
_TAGS: Final[Mapping[str, bytes]] = {TENSORRT: b"ftrt", TENSORRT_RTX: b"vtrt"}
_VERSION_PLACE: Final = slice(24, 28)

_LABELS: Final[Mapping[str, str]] = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}

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
        with suppress(MissingDependencyError):
            return _judge_by_runtime(plan, load_compiler(TENSORRT_RTX).module)
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


_CUDA_MAJOR: Final[Mapping[str, Mapping[str, int]]] = {
    TENSORRT: {"tensorrt-cu13": 13, "tensorrt-cu12": 12},
    TENSORRT_RTX: {"tensorrt-rtx-cu13": 13, "tensorrt-rtx-cu12": 12},
}
"""Distributions of each compiler's libraries, and the CUDA that they are made for: a driver of
that major version or a newer one runs them (NVIDIA's minor version compatibility)."""


def _compile(
    compiler: Compiler, onnx: Path, options: CompileOptions, task: ProgressTask, /
) -> CompiledEngine:
    from deploykit.backends.trt.builder import compile_onnx

    return compile_onnx(compiler, onnx, options, task)


def _check_options(compiler: Compiler, options: CompileOptions, gpus: Sequence[Gpu], /) -> None:
    from deploykit.backends.trt.targets import require_known

    require_known(compiler, options, gpus)


def _open(
    plan: Path, compiler: Compiler, profile: ShapeProfile, options: EngineOptions, /
) -> EngineRunner:
    from deploykit.backends.trt.runner import TrtRunner

    return TrtRunner(plan, compiler, profile, options)


def _resident(runner: Any, feeds: Mapping[str, Any]) -> tuple[Runner, Mapping[str, Any]]:
    """``runner`` is what `_open` made; it stays the caller's."""
    from deploykit.backends.trt.runner import ResidentRunner

    resident = ResidentRunner(runner)
    return resident, resident.upload(feeds)


def _queue(runner: Any, feeds: Mapping[str, Any], transfers: bool) -> QueryQueue:  # noqa: FBT001
    """``runner`` is what `_open` made; it stays the caller's."""
    queue: QueryQueue = runner.overlapped(feeds, transfers=transfers)
    return queue


def _notes(_precision: Precision, streams: int) -> Sequence[str]:
    from deploykit.backends.trt.runner import LANES

    if streams <= LANES:
        return ()
    return (f"{streams} streams share {LANES} execution contexts: the wall time has waiting in it",)


def _cuda_major(compiler: str) -> int | None:
    known = _CUDA_MAJOR[compiler].items()
    return next((cuda for name, cuda in known if environment.package_version(name)), None)


def _problem(compiler: str, gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return NO_GPU
    try:
        load_compiler(compiler)
    except MissingDependencyError as error:
        return "; ".join(str(error).splitlines())
    return _foreign_gpu(gpus[0]) if compiler == TENSORRT_RTX else _old_gpu(gpus[0])


def _foreign_gpu(gpu: Gpu) -> str:
    """Why TensorRT for RTX does not run on a GPU, empty where it does."""
    own = gpu.compute_capability
    if own in RTX_CAPABILITIES:
        return ""
    return f"compute capability {own} is not one of {_RTX_COVERS}"


_RTX_COVERS: Final = f"{', '.join(RTX_CAPABILITIES)} ({RTX_GPUS})"


def _old_gpu(gpu: Gpu) -> str:
    """Why TensorRT does not run on a GPU, empty where it does."""
    own, least = (
        tuple(map(int, each.split("."))) for each in (gpu.compute_capability, LEAST_CAPABILITY)
    )
    if own >= least:
        return ""
    return f"compute capability {gpu.compute_capability} is below {LEAST_CAPABILITY} (T4, RTX 20)"


def _doubts_of_rtx(precision: Precision, census: Mapping[str, int]) -> Sequence[str]:
    """What a user must know of an engine whose execution NVIDIA does not list."""
    kinds = {key.split()[0] for key in census}
    doubts = precision.facts.doubts
    return tuple(f"{UNPROVEN}: {each.text}" for each in doubts if each.layer_kind in kinds)


def _abilities_of_rtx(gpus: Sequence[Gpu]) -> Sequence[Ability]:
    build = "compile engines for RTX-class GPUs"
    run = "run engines of TensorRT for RTX"
    running = _on_gpu(run, TENSORRT_RTX, "their .engine files fit this GPU", _RUNNING)
    lacking = f"needs a GPU of compute capability {_RTX_COVERS} and its driver"
    missing = _foreign_gpu(gpus[0]) if gpus else lacking
    if missing:
        running = Ability(run, works=False, how=missing)
    return needs(build, MODULES[TENSORRT_RTX], "deploykit export, no GPU needed"), running


_RUNNING: Final = ("cuda.core",)
"""What running an engine needs beside its compiler's runtime."""


def _on_gpu(task: str, compiler: str, how: str, beside: Sequence[str] = ()) -> Ability:
    """The ability to do on the GPU what a compiler's libraries and the modules ``beside`` do."""
    found = [needs(task, module, how) for module in (MODULES[compiler], *beside)]
    missing = next((each for each in found if not each.works), None)
    if missing is not None:
        return missing
    too_old = old_driver(_LABELS[compiler], _cuda_major(compiler), environment.driver_version())
    return Ability(task, works=False, how=f"{too_old}: update it") if too_old else found[0]


def _abilities_of_tensorrt(gpus: Sequence[Gpu]) -> Sequence[Ability]:
    build, run = "compile engines with TensorRT", "run engines of TensorRT"
    lacking = (
        f"needs a GPU of compute capability {LEAST_CAPABILITY} (T4, RTX 20) or later and its driver"
    )
    missing = _old_gpu(gpus[0]) if gpus else lacking
    if missing:
        return Ability(build, works=False, how=missing), Ability(run, works=False, how=missing)
    return (
        _on_gpu(build, TENSORRT, f"deploykit build BUNDLE --backend {TENSORRT}"),
        _on_gpu(run, TENSORRT, "engines that were built on this kind of GPU", _RUNNING),
    )


def _backend(name: str, *, rank: int) -> EngineBackend:
    """What both have in common."""
    return EngineBackend(
        name=name,
        label=_LABELS[name],
        rank=rank,
        device=GPU,
        precisions=None,
        # What every GPU has; others are measured where they are asked for.
        usual=tuple(each for each in OWN if each.facts.least_compute_capability is None),
        problem=partial(_problem, name),
        notes=_notes,
        cuda_graphs=True,
        resident=_resident,
        queue=_queue,
        module=MODULES[name],
        is_portable=name == TENSORRT_RTX,
        load=partial(load_compiler, name),
        compile=_compile,
        check_options=_check_options,
        open=_open,
        read_header=partial(read_header, compiler_name=name),
        cuda_major=partial(_cuda_major, name),
    )


BACKENDS: Final = (
    replace(
        _backend(TENSORRT, rank=10),
        abilities=_abilities_of_tensorrt,
        check_target=require_gpu,
    ),
    replace(
        _backend(TENSORRT_RTX, rank=20),
        abilities=_abilities_of_rtx,
        doubts=_doubts_of_rtx,
    ),
)

"""GPUs that an engine is compiled for: compute capabilities and hardware compatibility."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deploykit.backends.trt.census import narrowest
from deploykit.backends.trt.compiler import require_gpu
from deploykit.core import environment
from deploykit.core.artifacts import AMPERE, AMPERE_PLUS, SAME_CC, THIS_GPU
from deploykit.core.errors import UsageError
from deploykit.core.gpu_choice import with_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends._engines import CompileOptions, Compiler
    from deploykit.core.environment import Gpu


_OLDEST_PORTABLE = 80
"""Oldest default target, Ampere: Turing (7.5) shares no engine with newer ones by default."""


def known_compute_capabilities(compiler: Compiler) -> tuple[str, ...]:
    """The targets that a portable compiler can name, from 8.0 up, in ascending order."""
    members = compiler.module.ComputeCapability.__members__
    numbers = sorted(int(name.removeprefix("SM")) for name in members if name.startswith("SM"))
    return tuple(
        f"{number // 10}.{number % 10}" for number in numbers if number >= _OLDEST_PORTABLE
    )


def build_gpu(options: CompileOptions) -> Gpu:
    """The GPU that the engine is built on.

    Raises:
        BuildError: there is none.
    """
    which = str(options.gpu_index) if options.gpu_index else ""
    return require_gpu(with_first(environment.gpus(), which))


def target_capabilities(compiler: Compiler, options: CompileOptions) -> tuple[str, ...]:
    """Compute capabilities that the engine is compiled for, as ("8.6", "8.9").

    Raises:
        UsageError: as `require_known`.
        BuildError: it builds on a GPU, and there is none.
    """
    require_known(compiler, options, ())
    if compiler.is_portable:
        known = known_compute_capabilities(compiler)
        return tuple(name for name in known if name in options.compute_capabilities) or known
    gpu = build_gpu(options)
    require_known(compiler, options, (gpu,))
    return (gpu.compute_capability,)


def require_known(compiler: Compiler, options: CompileOptions, gpus: Sequence[Gpu]) -> None:
    """Refuse targets and a hardware compatibility that a compiler or the first GPU lacks.

    Raises:
        UsageError: they do.
    """
    if compiler.is_portable:
        _require_targets(compiler, options)
        return
    if options.compute_capabilities:
        raise UsageError(
            f"compute capabilities {', '.join(options.compute_capabilities)} cannot be chosen for "
            f"{compiler.name}\nit builds for the GPU of the machine: leave them out"
        )
    if options.hardware_compatibility != THIS_GPU:
        own = gpus[0].compute_capability if gpus else None
        _require_compatibility(compiler, options.hardware_compatibility, own)


def _require_targets(compiler: Compiler, options: CompileOptions) -> None:
    if options.hardware_compatibility != THIS_GPU:
        raise UsageError(
            f"{compiler.name} has no hardware compatibility {options.hardware_compatibility}\n"
            "its engines run on each compute capability that they are compiled for\n"
            "leave it out, or choose them with --compute-capability"
        )
    known = known_compute_capabilities(compiler)
    unknown = [name for name in options.compute_capabilities if name not in known]
    if unknown:
        raise UsageError(
            f"{compiler.label} cannot compile for compute capability {', '.join(unknown)}\n"
            f"it knows {', '.join(known)}"
        )


LEVELS: Final = {
    THIS_GPU: "NONE",
    SAME_CC: "SAME_COMPUTE_CAPABILITY",
    AMPERE_PLUS: "AMPERE_PLUS",
}
"""Members of ``HardwareCompatibilityLevel``."""

_OLDEST_WITH: Final = {SAME_CC: (7, 5), AMPERE_PLUS: AMPERE}
"""Oldest GPU that TensorRT makes such an engine on, by the notes of ``HardwareCompatibilityLevel``:
Turing, and Ampere."""


def _require_compatibility(compiler: Compiler, asked: str, own: str | None) -> None:
    members = getattr(compiler.module, "HardwareCompatibilityLevel", None)
    known = [name for name, member in LEVELS.items() if hasattr(members, member)] or [THIS_GPU]
    if asked not in known:
        raise UsageError(
            f"{compiler.label} has no hardware compatibility {asked}\n"
            f"it knows {', '.join(known)}; a newer version has more"
        )
    oldest = _OLDEST_WITH[asked]
    if own is not None and _numbers(own) < oldest:
        raise UsageError(
            f"hardware compatibility {asked} is for GPUs of compute capability "
            f"{oldest[0]}.{oldest[1]} and later, this one has {own}\nleave it out"
        )


def fitting(
    name: str, network: Any, compiler: Compiler, options: CompileOptions, targets: tuple[str, ...]
) -> tuple[str, ...]:
    """Those of the targets that have the arithmetic of a parsed network.

    ``name`` is the model's, for the message.

    Raises:
        UsageError: one that was asked for does not have it, or the GPU that the engine is built on.
    """
    kind, least = narrowest(network)
    able = tuple(each for each in targets if _numbers(each) >= least)
    is_asked = bool(options.compute_capabilities) or not compiler.is_portable
    if able == targets or (able and not is_asked):
        return able
    lacking = ", ".join(each for each in targets if each not in able)
    helps = "leave it out" if compiler.is_portable else "build on such a GPU"
    raise UsageError(
        f"{name} computes in {kind}, which GPUs of compute capability {lacking} do not have\n"
        f"it needs {least[0]}.{least[1]} or later: {helps}, or export another precision"
    )


def _numbers(compute_capability: str) -> tuple[int, int]:
    major, minor = compute_capability.split(".")
    return int(major), int(minor)

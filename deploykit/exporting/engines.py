"""Engines of a bundle: compile, prove the precision, write."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from deploykit.backends._registry import engine_backend
from deploykit.bundle.image_sizes import exported_sizes
from deploykit.core.artifacts import (
    AMPERE,
    AMPERE_PLUS,
    DIGITS,
    ENGINE_SUFFIX,
    SAME_CC,
    EngineRecord,
    sha256_of_bytes,
)
from deploykit.core.errors import BundleError, PrecisionError, UsageError
from deploykit.core.precision import HEAVY_KINDS, label_of
from deploykit.core.progress import SilentProgress
from deploykit.core.sizes import IMAGE_AXES, ShapeProfile, require_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.backends import CompiledEngine, CompileOptions, Compiler
    from deploykit.bundle.manifest import Bundle
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.environment import Gpu
    from deploykit.core.precision import Precision
    from deploykit.core.progress import Progress

    Size = tuple[int, int]


_SILENT: Final = SilentProgress()
_FLOAT: Final = "FLOAT"


def build_engine(
    artifact: OnnxArtifact,
    folder: Path,
    compiler: Compiler,
    options: CompileOptions,
    progress: Progress = _SILENT,
    *,
    allowed_fp32: int = 0,
) -> EngineRecord:
    """Compile ``artifact`` into ``<compiler>-<version>[-smXY]-<8 digits>.engine`` in ``folder``.

    ``smXY`` is ``sm80plus`` where it is for all GPUs from Ampere on. The digits are those of its
    content's sha256. After an error there is no file of that name.
    What its backend doubts of an engine that compiled is among the warnings of its record.

    Args:
        artifact: the graph; its precision is what the engine must have.
        folder: where the engine is written, an existing folder.
        compiler: from `choose_compiler` or `load_compiler`.
        options: the profile, scratch memory, targets and the rest of the compiler's choices.
        progress: where the step is shown.
        allowed_fp32: convolution and matrix layers that were kept in FP32 on purpose.

    Raises:
        UsageError: the options do not fit the compiler, the model or the precision.
        BuildError: the compiler refuses the graph.
        PrecisionError: it compiled, but not in the artifact's precision.
        BundleError: the file cannot be written.
    """
    require_options(artifact.precisions, compiler, options)
    backend = engine_backend(compiler.name)
    with progress.step(f"compile with {compiler.label}") as task:
        compiled = backend.compile(compiler, artifact.path, options, task)
    prove_precision(compiled.census, artifact.precision, allowed_fp32)
    name = _file_name(compiler, compiled, options)
    _write(folder / name, compiled.plan)
    return EngineRecord(
        file=name,
        sha256=sha256_of_bytes(compiled.plan),
        bytes=len(compiled.plan),
        compiler=compiler.name,
        compiler_version=compiler.version,
        compute_capabilities=compiled.compute_capabilities,
        profile=compiled.profile,
        precision=artifact.precision,
        precision_census=compiled.census,
        build_s=compiled.build_s,
        optimization_level=options.optimization_level,
        hardware_compatibility=options.hardware_compatibility,
        warnings=(*compiled.warnings, *backend.doubts(artifact.precision, compiled.census)),
    )


def require_options(
    precisions: Sequence[Precision],
    compiler: Compiler,
    options: CompileOptions,
    gpus: Sequence[Gpu] = (),
) -> None:
    """Refuse choices that the compiler does not have, or GPUs without one of the precisions.

    ``gpus`` are the machine's, the one that is built on first; without them that is not looked at.

    Raises:
        UsageError: one of ``options`` is such a choice.
    """
    for precision in precisions:
        require_capabilities(precision, options.compute_capabilities)
    if options.hardware_compatibility == AMPERE_PLUS:
        oldest = ".".join(map(str, AMPERE))
        lacking = [each for each in precisions if not each.facts.runs_on(oldest)]
        if lacking:
            raise UsageError(
                f"{AMPERE_PLUS} is for GPUs from compute capability {oldest} on, and not all of "
                f"them have {lacking[0]} arithmetic\ngive --hardware-compatibility {SAME_CC}, or "
                "export another precision"
            )
    engine_backend(compiler.name).check_options(compiler, options, gpus)


def require_capabilities(precision: Precision, asked: Sequence[str]) -> None:
    """Refuse GPU generations that lack the arithmetic of ``precision``.

    Raises:
        UsageError: one of them does.
    """
    lacking = [each for each in asked if not precision.facts.runs_on(each)]
    if lacking:
        least = ".".join(map(str, precision.facts.least_compute_capability or ()))
        raise UsageError(
            f"GPUs of compute capability {', '.join(lacking)} have no {precision} arithmetic\n"
            f"expected {least} or later: give others with --compute-capability, or export "
            "another precision"
        )


def prove_precision(census: Mapping[str, int], asked: Precision, allowed_fp32: int = 0) -> None:
    """Check that a network's arithmetic is in the precision that was asked.

    The convolution and matrix layers decide; a network without any is judged by its other
    floating-point layers. FP32 wants all of them FP32, FP16 all FP16, INT8 at least one INT8 and
    none FP32; of the latter two up to ``allowed_fp32`` may be FP32. Pure data movement is FP32.
    See `Census` of the precision's facts.

    Raises:
        PrecisionError: they are not; the message holds the census.
    """
    counts = _deciding_counts(census)
    wanted = asked.facts.census
    right = sum(counts.get(each, 0) for each in wanted.needed)
    other = sum(counts.get(each, 0) for each in wanted.beside)
    if _FLOAT in wanted.needed:
        proven = right + other == sum(counts.values())
    else:
        kept = counts.get(_FLOAT, 0)
        all_known = right + other + kept == sum(counts.values())
        proven = right > 0 and kept <= allowed_fp32 and all_known
    if not proven:
        raise _precision_error(census, counts, asked, allowed_fp32)


def _deciding_counts(census: Mapping[str, int]) -> dict[str, int]:
    """Layers by the compiler's name of their type."""
    only_heavy = _has_heavy_layers(census)
    counts: dict[str, int] = {}
    for key, count in census.items():
        kind, type_name = key.split()
        if only_heavy and kind not in HEAVY_KINDS:
            continue
        counts[type_name] = counts.get(type_name, 0) + count
    return counts


def _has_heavy_layers(census: Mapping[str, int]) -> bool:
    return any(key.split()[0] in HEAVY_KINDS for key in census)


def _precision_error(
    census: Mapping[str, int], counts: Mapping[str, int], asked: Precision, allowed_fp32: int
) -> PrecisionError:
    kind = "convolution and matrix" if _has_heavy_layers(census) else "arithmetic"
    wrong = " and ".join(
        f"{count} of {sum(counts.values())} {kind} layers are {label_of(type_name).upper()}"
        for type_name, count in counts.items()
        if type_name not in asked.facts.census.needed
    )
    allowed = f" ({allowed_fp32} may stay FP32)" if allowed_fp32 else ""
    layers = ", ".join(f"{key}: {count}" for key, count in census.items())
    return PrecisionError(
        f"asked for {asked}, but {wrong or 'nothing computes in floating point'}{allowed}\n"
        f"the parsed network has {layers or 'no arithmetic'}\n"
        "precision is decided in the ONNX file: convert it before it is compiled"
    )


def _file_name(compiler: Compiler, compiled: CompiledEngine, options: CompileOptions) -> str:
    """Only an engine of TensorRT is bound to one architecture, which then is in the name."""
    parts = [compiler.name, compiler.version]
    if options.hardware_compatibility == AMPERE_PLUS:
        parts.append(f"sm{AMPERE[0]}{AMPERE[1]}plus")
    elif not compiler.is_portable:
        (capability,) = compiled.compute_capabilities
        parts.append(f"sm{capability.replace('.', '')}")
    digits = sha256_of_bytes(compiled.plan)[:DIGITS]
    return "-".join([*parts, digits]) + ENGINE_SUFFIX


def _write(target: Path, plan: bytes) -> None:
    """Write beside the target and rename, so that no reader meets half an engine."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(plan)
        temporary.replace(target)
    except OSError as error:
        raise BundleError(
            f"cannot write {target}\nreason: {error.strerror or error}\n"
            "choose a folder that exists, is writable and has space"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def profile_of_bundle(bundle: Bundle, asked: ShapeProfile) -> ShapeProfile:
    """``asked``; sizes that it does not have are those that the bundle was exported for.

    Raises:
        UsageError: sizes for what is fixed, or without the size that the bundle prepares.
    """
    known = exported_sizes(bundle.manifest)
    profile = ShapeProfile.of(
        [
            replace(each, height=each.height or known["height"], width=each.width or known["width"])
            for each in asked.profiles
        ]
    )
    require_sizes(bundle.manifest.name, bundle.manifest.onnx.inputs[0].shape, profile)
    crop = dict(zip(IMAGE_AXES, bundle.manifest.preprocessing.crop, strict=True))
    for axis, label in IMAGE_AXES.items():
        sizes = profile.ranges.get(axis)
        if sizes is not None and crop[axis] not in sizes:
            raise UsageError(
                f"--{label} {sizes} is without {crop[axis]}, to which {bundle.manifest.name} "
                f"prepares images\ngive sizes with it, or export the model again with another "
                f"preferred {label}"
            )
    if not profile.takes(crop):
        raise UsageError(
            f"no profile has the {crop[2]} x {crop[3]}, to which {bundle.manifest.name} prepares "
            f"images: {profile}\ngive one with it"
        )
    return profile

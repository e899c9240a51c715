"""`deploykit build`: one more engine for a bundle, on the machine that will run it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends._registry import choose_compiler, engine_backends
from deploykit.benchmarking.matrix.against_source import (
    BuiltFrom,
    SourceSpeed,
    speed_against_source,
    speed_to_plain,
)
from deploykit.bundle.manifest import REFERENCE, SIGNATURE, Bundle
from deploykit.core.atomic import beside, temporary_folder, translated_write_errors
from deploykit.core.errors import DeploykitError, UsageError
from deploykit.core.progress import Journal, Progress, SilentProgress, StageTime
from deploykit.core.serialization import engine_to_plain
from deploykit.exporting.engine_run import EngineRun, Expected
from deploykit.exporting.engines import build_engine, profile_of_bundle, require_options
from deploykit.graph.files import read_artifact
from deploykit.runtime.choice import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import CompileOptions, Compiler
    from deploykit.core.artifacts import EngineRecord, OnnxArtifact


_UNSIGNED: Final = (
    "the signature was of the bundle without this engine and is removed; sign again: "
    "deploykit sign {} --key KEY"
)


@dataclass(frozen=True)
class BuildReport:
    """The bundle as it is now, and the engine that was added.

    ``speed`` is ``None`` where it was not asked for, or a note says why it was not compared.
    """

    bundle: Bundle
    engine: EngineRecord
    stages: tuple[StageTime, ...]
    notes: tuple[str, ...] = ()
    speed: SourceSpeed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; ``validation`` is the one of the bundle's own graph."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.folder),
            "precision": str(manifest.precision),
            "stages": [stage.to_dict() for stage in self.stages],
            "validation": [dict(report) for report in manifest.validation],
            "engines": list(map(engine_to_plain, manifest.engines)),
            "notes": list(self.notes),
            "speed": None if self.speed is None else speed_to_plain(self.speed),
        }


def build(  # noqa: PLR0913 - the options of `deploykit build`
    folder: Path,
    backend: str,
    options: CompileOptions,
    progress: Progress | None = None,
    machine: Machine | None = None,
    *,
    timing_cache: bool = True,
    compare_speed: bool = False,
) -> BuildReport:
    """Compile the bundle's own ONNX for this machine and add the engine to the bundle.

    Where there is a GPU that it fits it runs there first, on images, and is compared with what the
    bundle should compute. ``machine`` says which GPU; by default it is this machine's first. With
    ``timing_cache`` TensorRT keeps what it measured in a file beside the bundle. With
    ``compare_speed`` the bundle's FP32 graph is compiled too, and thrown away after both were
    measured in turn. A signature of the bundle without this engine is removed, and a note says so.

    Raises:
        IntegrityError: the bundle is not as it was written.
        UsageError: the profile's height or width does not go with the bundle, or the compiler has
            no such choice; there is nothing to compare its speed with.
        BuildError: the compiler refuses the graph.
        ValidationError: the engine computes something else. The bundle stays as it was, as after
            every error.
    """
    journal = Journal(progress or SilentProgress())
    bundle = Bundle.open(folder)
    here = machine or Machine()
    options = replace(
        options,
        profile=profile_of_bundle(bundle, options.profile),
        gpu_index=here.gpu_index,
        timing_folder=beside(folder) if timing_cache else None,
    )
    compiler = _compiler(backend, here)
    require_options(bundle.manifest.onnx.precisions, compiler, options, here.gpus)
    source = source_of(bundle) if compare_speed else None
    with journal.stage("verify"):
        bundle.require_intact()
    kept_heavy = int(bundle.manifest.conversion.get("kept_heavy", 0))
    # Beside the bundle, and not in it: what a killed build leaves is no part of a bundle.
    with temporary_folder(folder) as staging, translated_write_errors(folder):
        with journal.timed("build engine"):
            engine = build_engine(
                bundle.manifest.onnx,
                staging,
                compiler,
                options,
                journal.progress,
                allowed_fp32=kept_heavy,
            )
        run = EngineRun(compiler, here, journal)
        engine = run.first(engine, staging / engine.file, partial(Expected.of_bundle, bundle))
        made = BuiltFrom(bundle.manifest.onnx, engine, staging / engine.file)
        speed = None if source is None else _against(source, made, bundle, options, run)
        if (folder / SIGNATURE).exists():
            journal.notes.append(_UNSIGNED.format(shlex.quote(str(folder))))
        bundle = bundle.with_engine(engine, staging / engine.file)
    return BuildReport(bundle, engine, tuple(journal.times), tuple(journal.notes), speed)


def _compiler(backend: str, machine: Machine) -> Compiler:
    compiler = choose_compiler(backend, machine.gpus)
    if compiler is None:
        possible = ", ".join(each.name for each in engine_backends())
        raise UsageError(
            f"there is nothing to build with --backend {backend}\nchoose {possible} or auto"
        )
    return compiler


def source_of(bundle: Bundle) -> OnnxArtifact:
    """The FP32 graph that a bundle keeps beside its own.

    Raises:
        UsageError: the bundle is FP32 itself, or keeps none.
    """
    precision, kept = bundle.manifest.precision, bundle.folder / REFERENCE
    if precision.facts.is_source:
        raise UsageError(
            f"--compare-speed: {bundle.manifest.name} is {precision}, as what it came from\n"
            "it compares a lower precision with that; for others: deploykit bench --ab A B"
        )
    if REFERENCE not in bundle.manifest.files or not kept.is_file():
        raise UsageError(
            f"--compare-speed: {bundle.folder} keeps no {REFERENCE}, its FP32 graph\n"
            "export the model again, or build the other bundle too: deploykit bench --ab A B"
        )
    return read_artifact(kept)


def _against(
    source: OnnxArtifact, made: BuiltFrom, bundle: Bundle, options: CompileOptions, run: EngineRun
) -> SourceSpeed | None:
    """Compile the source beside the engine, and measure both; a note says what came of it."""
    journal = run.journal
    if made.record.ran_on is None:
        journal.notes.append("its speed was not compared, as it did not run")
        return None
    try:
        speed = _measured(source, made, bundle, options, run)
    except DeploykitError as error:
        # The engine itself computes what it should: it is added all the same.
        reason = "; ".join(str(error).splitlines())
        journal.notes.append(f"its speed was not compared: {reason}")
        return None
    journal.notes += speed.notes
    return speed


def _measured(
    source: OnnxArtifact, made: BuiltFrom, bundle: Bundle, options: CompileOptions, run: EngineRun
) -> SourceSpeed:
    journal, folder = run.journal, made.plan.parent / "source"
    folder.mkdir()
    with journal.timed("build source"):
        record = build_engine(source, folder, run.compiler, options, journal.progress)
    with journal.stage("compare speed") as task:
        return speed_against_source(
            made,
            BuiltFrom(source, record, folder / record.file),
            bundle.manifest.preprocessing.crop,
            run.machine,
            task,
        )

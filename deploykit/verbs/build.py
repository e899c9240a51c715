"""`deploykit build`: one more engine for a bundle, on the machine that will run it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit.backends._registry import choose_compiler, engine_backends
from deploykit.bundle.manifest import SIGNATURE, Bundle
from deploykit.core.atomic import beside, temporary_folder, translated_write_errors
from deploykit.core.errors import UsageError
from deploykit.core.progress import Journal, Progress, SilentProgress, StageTime
from deploykit.core.serialization import engine_to_plain
from deploykit.exporting.engine_run import EngineRun, Expected
from deploykit.exporting.engines import build_engine, profile_of_bundle, require_options
from deploykit.runtime.choice import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import CompileOptions
    from deploykit.core.artifacts import EngineRecord


@dataclass(frozen=True)
class BuildReport:
    """The bundle as it is now, and the engine that was added."""

    bundle: Bundle
    engine: EngineRecord
    stages: tuple[StageTime, ...]
    notes: tuple[str, ...] = ()

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
        }


def build(
    folder: Path,
    backend: str,
    options: CompileOptions,
    progress: Progress | None = None,
    machine: Machine | None = None,
    *,
    timing_cache: bool = True,
) -> BuildReport:
    """Compile the bundle's own ONNX for this machine and add the engine to the bundle.

    Where there is a GPU that it fits it runs there first, on images, and is compared with what the
    bundle should compute. ``machine`` says which GPU; by default it is this machine's first. With
    ``timing_cache`` TensorRT keeps what it measured in a file beside the bundle. A signature of the
    bundle without this engine is removed, and a note says so.

    Raises:
        IntegrityError: the bundle is not as it was written.
        UsageError: the profile's height or width does not go with the bundle, or the compiler has
            no such choice.
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
    compiler = choose_compiler(backend, here.gpus)
    if compiler is None:
        possible = ", ".join(each.name for each in engine_backends())
        raise UsageError(
            f"there is nothing to build with --backend {backend}\nchoose {possible} or auto"
        )
    require_options(bundle.manifest.precision, compiler, options, here.gpus)
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
        if (folder / SIGNATURE).exists():
            journal.notes.append(
                "the signature was of the bundle without this engine and is removed; sign again: "
                f"deploykit sign {shlex.quote(str(folder))} --key KEY"
            )
        bundle = bundle.with_engine(engine, staging / engine.file)
    return BuildReport(bundle, engine, tuple(journal.times), tuple(journal.notes))

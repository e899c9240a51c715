"""`deploykit export`: from a target to a verified bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import environment, models
from deploykit.artifacts import sha256_of
from deploykit.backends.ort import OrtRunner
from deploykit.backends.trt.builder import CompileOptions
from deploykit.backends.trt.compiler import choose_compiler
from deploykit.bundle import GOLDEN, LABELS, MANIFEST, MODEL, REFERENCE, Bundle, Manifest
from deploykit.errors import UsageError
from deploykit.pipeline.journal import Journal, StageTime
from deploykit.pipeline.sources import Reference, from_definition, from_onnx
from deploykit.specs import Precision, Progress, ShapeProfile, SilentProgress
from deploykit.stages.build import build_engine
from deploykit.stages.validate import ValidationReport, outputs_of, validate
from deploykit.staging import staged_folder

if TYPE_CHECKING:
    from deploykit.artifacts import EngineRecord, OnnxArtifact
    from deploykit.backends.trt.compiler import Compiler
    from deploykit.specs import ModelSpec
    from deploykit.stages.fp16 import Fp16Result


@dataclass(frozen=True)
class ExportOptions:
    """The choices of one export; ``None`` is the definition's own, or the compiler's."""

    precision: Precision = Precision.FP32
    backend: str = "auto"
    profile: ShapeProfile = field(default_factory=ShapeProfile)
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    weights: str | None = None
    seed: int = 0
    num_classes: int | None = None
    image_size: int | None = None
    data: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class ExportReport:
    """The bundle, and how it came about."""

    bundle: Bundle
    stages: tuple[StageTime, ...]
    validation: tuple[ValidationReport, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.folder),
            "precision": str(manifest.precision),
            "stages": [stage.to_dict() for stage in self.stages],
            "validation": [report.to_dict() for report in self.validation],
            "engines": [engine.to_dict() for engine in manifest.engines],
            "conversion": dict(manifest.conversion),
            "weights": dict(manifest.weights),
            "notes": list(self.notes),
        }


def export(target: str, options: ExportOptions, progress: Progress | None = None) -> ExportReport:
    """Export, convert, validate and compile ``target`` into a bundle.

    ``target`` is the name of an architecture or the path of an FP32 ``.onnx`` file. The bundle
    appears under its name only when every stage has passed.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    journal = Journal(progress or SilentProgress())
    source = _resolve(target, options)
    compiler = choose_compiler(options.backend, environment.gpus())
    name = source.stem if isinstance(source, Path) else source.name
    place = options.output or Path("engines") / f"{name}-{options.precision}"
    with staged_folder(place, MANIFEST) as folder:
        manifest, reports = _fill(folder, source, options, compiler, journal)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    bundle = Bundle.open(place)
    return ExportReport(bundle, tuple(journal.times), reports, tuple(journal.notes))


def _resolve(target: str, options: ExportOptions) -> ModelSpec | Path:
    if not target.endswith(".onnx"):
        return models.get(target, num_classes=options.num_classes, image_size=options.image_size)
    if options.weights or options.num_classes or options.image_size:
        raise UsageError(
            f"{target} brings its own weights, classes and size\n"
            "--weights, --num-classes and --input-size are for architectures only"
        )
    return Path(target)


def _fill(
    folder: Path,
    source: ModelSpec | Path,
    options: ExportOptions,
    compiler: Compiler | None,
    journal: Journal,
) -> tuple[Manifest, tuple[ValidationReport, ...]]:
    path = folder / (MODEL if options.precision is Precision.FP32 else REFERENCE)
    reference = _verified_fp32(source, path, options, journal)
    reports = [reference.report]
    artifact, kept_heavy, conversion = reference.artifact, 0, dict(reference.conversion)
    if options.precision is Precision.FP16:
        result, report = _halve(reference, folder / MODEL, journal)
        artifact, kept_heavy = result.artifact, result.kept_heavy
        conversion |= result.to_dict()
        reports.append(report)
    engines = _compile(artifact, folder, compiler, options, kept_heavy, journal)
    _write_samples(folder, reference)
    manifest = Manifest(
        name=f"{reference.model['name']}-{options.precision}",
        model=reference.model,
        weights=reference.weights,
        preprocessing=reference.preprocessing,
        precision=options.precision,
        onnx=artifact,
        files={
            file.name: sha256_of(file)
            for file in sorted(folder.iterdir())
            if file.suffix != ".engine"
        },
        validation=tuple(report.to_dict() for report in reports),
        conversion=conversion,
        engines=engines,
        packages=environment.describe().packages,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return manifest, tuple(reports)


def _verified_fp32(
    source: ModelSpec | Path, path: Path, options: ExportOptions, journal: Journal
) -> Reference:
    if isinstance(source, Path):
        return from_onnx(source, path, journal, data=options.data)
    return from_definition(
        source, path, journal, weights=options.weights, seed=options.seed, data=options.data
    )


def _halve(
    reference: Reference, path: Path, journal: Journal
) -> tuple[Fp16Result, ValidationReport]:
    from deploykit.stages.fp16 import convert_to_fp16

    with journal.stage("convert to fp16") as task:
        result = convert_to_fp16(
            reference.artifact, reference.batches, path, open_runner=OrtRunner, task=task
        )
    with journal.stage("validate fp16"), OrtRunner(path) as runner:
        outputs = outputs_of(runner, reference.batches)
        names = ("the fp16 graph", reference.made_by)
        report = validate(outputs, reference.logits, precision=Precision.FP16, names=names)
        report.require_pass()
    return result, report


def _compile(
    artifact: OnnxArtifact,
    folder: Path,
    compiler: Compiler | None,
    options: ExportOptions,
    kept_heavy: int,
    journal: Journal,
) -> tuple[EngineRecord, ...]:
    if compiler is None:
        journal.notes.append("no engine was built; later: deploykit build BUNDLE")
        return ()
    wanted = CompileOptions(options.profile, options.workspace_bytes, options.compute_capabilities)
    with journal.timed("build engine"):
        return (
            build_engine(
                artifact, folder, compiler, wanted, journal.progress, allowed_fp32=kept_heavy
            ),
        )


def _write_samples(folder: Path, reference: Reference) -> None:
    at = min(range(len(reference.batches)), key=lambda i: abs(len(reference.batches[i]) - 2))
    np.savez(folder / GOLDEN, input=reference.batches[at], logits=reference.logits[at])
    if reference.labels is not None:
        (folder / LABELS).write_text("\n".join(reference.labels) + "\n", encoding="utf-8")

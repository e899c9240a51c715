"""The export: from a TARGET to a verified bundle."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.backends import CompileOptions
from deploykit.backends._registry import choose_compiler
from deploykit.bundle.folders import DEFAULT_FOLDER
from deploykit.bundle.golden import write_golden
from deploykit.bundle.manifest import (
    CPU_MODEL,
    LABELS,
    MANIFEST,
    MODEL,
    REFERENCE,
    SIGNATURE,
    Bundle,
    Manifest,
    manifest_text,
    read_manifest,
)
from deploykit.comparison.converted import open_as_engine, require_valid_on_given
from deploykit.comparison.validation import outputs_of, same_images, validate
from deploykit.core import environment
from deploykit.core.artifacts import AMPERE, AMPERE_PLUS, THIS_GPU, sha256_of
from deploykit.core.atomic import beside, staged_folder
from deploykit.core.deployed import DeployedForm
from deploykit.core.errors import UsageError, one_line
from deploykit.core.precision import AUTO, Precision, require_images
from deploykit.core.progress import Journal, Progress, SilentProgress, StageTime
from deploykit.core.serialization import engine_to_plain, to_plain
from deploykit.core.sizes import ShapeProfile, require_sizes
from deploykit.core.specs import DEFAULT_HEAD, HeadRecord
from deploykit.exporting.deployed_form import Around, put_around, require_form
from deploykit.exporting.engine_run import EngineRun, Expected
from deploykit.exporting.engines import build_engine, require_options
from deploykit.exporting.replacing import Replacement, origin_of, origin_of_call
from deploykit.graph import LoadedGraph, write_model
from deploykit.graph.card import Card, add_card
from deploykit.graph.rounding import computes_narrow, rounding_form
from deploykit.heads import head_named
from deploykit.heads._results import judged_beside
from deploykit.heads.binary import BINARY
from deploykit.images import InputRange, read_class_names_with_note, require_lines
from deploykit.precision import conversion_of
from deploykit.precision.budget.conversion import convert_under_budget
from deploykit.precision.budget.request import require_budget, with_found_gpu
from deploykit.runtime.choice import Machine
from deploykit.sources.definition import SourceOptions
from deploykit.sources.onnx_outputs import judge_others
from deploykit.sources.references import find_source, make_reference
from deploykit.sources.targets import Kind, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.backends import Compiler
    from deploykit.comparison.reference import Reference
    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.specs import Array, ModelSpec
    from deploykit.precision import Batches, Converted
    from deploykit.precision.budget.request import Budget
    from deploykit.precision.quantization.request import QuantizationRequest


@dataclass(frozen=True)
class ExportOptions:
    """The choices of one export; ``None`` is the definition's own, or the compiler's."""

    precision: Precision = Precision.FP32
    backend: str = "auto"
    profile: ShapeProfile = field(default_factory=ShapeProfile)
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    hardware_compatibility: str = THIS_GPU
    timing_cache: bool = True
    """Whether TensorRT keeps what it measured in a file beside the bundle."""
    source: SourceOptions = field(default_factory=SourceOptions)
    labels: Path | tuple[str, ...] | None = None
    """Names of the classes, or the file that has them."""
    output: Path | None = None
    quantization: QuantizationRequest | None = None
    replace: bool = False
    """Whether a bundle of another model, or with more engines, may be replaced."""
    budget: Budget | None = None
    """What may be lost, for the precision that is then chosen layer by layer."""
    form: DeployedForm = field(default_factory=DeployedForm)
    """Whether the graph takes bytes, and what it ends in."""

    def __post_init__(self) -> None:
        if self.budget is not None:
            if self.precision is not Precision.FP32:
                raise UsageError(
                    f"a budget chooses the precision, and {self.precision} is one\n"
                    "give one of the two"
                )
        else:
            require_images(self.precision, given=self.quantization is not None)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the graph will compute in, beside FP16 and FP32 where these are the rest."""
        return (self.precision, *(() if self.quantization is None else (self.quantization.rest,)))

    @property
    def asked(self) -> str:
        """How the precision was asked for: by its name, or as one that is chosen."""
        return AUTO if self.budget is not None else str(self.precision)

    def compiling(self, place: Path, gpu_index: int) -> CompileOptions:
        """What the compiler is told, for a bundle at ``place``."""
        return CompileOptions(
            self.profile,
            self.workspace_bytes,
            self.compute_capabilities,
            optimization_level=self.optimization_level,
            hardware_compatibility=self.hardware_compatibility,
            timing_folder=beside(place) if self.timing_cache else None,
            gpu_index=gpu_index,
        )


@dataclass(frozen=True)
class ExportReport:
    """The bundle, and how it came about."""

    bundle: Bundle
    stages: tuple[StageTime, ...]
    validation: tuple[ValidationReport, ...]
    notes: tuple[str, ...]
    input_range: InputRange

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.folder),
            "precision": str(manifest.precision),
            "stages": [stage.to_dict() for stage in self.stages],
            "validation": [report.to_dict() for report in self.validation],
            "engines": list(map(engine_to_plain, manifest.engines)),
            "conversion": dict(manifest.conversion),
            "calibration": manifest.calibration,
            "weights": dict(manifest.weights),
            "notes": list(self.notes),
            "input_range": to_plain(self.input_range),
            "head": to_plain(manifest.head),
        }


def export_bundle(
    target: str | ModelSpec,
    options: ExportOptions,
    progress: Progress | None = None,
    machine: Machine | None = None,
    say: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export, convert, validate and compile ``target`` into a bundle.

    ``target`` is a definition, whatever `targets.find_definition` takes, or the path of an FP32
    ``.onnx`` file.
    An engine that fits a GPU of ``machine``, this one if not given, runs there and is compared.
    ``say`` is told what is to be known before the work begins.
    The bundle appears under its name only when every stage has passed. One of the same model and
    precision is replaced; another one, or one whose engines are not made again, only if the options
    say so.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    journal = Journal(progress or SilentProgress())
    # Everything that can be wrong with the call is found before the first slow step.
    here = machine or Machine()
    options = _with_budget(options, here, say)
    options.form.require_sizes(options.profile)
    source = _resolve(target, options, journal)
    require_form(source, options.form, options.source.choices.preprocessing)
    labels = _labels_of(options.labels, journal)
    require_lines(labels)
    if labels is not None and not isinstance(source, Path):
        _require_labels(source, labels)
    told = replace(options.source, labels=None if labels is None else len(labels))
    options = replace(options, source=told)
    name = source.stem if isinstance(source, Path) else source.name
    place = options.output or DEFAULT_FOLDER / f"{name}-{options.asked}"
    compiler = choose_compiler(options.backend, here.gpus)
    if compiler is not None:
        wanted = options.compiling(place, here.gpu_index)
        require_options(options.precisions, compiler, wanted, here.gpus)
        if not compiler.is_portable:  # the engine is for this machine's GPU
            options = _with_targets(options, [gpu.compute_capability for gpu in here.gpus[:1]])
    replacement = Replacement(
        place,
        options.asked,
        compiler,
        here.gpus,
        options.replace,
        for_others=options.hardware_compatibility == AMPERE_PLUS,
    )
    if (place / MANIFEST).is_file():
        replacement.require(origin_of_call(source, options.source))
    plan = _Plan(_with_bundle(options, place), compiler, labels, replacement, here)
    replaced: list[str | None] = []

    def look_again() -> None:
        replaced.append(replacement.require(origin_of(manifest.model, manifest.weights)))
        if (place / SIGNATURE).exists():
            replaced.append(
                "the bundle that was here was signed, this one is not; sign it: "
                f"deploykit sign {shlex.quote(str(place))} --key KEY"
            )

    with staged_folder(place, MANIFEST, look_again) as folder:
        manifest, reports, input_range = _fill(folder, source, plan, journal)
        text = manifest_text(manifest)
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    journal.notes += filter(None, replaced)
    bundle = Bundle(place, read_manifest(text, place))  # another export may be there by now
    times, notes = tuple(journal.times), tuple(journal.notes)
    return ExportReport(bundle, times, reports, notes, input_range)


def _with_budget(
    options: ExportOptions, here: Machine, say: Callable[[str], None] | None
) -> ExportOptions:
    """The options with what a budget leaves to be decided, and what its times hold for."""
    if options.budget is None:
        return options
    budget = with_found_gpu(options.budget, [gpu.name for gpu in here.gpus])
    every = (".".join(map(str, AMPERE)),) if options.hardware_compatibility == AMPERE_PLUS else ()
    budget = replace(
        budget,
        data=options.source.data,
        batch=options.profile.opt_batch,
        targets=(*options.compute_capabilities, *every),
    )
    request, judges = require_budget(budget, options.quantization)
    if say is not None:
        say(judges.resolution)
    return replace(options, budget=budget, quantization=request)


def _with_targets(options: ExportOptions, targets: list[str]) -> ExportOptions:
    budget = options.budget
    if budget is None:
        return options
    return replace(options, budget=replace(budget, targets=(*budget.targets, *targets)))


def _resolve(target: str | ModelSpec, options: ExportOptions, journal: Journal) -> ModelSpec | Path:
    if not isinstance(target, str):
        require_sizes(target.name, target.inputs[0].shape, options.profile)
        return target
    if kind_of(target) is Kind.BUNDLE and (Path(target) / MANIFEST).is_file():
        raise UsageError(
            f"{target} is a bundle already\n"
            "export takes a definition or an .onnx file; for one more engine: deploykit build"
        )
    source = find_source(target, options.source, journal)
    if not isinstance(source, Path):
        require_sizes(source.name, source.inputs[0].shape, options.profile)
    return source


def _require_labels(source: ModelSpec, labels: tuple[str, ...]) -> None:
    """Refuse another number of names than of outputs; what a graph's outputs are is seen later.

    Raises:
        DataError: there are more or fewer.
    """
    sizes = source.outputs[0].shape[1:]
    shape = (1, *(size for size in sizes if isinstance(size, int)))
    is_binary = source.head is None and shape[1:] == (1,)
    head = BINARY if is_binary else head_named(source.head or DEFAULT_HEAD)
    if len(shape) == 1 + len(sizes) and (source.head is not None or head.fits(shape)):
        head.fitting_labels(labels, None, shape)


def _labels_of(given: Path | tuple[str, ...] | None, journal: Journal) -> tuple[str, ...] | None:
    """The names of the classes; where a file numbers them, a note says how they were read."""
    if not isinstance(given, Path):
        return given
    found = read_class_names_with_note(given)
    journal.notes += [] if found.note is None else [found.note]
    return found.names


def _fitting_labels(reference: Reference, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The names that the user gave, or those of the source, where they fit what the head gives.

    Raises:
        DataError: a name is no line of a file, or those given do not fit.
    """
    shape = reference.outputs[0].shape
    labels = reference.head.fitting_labels(given, reference.labels, shape)
    require_lines(labels)
    return labels


def _with_bundle(options: ExportOptions, place: Path) -> ExportOptions:
    """The options with the bundle that a calibration table is kept beside."""
    request = options.quantization
    if request is None:
        return options
    calibration = replace(request.calibration, bundle=place)
    budget = None if options.budget is None else replace(options.budget, place=place)
    request = replace(request, calibration=calibration)
    return replace(options, quantization=request, budget=budget)


@dataclass(frozen=True)
class _Plan:
    """The options with what was looked up for them."""

    options: ExportOptions
    compiler: Compiler | None
    labels: tuple[str, ...] | None
    replacement: Replacement
    machine: Machine


def _fill(
    folder: Path, source: ModelSpec | Path, plan: _Plan, journal: Journal
) -> tuple[Manifest, tuple[ValidationReport, ...], InputRange]:
    options = plan.options
    path = folder / (MODEL if options.asked == Precision.FP32 else REFERENCE)
    reference = make_reference(source, path, journal, options.source, options.profile)
    plan.replacement.require(origin_of(reference.model, reference.weights))
    labels = _fitting_labels(reference, plan.labels)
    around = Around.of(reference, options.form)  # refuses before a conversion takes its time
    converted = _converted(reference, folder / MODEL, options, journal)
    given = _on_given_images(reference, converted, options, journal)
    input_range = InputRange.of(reference.batches)
    reference, converted = put_around(around, reference, converted, journal)
    reference, converted = _with_card(reference, converted, labels)
    precision = converted.artifact.precision
    opener = partial(partial, open_as_engine, reference.runners)
    others, notes, steady = judge_others(
        reference.artifact,
        converted.artifact,
        converted.compared[0],
        reference.head,
        (opener(converted.artifact), opener(reference.artifact)),
        known=judged_beside(reference.head, converted.conversion),
    )
    journal.notes += notes
    for report in others:
        report.require_pass()
    images = same_images(converted.compared[0])
    reports = (*(one.doubted(images) for one in (*converted.reports, *others)), *given)
    graph = converted.graph or LoadedGraph(converted.artifact)
    if not precision.facts.is_source and computes_narrow(graph.model):
        with journal.stage("write for CPUs"):
            _write_cpu_form(reference, graph, converted.compared, folder / CPU_MODEL)
    graph.release()
    reference.graph.release()  # compilers need the memory
    engines = _compile(reference, converted, folder, plan, journal)
    others_of = partial(_other_answers, reference, steady)
    write_golden(folder, *converted.compared, reference.runners.side, others_of)
    if labels is not None:
        (folder / LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")
    here = environment.describe()
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".engine"]
    manifest = Manifest(
        name=one_line(f"{reference.model['name']}-{options.asked}"),
        model=reference.model,
        weights=reference.weights,
        preprocessing=reference.preprocessing,
        precision=precision,
        onnx=converted.artifact,
        files={file.name: sha256_of(file) for file in files},
        validation=tuple(report.to_dict() for report in reports),
        conversion=converted.conversion,
        engines=engines,
        packages={"deploykit": here.deploykit, **here.packages},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        calibration=converted.calibration,
        head=_head_record(reference),
    )
    return manifest, reports, input_range


def _with_card(
    reference: Reference, converted: Converted, labels: tuple[str, ...] | None
) -> tuple[Reference, Converted]:
    """The graph of the bundle with what its user must know in the file too."""
    card = Card(reference.preprocessing, _head_record(reference), labels)
    before = converted.artifact
    artifact = add_card(before, card)
    # The same object for the file that is both, so that nobody compares it with itself.
    graph = (converted.graph or LoadedGraph(before)).described(artifact)
    if reference.artifact.path == artifact.path:
        reference = replace(reference, graph=graph)
    return reference, replace(converted, artifact=artifact, graph=graph)


def _head_record(reference: Reference) -> HeadRecord:
    return HeadRecord(reference.head.name, reference.output, reference.head.activation)


def _converted(
    reference: Reference, path: Path, options: ExportOptions, journal: Journal
) -> Converted:
    """The graph of the bundle, in the precision that was asked for or that a budget chooses."""
    request, budget = options.quantization, options.budget
    if budget is not None and request is not None:
        return convert_under_budget(reference, path, request, budget, journal)
    return conversion_of(options.precision).convert(reference, path, request, journal)


def _on_given_images(
    reference: Reference, converted: Converted, options: ExportOptions, journal: Journal
) -> list[ValidationReport]:
    """A graph of eight bits, compared on images of its calibration so far, on those of the user."""
    if options.source.data is None or not converted.artifact.precision.facts.quantized:
        return []
    graph = converted.graph or LoadedGraph(converted.artifact)
    return [require_valid_on_given(reference, graph, journal)]


def _other_answers(
    reference: Reference, steady: frozenset[str], batch: NDArray[np.float32]
) -> dict[str, Array]:
    """What the FP32 graph gives for a batch beside its first output, of the ``steady`` ones."""
    others = [spec.name for spec in reference.artifact.outputs[1:] if spec.name in steady]
    if not others:
        return {}
    with reference.runners.of_artifact(reference.artifact) as runner:
        found = runner.run({runner.inputs[0].name: batch})
    return {name: found[name] for name in others}


def _write_cpu_form(
    reference: Reference, graph: LoadedGraph, compared: tuple[Batches, Batches], path: Path
) -> None:
    """Write the form of the graph that a CPU must run to compute what an engine computes.

    Raises:
        ValidationError: a file does not compute what the reference computes.
    """
    artifact, precision = graph.artifact, graph.artifact.precision
    parents = (artifact.sha256, *artifact.parents)
    written = write_model(rounding_form(graph.model), path, precision, parents)
    batches, expected = (each[:1] for each in compared)
    # As proof of what was written; a file that no CPU has kernels for is proven by its form.
    for file in (written,) if artifact.needs_cpu_form else (artifact, written):
        with reference.runners.of_artifact(file) as runner:
            found = outputs_of(runner, batches)
        names = file.path.name, reference.made_by
        report = validate(found, expected, precision=precision, names=names, head=reference.head)
        report.require_pass()


def _compile(
    reference: Reference, converted: Converted, folder: Path, plan: _Plan, journal: Journal
) -> tuple[EngineRecord, ...]:
    if plan.compiler is None:
        journal.notes.append("no engine was built; later: deploykit build BUNDLE")
        return ()
    options = plan.options
    wanted = options.compiling(plan.replacement.place, plan.machine.gpu_index)
    with journal.timed("build engine"):
        record = build_engine(
            converted.artifact,
            folder,
            plan.compiler,
            wanted,
            journal.progress,
            allowed_fp32=converted.kept_heavy,
        )
    expect = partial(_expected, reference, converted)
    run = EngineRun(plan.compiler, plan.machine, journal)
    return (run.first(record, folder / record.file, expect),)


def _expected(reference: Reference, converted: Converted) -> Expected:
    """What the engine must give: the answers that its graph was validated against."""
    batches, outputs = converted.compared
    precision, side = converted.artifact.precision, reference.runners.side
    return Expected(batches, outputs, reference.made_by, precision, reference.head, side)

"""`deploykit inspect`: the layers of a definition, an ``.onnx`` file or a bundle; precisions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._registry import graph_judge
from deploykit.bundle.golden import runners_of_bundle
from deploykit.bundle.manifest import MODEL, REFERENCE
from deploykit.bundle.reading import read_bundle
from deploykit.comparison.reference import Runners
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, Progress, SilentProgress
from deploykit.core.sizes import IMAGE_AXES, ShapeProfile, SizeRange, are_channels_last, are_images
from deploykit.core.specs import TensorSpec
from deploykit.graph import LoadedGraph, describe_layers, read_graph, read_model, tidy
from deploykit.graph.card import Card, card_in
from deploykit.graph.foreign import mended_of
from deploykit.graph.half_range import FP16_MAX
from deploykit.graph.kernel_costs import network_cost
from deploykit.graph.node_precisions import Known, read_precision
from deploykit.graph.shapes import fix_image_size, fixed_batch
from deploykit.images import InputRange, batches, open_images, sample_images
from deploykit.images.batching import batch_sizes, sample_batches
from deploykit.images.preprocessing import MAX_RESIZED_PIXELS
from deploykit.precision import PlanSource, conversion_of
from deploykit.precision.fp16 import HEADROOM, measure_magnitudes, measure_unfit
from deploykit.sources.cards import notes_on_card
from deploykit.sources.definition import SourceOptions, notes_on_images
from deploykit.sources.onnx_inputs import preprocessing_of
from deploykit.sources.references import make_reference
from deploykit.sources.targets import Kind, find_definition, kind_of, refuse_definition_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle, Manifest
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import ModelSpec, Preprocessing
    from deploykit.costs.network import ModelSummary
    from deploykit.graph.node_precisions import GraphPrecision

    Size = tuple[int, int]


@dataclass(frozen=True)
class PrecisionOptions:
    """What is looked at, and from what a plan is made.

    ``precision`` is that of an export that was not made; ``None``: what the graph has, and for an
    FP32 graph the plan of INT8. ``exclude`` are patterns of nodes as of the export. ``batch`` is
    what multiply-adds are counted for, by default as `inspect`; ``source`` is for definitions.
    """

    precision: Precision | None = None
    exclude: tuple[str, ...] = ()
    batch: int | None = None
    source: SourceOptions = field(default_factory=SourceOptions)

    @property
    def planned(self) -> Precision:
        """What a plan is made of."""
        return self.precision or Precision.INT8


@dataclass(frozen=True)
class GivenGraph:
    """The graph that a target already has; ``reasons`` are those that were written down with it."""

    graph: LoadedGraph
    bundle: Bundle | None
    runners: Runners = field(default_factory=Runners)

    @property
    def artifact(self) -> OnnxArtifact:
        """The file of the graph."""
        return self.graph.artifact

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a node is not lower, by its name, as the export recorded it."""
        conversion = {} if self.bundle is None else self.bundle.manifest.conversion
        return {**conversion.get("kept_fp32", {}), **conversion.get("kept", {})}

    @property
    def open_axes(self) -> tuple[str, ...]:
        """Which of height and width the graph leaves open."""
        shapes = [spec.shape for spec in self.artifact.inputs[:1]]
        return tuple(
            label
            for axis, label in IMAGE_AXES.items()
            for shape in shapes
            if len(shape) > axis and isinstance(shape[axis], str)
        )

    def image_size(self, choices: DefinitionChoices) -> Size | None:
        """Height and width where they are open: those asked for, or what a bundle prepares."""
        if choices.size_of_file is not None:
            return choices.size_of_file
        return None if self.bundle is None else self.bundle.manifest.preprocessing.crop


@dataclass(frozen=True)
class Fp32Graph:
    """A verified graph, the images that magnitudes are measured on, and if its weights are real."""

    graph: LoadedGraph
    batches: list[NDArray[np.float32]]
    trained: bool | None
    runners: Runners


def open_given(target: str, options: PrecisionOptions) -> GivenGraph | None:
    """The graph of a file or a bundle; ``None`` for a definition.

    Raises:
        UsageError: an option has no meaning for this target.
        ModelFileError: the file cannot be read.
        BundleError: the folder is no bundle.
        IntegrityError: the bundle's graph is not as it was written.
    """
    if options.exclude and not options.planned.facts.quantized:
        raise UsageError(
            f"--exclude keeps nodes out of INT8 and FP8: leave out --{options.planned}"
        )
    kind, path = kind_of(target), Path(target)
    if kind is Kind.DEFINITION:
        return None
    if kind is Kind.ONNX:
        given = GivenGraph(read_graph(path), None)
    else:
        given = read_bundle(path, _given_of)
    _refuse_choices(target, given, options)
    if not given.artifact.precision.facts.is_source:
        _refuse_plan(target, options, given)
    return given


def _given_of(bundle: Bundle) -> GivenGraph:
    """All of it is read now: later another bundle may be there."""
    bundle.require_unchanged(bundle.model_path.name)
    graph = LoadedGraph(bundle.manifest.onnx, read_model(bundle.model_path))
    return GivenGraph(graph, bundle, runners_of_bundle(bundle))


def prepare_fp32(
    target: str, given: GivenGraph | None, folder: Path, options: PrecisionOptions, journal: Journal
) -> Fp32Graph:
    """The FP32 graph that an export would convert, made in ``folder`` as the export makes it.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    path = folder / MODEL
    if given is not None and given.bundle is not None:
        return _of_bundle(given, given.bundle, options, journal)
    if given is not None:
        given.graph.release()  # what is converted is made of it, and is a graph of its own
        asked = options.source.choices.size_of_file or (None, None)
        height, width = (
            SizeRange(px, px, px) if px is not None and axis in given.open_axes else None
            for axis, px in zip(IMAGE_AXES.values(), asked, strict=True)
        )
        profile = ShapeProfile(height=height, width=width)
        found = make_reference(Path(target), path, journal, options.source, profile)
    else:
        spec = find_definition(target, options.source.choices)
        found = make_reference(spec, path, journal, options.source)
    return Fp32Graph(found.graph, found.batches, found.weights.get("trained"), found.runners)


def _of_bundle(
    given: GivenGraph, bundle: Bundle, options: PrecisionOptions, journal: Journal
) -> Fp32Graph:
    prepared = options.source.choices.preprocessing.applied_to(bundle.manifest.preprocessing)
    journal.notes += notes_on_images(options.source, prepared)
    size = given.image_size(options.source.choices)
    if options.source.choices.size_of_file is not None and size is not None:
        prepared = replace(prepared, crop=size, resize=size)
    sizes = batch_sizes(given.artifact.inputs[0].fixed_batch)
    batches = sample_batches(prepared, options.source.data, sizes)
    trained = bundle.manifest.weights.get("trained")
    return Fp32Graph(given.graph, batches, trained, given.runners)


def _refuse_choices(target: str, given: GivenGraph, options: PrecisionOptions) -> None:
    """A file or bundle is what it is, but for a size that it leaves open."""
    choices, open_axes = options.source.choices, given.open_axes
    fixed = replace(choices, image_size=None, open_size=None) if open_axes else choices
    refuse_definition_options(target, fixed, options.source.weights)
    if open_axes and given.image_size(choices) is None:
        raise UsageError(
            f"{target} takes images whose {' and '.join(open_axes)} may be anything\n"
            "multiply-adds and magnitudes depend on it: --height 224 --width 224, for example, or "
            "--input-size 224"
        )


def _refuse_plan(target: str, options: PrecisionOptions, given: GivenGraph) -> None:
    """What is converted already has nothing to plan, and nothing to measure for it."""
    int8_choices = {
        f"--{options.precision}": options.precision is not None,
        "--exclude": bool(options.exclude),
        "--data": options.source.data is not None,
    }
    asked = next((name for name, is_given in int8_choices.items() if is_given), None)
    if asked is None:
        return
    own, bundle = given.artifact.precision, given.bundle
    lines = [f"{target} is {own} already, and {asked} is for a plan of what is FP32"]
    if bundle is not None and REFERENCE in bundle.manifest.files:
        plan = f"--{options.planned}"
        lines.append(
            f"plan that of its FP32 graph: deploykit inspect {bundle.folder / REFERENCE} {plan}"
        )
    raise UsageError("\n".join([*lines, f"what it has: deploykit inspect {target} --precision"]))


@dataclass(frozen=True)
class Magnitudes:
    """The largest activation of the FP32 graph, on how many images, and where FP16 is left.

    A value beyond ``limit`` stays FP32; ``None`` for a precision of FP32's range.
    """

    images: int
    value: str
    largest: float
    limit: float | None


@dataclass(frozen=True)
class PrecisionReport:
    """The nodes of a graph that is there, or of one that an export would make.

    ``source`` is what other commands take in place of ``target``; ``has_reference`` says if the
    FP32 graph lies with it. ``magnitudes`` belong to a plan.
    """

    target: str
    source: str
    precision: Precision
    graph: GraphPrecision
    magnitudes: Magnitudes | None
    notes: tuple[str, ...]
    has_reference: bool = False

    @property
    def planned(self) -> bool:
        """Whether no file has this graph."""
        return self.magnitudes is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "precision": str(self.precision),
            "planned": self.planned,
            **self.graph.to_dict(),
            "magnitudes": None if self.magnitudes is None else asdict(self.magnitudes),
            "notes": list(self.notes),
        }


def inspect_precision(
    target: str, options: PrecisionOptions, progress: Progress | None = None
) -> PrecisionReport:
    """Read the precision of each node of ``target``, or make the plan of an export and read that.

    A plan needs the FP32 graph, verified as an export does it, and its activations on images.
    INT8 is planned by the rules; what an export tries out on images is noted as open.

    Raises:
        UsageError: options that have no meaning for ``target``.
        DeploykitError: the error of the stage that failed.
    """
    journal = Journal(progress or SilentProgress())
    given = open_given(target, options)
    if given is None or given.artifact.precision.facts.is_source:
        return _plan(target, given, options, journal)
    return _read(target, given, options, journal)


def _read(
    target: str, given: GivenGraph, options: PrecisionOptions, journal: Journal
) -> PrecisionReport:
    precision = given.artifact.precision
    with journal.stage("read"):
        model = given.graph.model.clone()
        tidy(model, rename=False)
        size = given.image_size(options.source.choices)
        if size is not None:
            fix_image_size(model, size)
        run = graph_judge().run_once
        graph = read_precision(model, precision, options.batch or 1, Known(given.reasons), run)
    notes = mended_of(given.graph.model).notes
    if graph.integer_ops:
        found = ", ".join(f"{count} {kind}" for kind, count in graph.integer_ops.items())
        notes = (*notes, f"{found}: TensorRT takes no such operator, only Q/DQ pairs")
    kept = given.bundle is not None and REFERENCE in given.bundle.manifest.files
    return PrecisionReport(target, target, precision, graph, None, notes, kept)


def _plan(
    target: str, given: GivenGraph | None, options: PrecisionOptions, journal: Journal
) -> PrecisionReport:
    precision = options.planned
    with TemporaryDirectory() as folder:
        source = prepare_fp32(target, given, Path(folder), options, journal)
        model = source.graph.model.clone()
        tidy(model, rename=False)
        with journal.stage("magnitudes") as task:
            open_runner = source.runners.measuring
            images = source.batches
            measured = measure_magnitudes(model, images, open_runner=open_runner, task=task)
            amax = measured.amax
            unfit = measure_unfit(model, amax, images, open_runner=open_runner, task=task)
        with journal.stage(f"plan {precision}"):
            conversion = conversion_of(precision)
            artifact = source.graph.artifact
            planned = conversion.plan(PlanSource(artifact, model, amax, unfit, options.exclude))
            fix_image_size(planned.model, source.batches[0].shape[2:])
            run = graph_judge().run_once
            graph = read_precision(planned.model, precision, options.batch or 1, planned.known, run)
    batch = artifact.inputs[0].fixed_batch or options.batch or 1
    largest = max(amax, key=lambda name: amax[name])
    limit = None if precision.facts.overflow is None else FP16_MAX / HEADROOM
    seen = Magnitudes(sum(map(len, images)), largest, amax[largest], limit)
    notes = (
        *journal.notes,
        *_notes(options, source, seen),
        *conversion.notes(planned, graph, batch),
    )
    exported = target if given is None or given.bundle is None else str(given.bundle.model_path)
    return PrecisionReport(target, exported, precision, graph, seen, notes)


def _notes(options: PrecisionOptions, source: Fp32Graph, seen: Magnitudes) -> list[str]:
    notes = []
    if options.precision is None:
        notes.append("it is FP32: this is what --int8 shows; for FP16: --fp16")
    if source.trained is False and seen.limit is not None:
        notes.append("the weights are untrained: trained ones may keep other nodes in FP32")
    if options.source.data is None:
        notes.append(
            f"magnitudes are of {seen.images} photographs that come with deploykit; "
            "of your own images: --data PATH"
        )
    return notes


_NO_CHOICES: Final = DefinitionChoices()


def inspect(
    target: str | ModelSpec, choices: DefinitionChoices = _NO_CHOICES, *, batch: int | None = None
) -> ModelSummary:
    """Rows per layer and totals; a definition is shown as PyTorch modules, a file as nodes.

    Without a ``batch`` they are of the one that a graph is fixed at, or of one image.

    Raises:
        UnknownNameError: ``target`` is neither a file, nor a bundle, nor an architecture.
        ModelFileError: the file cannot be read.
        UsageError: options for definitions are given with a file, or another batch than it takes.
    """
    if not isinstance(target, str):
        return _inspect_definition(target, batch)
    kind = kind_of(target)
    if kind is Kind.DEFINITION:
        return _inspect_definition(find_definition(target, choices), batch)
    if kind is Kind.ONNX:
        return _inspect_file(target, Path(target), choices, batch, None)
    return _inspect_bundle(target, choices, batch)[0]


def _inspect_bundle(
    target: str, choices: DefinitionChoices, batch: int | None
) -> tuple[ModelSummary, Preprocessing]:
    def read(bundle: Bundle) -> tuple[ModelSummary, Preprocessing]:
        bundle.require_unchanged(bundle.model_path.name)
        preprocessing = bundle.manifest.preprocessing
        summary = _inspect_file(target, bundle.model_path, choices, batch, preprocessing.crop)
        return summary, preprocessing

    return read_bundle(Path(target), read)


def manifest_of(target: str) -> Manifest | None:
    """The manifest of a bundle, which names its engines; ``None`` for anything else.

    Raises:
        BundleError: the folder is no bundle.
        IntegrityError: the manifest is not as it was written.
    """
    if kind_of(target) is not Kind.BUNDLE:
        return None
    return read_bundle(Path(target), lambda bundle: bundle.manifest)


@dataclass(frozen=True)
class PreparedInput:
    """How images become the input of a target, and the range that a sample has then."""

    preprocessing: Preprocessing
    range: InputRange
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"input_range": asdict(self.range), "notes": list(self.notes)}


def inspect_with_input(
    target: str, source_options: SourceOptions, *, batch: int | None = None
) -> tuple[ModelSummary, PreparedInput | None]:
    """As `inspect`, with the input that images of ``source_options`` become.

    ``None`` stands for the input of a file that takes no images, or larger ones than the
    photographs that come with deploykit can be scaled to.

    Raises:
        DeploykitError: as `inspect`; the images cannot be read or not be prepared so.
    """
    if kind_of(target) is Kind.DEFINITION:
        spec = find_definition(target, source_options.choices)
        summary = _inspect_definition(spec, batch)
        known, card = spec.preprocessing, Card() if spec.preprocessing_assumed else None
    elif kind_of(target) is Kind.BUNDLE:
        summary, known = _inspect_bundle(target, source_options.choices, batch)
        card = None
    else:
        summary = inspect(target, source_options.choices, batch=batch)
        image = TensorSpec("input", "float32", summary.input_shape)
        card = replace(card_in(Path(target)), head=None, classes=None)
        pixels = None if card.preprocessing is None else card.preprocessing.pixels
        if pixels is not None and pixels.layout == "nhwc" and are_channels_last(image.shape):
            image = image.channels_first()
        if not are_images(image.shape):
            return summary, None
        known = preprocessing_of(card, target, image)
    return summary, _prepared_input(known, source_options, card, Path(target).name)


_SAMPLE: Final = 8
"""Images whose range is looked at, spread over those there are."""


def _prepared_input(
    known: Preprocessing, source_options: SourceOptions, card: Card | None, name: str
) -> PreparedInput | None:
    choices, data = source_options.choices.preprocessing, source_options.data
    prepared = choices.applied_to(known)
    if prod(prepared.crop) > MAX_RESIZED_PIXELS:
        return None
    notes = notes_on_images(source_options, prepared)
    if card is not None:
        notes += notes_on_card(card, name, source_options, prepared)
    source = sample_images() if data is None else open_images(data)
    chosen = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).round().astype(int)
    try:
        # One at a time: inputs may be large, and this is a look at them.
        found = InputRange.of(batch for batch, _ in batches(source, prepared, 1, chosen.tolist()))
    except DataError:
        if data is not None:
            raise
        return None
    return PreparedInput(prepared, found, tuple(notes))


def _inspect_definition(spec: ModelSpec, batch: int | None) -> ModelSummary:
    from deploykit.sources.module_layers import inspect_definition

    return inspect_definition(spec.build, spec.inputs[0].with_batch(batch or 1), spec.name)


def _inspect_file(
    target: str, path: Path, choices: DefinitionChoices, batch: int | None, crop: Size | None
) -> ModelSummary:
    """An open height or width is what the user asks for, or the bundle's ``crop``."""
    read, size = read_graph(path), choices.size_of_file or crop
    model = read.model
    was_open = size is not None and fix_image_size(model, size)
    fixed = replace(choices, image_size=None, open_size=None) if was_open else choices
    refuse_definition_options(target, fixed)
    run, count = graph_judge().run_once, batch or fixed_batch(model) or 1
    summary = describe_layers(model, path.name, count, run)
    if read.artifact.precision.facts.is_source:
        return summary
    tidy(model, rename=False)
    return replace(summary, engine=network_cost(model, count, run))

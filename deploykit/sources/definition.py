"""From a TARGET of the command line to a verified FP32 graph with its reference outputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge, module_judge
from deploykit.comparison.reference import Reference
from deploykit.comparison.validation import outputs_of, require_numbers, validate
from deploykit.core.choices import GREY_ORDER, DefinitionChoices
from deploykit.core.errors import (
    ControlFlowError,
    DeploykitError,
    ExportError,
    ModelFileError,
    ValidationError,
)
from deploykit.core.precision import Precision
from deploykit.core.specs import DEFAULT_HEAD
from deploykit.graph import read_tails
from deploykit.heads import head_named
from deploykit.images import (
    doubts,
    notes_on_data,
    notes_on_reduced,
    open_images,
    sample_indices,
)
from deploykit.images.batching import BATCHES, sample_batches
from deploykit.sources.head_choice import Wish, choose_output
from deploykit.sources.onnx_outputs import answers_of, notes_on_batches, outputs_in

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Journal
    from deploykit.core.specs import ModelSpec, Preprocessing
    from deploykit.graph import LoadedGraph
    from deploykit.heads import Head
    from deploykit.sources.head_choice import OutputChoice


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a target is told before it becomes a graph, and the images that it is verified on.

    Without ``weights`` a definition has its own, or untrained ones from ``seed``; without ``data``
    the images are the photographs that come with deploykit. ``labels`` is how many
    names were given for the classes, ``max_pixels`` what an image file may have.
    """

    weights: str | None = None
    seed: int = 0
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)
    data: Path | None = None
    labels: int | None = None
    max_pixels: int | None = None

    @property
    def wish(self) -> Wish:
        """What the user says of the outputs."""
        return Wish(self.choices.head, self.choices.head_output, self.labels)


GREY_NOTE: Final = (
    "the network takes 1 channel: images are made grey, 0.299 R + 0.587 G + 0.114 B, before they "
    "are resized"
)


def notes_on_images(source_options: SourceOptions, preprocessing: Preprocessing) -> list[str]:
    """That images become grey, what was made of the user's numbers, what is odd, skipped files."""
    return [
        *([GREY_NOTE] if preprocessing.channel_order == GREY_ORDER else []),
        *source_options.choices.preprocessing.conversions(),
        *doubts(preprocessing),
        *notes_on_data(source_options.data),
        *_notes_on_reduced(source_options, preprocessing),
    ]


def _notes_on_reduced(source_options: SourceOptions, preprocessing: Preprocessing) -> list[str]:
    """How many of the images that a graph is compared on are decoded at a part of their size."""
    if source_options.data is None:
        return []
    source = open_images(source_options.data, source_options.max_pixels)
    some = sample_indices(len(source), sum(BATCHES))
    return notes_on_reduced(source, preprocessing, some, "images of the comparison")


def from_definition(
    spec: ModelSpec, path: Path, journal: Journal, source_options: SourceOptions
) -> Reference:
    """Build, load and export a definition; eager torch is the reference.

    Raises:
        WeightsError: the weights cannot be used.
        ControlFlowError: the definition decides by the values of its input.
        ExportError: no exporter takes the definition.
        ValidationError: what they export computes something else.
    """
    with journal.stage("definition"):
        from deploykit.sources.weights import build_with_weights

        module, record = build_with_weights(spec, source_options.weights, source_options.seed)
        choices = source_options.choices.preprocessing
        preprocessing = choices.applied_to(record.preprocessing or spec.preprocessing)
        batches = sample_batches(
            preprocessing, source_options.data, max_pixels=source_options.max_pixels
        )
        with module_judge().open(module, spec.inputs, spec.outputs) as runner:
            outputs = outputs_of(runner, batches)
        deployed = _as_it_runs(spec, module, journal, (batches, outputs))
    journal.notes += [*spec.notes, *notes_on_images(source_options, preprocessing)]
    if spec.preprocessing_assumed:
        journal.notes += choices.assumptions(preprocessing)
    if record.trained is None:
        journal.notes.append(f"weights: {record.source}; whether they are trained is not known")
    elif not record.trained:
        journal.notes.append(f"weights: {record.source}; its answers mean nothing")
    wish = replace(source_options.wish, head=spec.head, output=None)
    exported = _export_verified(spec, deployed, path, journal, (batches, outputs), wish)
    return Reference(
        graph=exported.graph,
        batches=batches,
        outputs=outputs,
        made_by="torch eager",
        report=exported.report,
        model=_describe(spec, exported.choice.head),
        weights={"source": record.source, "sha256": record.sha256, "trained": record.trained},
        preprocessing=preprocessing,
        labels=record.labels or spec.known_labels(),
        conversion={"exporter": exported.exporter, "inference_form": deployed is not module},
        head=exported.choice.head,
        output=exported.choice.name,
    )


def _as_it_runs(
    spec: ModelSpec,
    module: nn.Module,
    journal: Journal,
    expected: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
) -> nn.Module:
    """``module`` as it is meant to run, where that computes the same; otherwise as it is."""
    from deploykit.sources.torch_export import inference_form

    batches, wanted = expected
    try:
        form = inference_form(module)
        if form is None:
            return module
        with module_judge().open(form.module, spec.inputs, spec.outputs) as runner:
            outputs = outputs_of(runner, batches)
        names = ("its form for inference", "torch eager")
        report = validate(
            outputs,
            wanted,
            precision=Precision.FP32,
            names=names,
            head=head_named(spec.head or DEFAULT_HEAD),
        )
        report.require_pass()
    except (ExportError, ValidationError) as exc:
        journal.notes.append(f"it is exported as it was trained: {' '.join(str(exc).splitlines())}")
        return module
    journal.notes += form.notes
    return form.module


@dataclass(frozen=True)
class _Exported:
    """The graph that an exporter made, how it compares, and what its output means."""

    graph: LoadedGraph
    report: ValidationReport
    exporter: str
    choice: OutputChoice


def _export_verified(
    spec: ModelSpec,
    module: nn.Module,
    path: Path,
    journal: Journal,
    expected: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
    wish: Wish,
) -> _Exported:
    from deploykit.sources.torch_export import EXPORTERS, export_module

    require_numbers(expected[1], "torch eager")
    failures: list[DeploykitError] = []
    for exporter in EXPORTERS:
        try:
            with journal.stage("export"):
                graph = export_module(spec, module, path, exporter)
            choice = _meaning(spec, graph, expected[1], wish)
            report = require_equal(graph.artifact, expected, "torch eager", journal, choice.head)
        except ControlFlowError:
            raise  # the other exporter would keep the one branch that it happened to see
        except (ExportError, ModelFileError, ValidationError) as exc:
            failures.append(exc)
            journal.notes.append(f"{exporter} was not used: {' '.join(str(exc).splitlines())}")
        else:
            journal.notes += choice.notes()
            return _Exported(graph, report, exporter, choice)
    # A wrong graph says more than a refusal: it comes with figures.
    raise next((exc for exc in failures if isinstance(exc, ValidationError)), failures[-1])


def _meaning(
    spec: ModelSpec, graph: LoadedGraph, outputs: list[NDArray[np.float32]], wish: Wish
) -> OutputChoice:
    """What the one output of a definition means, by its graph and by what eager torch gave."""
    (output,) = spec.outputs
    answers = [{output.name: one} for one in outputs]
    return choose_output(spec.name, spec.outputs, answers, read_tails(graph.model), wish)


def require_equal(
    artifact: OnnxArtifact,
    expected: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
    made_by: str,
    journal: Journal,
    head: Head,
) -> ValidationReport:
    """Run the graph on batches and hold its outputs against those that ``made_by`` made of them.

    Raises:
        ValidationError: they differ by more than the limits of the graph's precision.
    """
    batches, wanted = expected
    with journal.stage(f"validate {artifact.precision}"):
        with graph_judge().open(artifact.path, GraphOptions()) as runner:
            answers = answers_of(runner, batches)
            outputs = outputs_in(answers, runner.outputs[0].name)
            notes = notes_on_batches(runner, batches, answers, head)
        names = (f"the {artifact.precision} graph", made_by)
        report = validate(outputs, wanted, precision=artifact.precision, names=names, head=head)
        report.require_pass()
    journal.notes += notes
    return report


def _describe(spec: ModelSpec, head: Head) -> dict[str, Any]:
    described = {
        "name": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "year": spec.year,
        "num_classes": None if head.judges_all else spec.num_classes,
        "image_size": list(spec.inputs[0].shape[2:]),
    }
    digest = spec.source_sha256
    return described if digest is None else {**described, "source_sha256": digest}

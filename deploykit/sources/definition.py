"""From a TARGET of the command line to a verified FP32 graph with its reference outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge, module_judge
from deploykit.comparison.reference import Reference
from deploykit.comparison.validation import outputs_of, validate
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import (
    ControlFlowError,
    DeploykitError,
    ExportError,
    ModelFileError,
    ValidationError,
)
from deploykit.core.precision import Precision
from deploykit.heads import head_named
from deploykit.images import doubts, notes_on_data
from deploykit.images.batching import sample_batches

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


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a target is told before it becomes a graph, and the images that it is verified on.

    Without ``weights`` a definition has its own, or untrained ones from ``seed``; without ``data``
    the images are the photographs that come with deploykit.
    """

    weights: str | None = None
    seed: int = 0
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)
    data: Path | None = None


def notes_on_images(source_options: SourceOptions, preprocessing: Preprocessing) -> list[str]:
    """What was made of the user's numbers, what is odd about ``preprocessing``, skipped files."""
    return [
        *source_options.choices.preprocessing.conversions(),
        *doubts(preprocessing),
        *notes_on_data(source_options.data),
    ]


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
        batches = sample_batches(preprocessing, source_options.data)
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
    graph, report, exporter = _export_verified(spec, deployed, path, journal, (batches, outputs))
    return Reference(
        graph=graph,
        batches=batches,
        outputs=outputs,
        made_by="torch eager",
        report=report,
        model=_describe(spec),
        weights={"source": record.source, "sha256": record.sha256, "trained": record.trained},
        preprocessing=preprocessing,
        labels=record.labels or spec.labels,
        conversion={"exporter": exporter, "inference_form": deployed is not module},
        head=head_named(spec.head),
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
            outputs, wanted, precision=Precision.FP32, names=names, head=head_named(spec.head)
        )
        report.require_pass()
    except (ExportError, ValidationError) as exc:
        journal.notes.append(f"it is exported as it was trained: {' '.join(str(exc).splitlines())}")
        return module
    journal.notes += form.notes
    return form.module


def _export_verified(
    spec: ModelSpec,
    module: nn.Module,
    path: Path,
    journal: Journal,
    expected: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]],
) -> tuple[LoadedGraph, ValidationReport, str]:
    from deploykit.sources.torch_export import EXPORTERS, export_module

    head = head_named(spec.head)
    failures: list[DeploykitError] = []
    for exporter in EXPORTERS:
        try:
            with journal.stage("export"):
                graph = export_module(spec, module, path, exporter)
            report = require_equal(graph.artifact, expected, "torch eager", journal, head)
        except ControlFlowError:
            raise  # the other exporter would keep the one branch that it happened to see
        except (ExportError, ModelFileError, ValidationError) as exc:
            failures.append(exc)
            journal.notes.append(f"{exporter} was not used: {' '.join(str(exc).splitlines())}")
        else:
            return graph, report, exporter
    # A wrong graph says more than a refusal: it comes with figures.
    raise next((exc for exc in failures if isinstance(exc, ValidationError)), failures[-1])


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
            outputs = outputs_of(runner, batches)
        names = (f"the {artifact.precision} graph", made_by)
        report = validate(outputs, wanted, precision=artifact.precision, names=names, head=head)
        report.require_pass()
    return report


def _describe(spec: ModelSpec) -> dict[str, Any]:
    described = {
        "name": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "year": spec.year,
        "num_classes": spec.num_classes,
        "image_size": list(spec.inputs[0].shape[2:]),
    }
    digest = spec.source_sha256
    return described if digest is None else {**described, "source_sha256": digest}

"""Converted graphs on a CPU with the arithmetic of an engine, and their comparison with FP32."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from deploykit.comparison.validation import outputs_of, same_images, validate
from deploykit.graph import LoadedGraph
from deploykit.graph.external_weights import split_own
from deploykit.graph.rounding import Stored, computes_narrow, rounding_form

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference, Runners
    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.progress import Journal
    from deploykit.core.specs import Runner
    from deploykit.heads import Head

    Batches = list[NDArray[np.float32]]


FP32_GRAPH: Final = "the fp32 graph"
"""As what gave the FP32 answers on images is called in messages."""

_COMPARED_BATCHES: Final = 2
"""On which the two forms that bound an engine of a quantized graph are held against each other."""


def open_rounding(runners: Runners, graph: LoadedGraph, stored: Stored = Stored.FUSED) -> Runner:
    """Run a graph so that each value is rounded that an engine stores; see `rounding_form`."""
    artifact = graph.artifact
    if artifact.precision.facts.is_source or not computes_narrow(graph.model):
        return runners.of_artifact(artifact)
    form = split_own(rounding_form(graph.model, stored), artifact.path.name)
    if artifact.precision.facts.quantized:
        return runners.open_unoptimised(form)
    return runners.open(form)


def open_as_engine(runners: Runners, artifact: OnnxArtifact, *, fast: bool = False) -> Runner:
    """Run a file with the arithmetic of an engine; ``fast`` in the CPU's own, if it has kernels."""
    if fast and not artifact.needs_cpu_form:
        return runners.of_artifact(artifact)
    return open_rounding(runners, LoadedGraph(artifact))


def require_valid(
    reference: Reference,
    graph: LoadedGraph,
    compared: tuple[Batches, Batches],
    journal: Journal,
    *,
    made_by: str,
    every: Batches | None = None,
) -> ValidationReport:
    """Compare ``graph`` on batches (N, C, H, W) with the outputs that ``made_by`` gave for them.

    ``every`` is as that of `validate_converted`.

    Raises:
        ValidationError: it is not the model any more.
    """
    precision = graph.artifact.precision
    with journal.stage(f"validate {precision}"):
        report, notes = validate_converted(
            reference.runners,
            graph,
            compared,
            names=(f"the {precision} graph", made_by),
            head=reference.head,
            every=every,
        )
        report.require_pass()
    journal.notes += notes
    return report


def require_valid_on_given(
    reference: Reference, graph: LoadedGraph, journal: Journal
) -> ValidationReport:
    """Compare a graph, whose ranges are of other images, on those that the user gave.

    Raises:
        ValidationError: on these it is not the model.
    """
    precision = graph.artifact.precision
    compared = reference.batches, reference.outputs
    names = f"the {precision} graph on the given data", reference.made_by
    with journal.stage(f"validate {precision}"):
        report = _fused(reference.runners, graph, compared, names, reference.head)
        report.require_pass("its ranges are of other images: calibrate on such as these, --calib")
    return report.doubted(same_images(reference.batches))


def validate_converted(
    runners: Runners,
    graph: LoadedGraph,
    compared: tuple[Batches, Batches],
    *,
    names: tuple[str, str],
    head: Head,
    every: Batches | None = None,
) -> tuple[ValidationReport, list[str]]:
    """Compare a graph on batches (N, C, H, W) with the outputs that it should give for them.

    The report is of an engine that fuses what compilers usually fuse. A note says it where one
    that stores every value differs by more than half a limit: by its outputs ``every``, where they
    are known already, see `notes_on_every_value`.

    Raises:
        ValidationError: the outputs do not even have the same shape, or there is nothing in them.
    """
    fused = _fused(runners, graph, compared, names, head)
    return fused, notes_on_every_value(runners, graph, compared, fused, every)


def _fused(
    runners: Runners,
    graph: LoadedGraph,
    compared: tuple[Batches, Batches],
    names: tuple[str, str],
    head: Head,
) -> ValidationReport:
    batches, expected = compared
    with open_rounding(runners, graph) as runner:
        found = outputs_of(runner, batches)
    precision = graph.artifact.precision
    return validate(found, expected, precision=precision, names=names, head=head)


def notes_on_every_value(
    runners: Runners,
    graph: LoadedGraph,
    compared: tuple[Batches, Batches],
    fused: ValidationReport,
    every: Batches | None = None,
) -> list[str]:
    """A sentence where an engine that stores every value differs by more than half a limit.

    ``fused`` is the report of one that fuses; ``every`` are the other's outputs, where they are
    known already, of each image alone. Otherwise it is run on the batches ``compared``; a quantized
    graph, which takes its time, on the first two. A difference that is gone where the batches are
    the same is none of rounding: images depend on one another, which the export of FP32 says.
    """
    if not computes_narrow(graph.model):
        return []
    batches, expected = compared

    def differs(outputs: Batches) -> list[str]:
        other = validate(
            outputs,
            expected[: len(outputs)],
            precision=fused.precision,
            names=(fused.candidate, fused.reference),
            head=fused.head,
        )
        return _difference(replace(fused, batches=fused.batches[: len(outputs)]), other)

    if every is not None and not differs(every):
        return []
    few = _COMPARED_BATCHES if fused.precision.facts.quantized else None
    with open_rounding(runners, graph, Stored.EVERY) as runner:
        return differs(outputs_of(runner, batches[:few]))


def _difference(fused: ValidationReport, every: ValidationReport) -> list[str]:
    limits = fused.precision.facts.limits
    broken = sum(batch.non_finite for batch in every.batches)
    if broken and not any(batch.non_finite for batch in fused.batches):
        said = f"{broken} of its {fused.head.noun} are NaN or infinite in an engine that stores"
        return [f"{fused.candidate} may overflow: {said} every value, none in one that fuses"]
    if broken:  # in both: the report says that, and there is nothing to compare
        return []
    error, cosine = _worst(fused)
    other_error, other_cosine = _worst(every)
    near = abs(error - other_error) <= limits.max_relative / 2
    if near and abs(cosine - other_cosine) <= (1 - limits.min_cosine) / 2:
        return []
    form = "cosine {:.6f}, largest error {:.1e} of the largest value"
    here, there = form.format(cosine, error), form.format(other_cosine, other_error)
    return [f"{fused.candidate}: {here}; in an engine that stores every value: {there}"]


def _worst(report: ValidationReport) -> tuple[float, float]:
    return (
        max(batch.max_relative for batch in report.batches),
        min(batch.min_cosine for batch in report.batches),
    )

"""Comparison of a converted graph with FP32: on the sample, or on images that are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.comparison.converted import validate_converted
from deploykit.precision.quantization.noise import judged_answers

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.comparison.reference import Reference
    from deploykit.comparison.validation import ValidationReport
    from deploykit.core.progress import Journal
    from deploykit.graph import LoadedGraph

    Batches = list[NDArray[np.float32]]
    Answers = Mapping[str, NDArray[np.float32]]

FP32_GRAPH: Final = "the fp32 graph"
"""As what made the answers on held-out images is called in messages."""


def validated(
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


def fp32_answers(reference: Reference, batches: Batches) -> tuple[list[Answers], Batches]:
    """What the FP32 graph gives for each batch: every judged output by name, and the first."""
    with reference.runners.open(reference.graph.split()) as runner:
        answers = judged_answers(runner, batches, reference.head)
    return answers, [next(iter(one.values())) for one in answers]

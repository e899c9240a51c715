"""A lower precision that is slower than a higher one, and the layers that may be why.

The usual cause is layers that only convert: reformats, and Q/DQ pairs that were not fused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from deploykit.backends import GPU
from deploykit.backends._registry import find_backend
from deploykit.benchmarking.report.two_runs import ComparedPair, outcome_of
from deploykit.benchmarking.statistics.comparing import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.backends import LayerConversion
    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun
    from deploykit.benchmarking.statistics.comparing import Ratio
    from deploykit.core.precision import Precision

    Conversions = Sequence[LayerConversion] | None

_SHOWN: Final = 3
_WIDEST: Final = 60  # characters of a layer's name, which has those of all that was fused


def slower_sentence(
    lower: Precision, higher: Precision, ratio: Ratio, conversions: Conversions
) -> str:
    """What is said of a lower precision whose time is ``ratio`` times that of a higher one.

    ``conversions`` are those of its engine; ``None`` where they are not known.
    """
    return (
        f"{lower} takes {ratio.value:.2f} times as long as {higher} "
        f"({ratio.low:.2f} to {ratio.high:.2f}); {conversions_sentence(conversions)}"
    )


def conversions_sentence(conversions: Conversions) -> str:
    """How many layers only convert, and the first of them; those inside the network before others.

    >>> conversions_sentence(())
    'no layer of its engine only converts'
    """
    if conversions is None:
        return "which layers of its engine only convert is not known"
    if not conversions:
        return "no layer of its engine only converts"
    ordered = sorted(conversions, key=lambda each: each.at_border)
    shown = [_brief(each) for each in ordered[:_SHOWN]]
    shown += [f"and {len(ordered) - _SHOWN} more"] if len(ordered) > _SHOWN else []
    count = "1 layer" if len(ordered) == 1 else f"{len(ordered)} layers"
    converts = "only converts" if len(ordered) == 1 else "only convert"
    return f"{count} of its engine {converts}: {', '.join(shown)}"


def _brief(conversion: LayerConversion) -> str:
    name = conversion.neighbour
    short = name if len(name) <= _WIDEST else f"{name[: _WIDEST - 3]}..."
    return replace(conversion, neighbour=short).sentence


def with_notes_on_slower(run: BenchmarkRun) -> BenchmarkRun:
    """The run with a note at each result on a GPU that a higher precision beats.

    Compared are results of one model, backend, batch and scenario, by the rule of
    ``bench --compare``: an interval that leaves out 1, and 2 %.
    """
    noted = [_noted(result, run.results) for result in run.results]
    return replace(run, results=tuple(noted))


def _noted(result: BenchmarkResult, others: Sequence[BenchmarkResult]) -> BenchmarkResult:
    notes = tuple(_notes(result, others))
    return replace(result, notes=(*result.notes, *notes)) if notes else result


def _notes(result: BenchmarkResult, others: Sequence[BenchmarkResult]) -> Iterator[str]:
    # A CPU emulates lower precisions, and says so.
    if find_backend(result.subject.backend).device != GPU:
        return
    for other in others:
        if not _is_higher(other, result):
            continue
        outcome = outcome_of(other, result)
        if not isinstance(outcome, ComparedPair) or outcome.comparison.differences:
            continue
        if outcome.verdict is Verdict.SLOWER:
            precisions = result.subject.precision_asked, other.subject.precision_asked
            said = slower_sentence(*precisions, outcome.comparison.ratio, result.conversions)
            yield f"{said}; measured one after the other, to be sure: deploykit bench --ab"


def _is_higher(other: BenchmarkResult, result: BenchmarkResult) -> bool:
    """Whether ``other`` is the same but for more bits in its products."""
    if _cell(other) != _cell(result):
        return False
    bits = [each.subject.precision_asked.facts.operand_bits for each in (other, result)]
    return bits[0] > bits[1]


def _cell(result: BenchmarkResult) -> tuple[str, str, int, str]:
    subject = result.subject
    return subject.model, subject.backend, subject.batch, result.switches.scenario

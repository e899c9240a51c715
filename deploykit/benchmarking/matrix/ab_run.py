"""`deploykit bench --ab A B`: two models in one process, in turn, after A against itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends import GPU, LayerConversion
from deploykit.backends._registry import unavailable_backends
from deploykit.benchmarking.harness.interleaved import check_rounds, interleave
from deploykit.benchmarking.harness.system import SystemUnderTest
from deploykit.benchmarking.machine.conditions import watch
from deploykit.benchmarking.matrix.cells import Matrix, plan_cells
from deploykit.benchmarking.matrix.child import ANSWER
from deploykit.benchmarking.matrix.measuring import (
    conversions_of,
    fitting,
    open_cell,
    subject_of,
)
from deploykit.benchmarking.matrix.processes import ChildFailure
from deploykit.benchmarking.report.slower import conversions_sentence
from deploykit.benchmarking.results import to_line
from deploykit.benchmarking.statistics.ab import AbReport, Rounds, report_of, report_to_plain
from deploykit.benchmarking.statistics.comparing import Verdict
from deploykit.core import environment
from deploykit.core.atomic import write_whole
from deploykit.core.errors import DataError
from deploykit.core.progress import Progress, SilentProgress
from deploykit.core.serialization import from_plain, to_plain
from deploykit.sources.targets import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from deploykit.benchmarking.harness.system import Clock
    from deploykit.benchmarking.matrix.cells import Cell, PreparedCell
    from deploykit.benchmarking.matrix.steps import Steps
    from deploykit.benchmarking.results import Switches
    from deploykit.core.precision import Precision
    from deploykit.core.progress import ProgressTask
    from deploykit.runtime.choice import Machine

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class AbOptions:
    """What to measure in turn; ``None`` for the precision and backend that are usual here."""

    targets: tuple[str, str]
    batch: int
    precision: Precision | None
    backend: str | None
    rounds: int
    output: Path


@dataclass(frozen=True)
class AbRun:
    """The verdict, what was measured, and where every query is kept.

    ``conversions`` are B's layers that compute nothing; ``None`` where they are not known.
    """

    a: Cell
    b: Cell
    report: AbReport
    condition: tuple[str, ...]
    file: Path
    conversions: tuple[LayerConversion, ...] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Which layers of B only convert, where it is slower than A in a lower precision."""
        bits = [cell.precision.facts.operand_bits for cell in (self.a, self.b)]
        if self.report.verdict is not Verdict.SLOWER or bits[0] <= bits[1]:
            return ()
        return (f"B: {conversions_sentence(self.conversions)}",)


def run_to_plain(run: AbRun) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "a": to_plain(run.a),
        "b": to_plain(run.b),
        **report_to_plain(run.report),
        "condition": list(run.condition),
        "conversions": to_plain(run.conversions),
        "file": str(run.file),
    }


def bench_ab(
    options: AbOptions,
    steps: Steps,
    own_precision: Mapping[str, Precision],
    progress: Progress | None = None,
) -> AbRun:
    """Prepare both models, measure them in turn, judge, and write every query to a file.

    Raises:
        UsageError: too few rounds, or another scenario than single-stream.
        DataError: one of them cannot be prepared, or the measurement ended early.
        EngineIncompatibleError: no backend that was asked for works here.
        BundleError: the file cannot be written.
    """
    progress = progress or SilentProgress()
    check_rounds(steps.switches, options.rounds)
    a, b = (_cell(target, options, own_precision) for target in options.targets)
    with progress.step("bench A and B") as task:
        try:
            prepared_a = _prepared(steps, a, task)
            prepared_b = prepared_a if b == a else _prepared(_apart(steps, a, b), b, task)
            answer = steps.rounds(prepared_a, prepared_b, options.rounds, task)
        except ChildFailure as failure:
            raise DataError(f"A against B was not measured: {failure.reason}") from failure
    rounds = from_plain(Rounds, answer["rounds"], ANSWER)
    report = report_of(rounds, seed=steps.switches.seed)
    body = {"schema_version": SCHEMA_VERSION, "verdict": report_to_plain(report), **answer}
    write_whole(options.output, to_line(body) + "\n")
    condition = tuple(answer["condition"])
    return AbRun(a, b, report, condition, options.output, conversions_of_b(answer))


def measure_ab(
    pair: tuple[PreparedCell, PreparedCell],
    switches: Switches,
    count: int,
    machine: Machine,
    *,
    clock: Clock,
    task: ProgressTask,
) -> dict[str, Any]:
    """Both in this process; plain data with every query.

    Raises:
        UsageError: too few rounds, or another scenario than single-stream.
        DeploykitError: what opening or running a model raises.
    """
    a, b = pair
    switches = fitting(switches, a.cell.backend)
    with (
        open_cell(a, switches, machine) as (runner_a, feeds_a, queue_a),
        open_cell(b, switches, machine) as (runner_b, feeds_b, queue_b),
    ):
        on_gpu = any(each.cell.device == GPU for each in pair)

        def in_turn(on_warm: Callable[[], None]) -> Rounds:
            side_a = SystemUnderTest(runner_a, feeds_a, clock, on_warm, queue_a)
            side_b = SystemUnderTest(runner_b, feeds_b, clock, on_warm, queue_b)
            return interleave(side_a, side_b, switches, rounds=count, task=task)

        rounds, conditions = watch(in_turn, on_gpu=on_gpu)
        conversions = {
            "a": conversions_of(runner_a, feeds_a)[0],
            "b": conversions_of(runner_b, feeds_b)[0],
        }
    return {
        "subjects": to_plain({"a": subject_of(a), "b": subject_of(b)}),
        "switches": to_plain(switches),
        "rounds": to_plain(rounds),
        "environment": {**to_plain(environment.describe()), "conditions": to_plain(conditions)},
        "condition": list(conditions.sentences()),
        "conversions": to_plain(conversions),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True)
class _OfB:
    b: tuple[LayerConversion, ...] | None


def conversions_of_b(answer: Mapping[str, Any]) -> tuple[LayerConversion, ...] | None:
    """B's layers that compute nothing, from what `measure_ab` gives."""
    return from_plain(_OfB, {"b": answer["conversions"]["b"]}, ANSWER).b


def _cell(target: str, options: AbOptions, own_precision: Mapping[str, Precision]) -> Cell:
    matrix = Matrix(
        targets=(target,),
        batches=(options.batch,),
        precisions=None if options.precision is None else (options.precision,),
        backends=None if options.backend is None else (options.backend,),
        only_best=True,
    )
    return plan_cells(matrix, unavailable_backends(environment.gpus()), own_precision)[0]


def _prepared(steps: Steps, cell: Cell, task: ProgressTask) -> PreparedCell:
    return steps.prepared(cell, steps.graph(cell, [cell.batch], task), task)


def _apart(steps: Steps, a: Cell, b: Cell) -> Steps:
    """Another working folder for B where two files of one name would be exported to one place."""
    if name_of(a.target) != name_of(b.target):
        return steps
    return replace(steps, work=steps.work / "b")

"""A new engine against one of the FP32 graph that its own came from, in turn, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.harness.interleaved import ROUNDS
from deploykit.benchmarking.matrix.ab_run import conversions_of_b, measure_ab
from deploykit.benchmarking.matrix.cells import BuiltEngine, Cell, CellGraph, PreparedCell
from deploykit.benchmarking.matrix.child import ANSWER
from deploykit.benchmarking.matrix.measuring import SYSTEM
from deploykit.benchmarking.report.slower import slower_sentence
from deploykit.benchmarking.results import Switches
from deploykit.benchmarking.statistics.ab import AbReport, Rounds, report_of, report_to_plain
from deploykit.benchmarking.statistics.comparing import Verdict
from deploykit.core.serialization import from_plain, to_plain
from deploykit.core.sizes import BATCH_AXIS, IMAGE_AXES

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import LayerConversion
    from deploykit.core.artifacts import EngineRecord, OnnxArtifact
    from deploykit.core.precision import Precision
    from deploykit.core.progress import ProgressTask
    from deploykit.runtime.choice import Machine

SWITCHES: Final = Switches(
    scenario="single-stream",
    cuda_graph=True,
    transfers=False,
    streams=1,
    spin=True,
    warmup_s=0.5,
    duration_s=1.0,
    min_samples=4 * ROUNDS,
    seed=0,
)
"""The kernels alone: without copies and launches, which no precision changes."""


@dataclass(frozen=True)
class BuiltFrom:
    """An engine in a file, and the graph that it was compiled from."""

    graph: OnnxArtifact
    record: EngineRecord
    plan: Path


@dataclass(frozen=True)
class SourceSpeed:
    """How long the engine takes (B) against its source's (A), at one batch.

    ``conversions`` are the engine's layers that compute nothing; ``None`` if they are not known.
    """

    precision: Precision
    source: Precision
    batch: int
    report: AbReport
    conversions: tuple[LayerConversion, ...] | None
    condition: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The verdict, and what there is to doubt."""
        ratio = self.report.comparison.ratio
        interval = f"{ratio.value:.2f} times as long as {self.source}"
        bounds = f"({ratio.low:.2f} to {ratio.high:.2f})"
        said = {
            Verdict.SLOWER: slower_sentence(self.precision, self.source, ratio, self.conversions),
            Verdict.FASTER: f"{self.precision} takes {interval} {bounds}",
            Verdict.NO_DIFFERENCE: f"{self.precision} is as fast as {self.source}: {interval} "
            f"{bounds}, a verdict needs {self.report.comparison.min_effect:.1%}",
        }[self.report.verdict]
        return (f"batch {self.batch}: {said}", *self.condition, *self.report.notes)


def speed_to_plain(speed: SourceSpeed) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {**to_plain(speed), "report": report_to_plain(speed.report)}


def speed_against_source(
    engine: BuiltFrom,
    source: BuiltFrom,
    image: tuple[int, int],
    machine: Machine,
    task: ProgressTask,
) -> SourceSpeed:
    """Measure both in turn, with noise at the batch that the engine is tuned for.

    ``image`` is the height and width where they are open.

    Raises:
        DeploykitError: what opening or running an engine raises.
    """
    batch = _batch(engine.record, image)
    pair = _prepared(source, batch, image), _prepared(engine, batch, image)
    answer = measure_ab(pair, SWITCHES, ROUNDS, machine, clock=SYSTEM, task=task)
    report = report_of(from_plain(Rounds, answer["rounds"], ANSWER), seed=SWITCHES.seed)
    return SourceSpeed(
        precision=engine.record.precision,
        source=source.record.precision,
        batch=batch,
        report=report,
        conversions=conversions_of_b(answer),
        condition=tuple(answer["condition"]),
    )


def _batch(record: EngineRecord, image: tuple[int, int]) -> int:
    """The preferred batch of the first profile that has images of this size."""
    sizes = dict(zip(IMAGE_AXES, image, strict=True))
    found = (
        each.opt_batch
        for each in record.profile.profiles
        if each.takes({BATCH_AXIS: each.opt_batch, **sizes})
    )
    return next(found, record.profile.opt_batch)


def _prepared(built: BuiltFrom, batch: int, image: tuple[int, int]) -> PreparedCell:
    graph, record = built.graph, built.record
    name = graph.path.name
    cell = Cell(str(graph.path), name, record.compiler, record.precision, batch)
    made_from = CellGraph(
        path=str(graph.path),
        sha256=graph.sha256,
        precision=graph.precision,
        computes=graph.precision,
        folder=None,
        own=False,
        limits={},
        notes=(),
        image=image,
    )
    engine = BuiltEngine(
        path=str(built.plan),
        sha256=record.sha256,
        compiler=record.compiler,
        compiler_version=record.compiler_version,
        precision=record.precision,
        profile=record.profile,
        cache=None,
        notes=(),
    )
    return PreparedCell(cell, made_from, engine, None)

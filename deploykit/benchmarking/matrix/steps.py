"""The steps of a measurement, each in a process of its own with its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.matrix.cells import (
    BuiltEngine,
    CellGraph,
    PreparedCell,
    prepared_to_plain,
)
from deploykit.benchmarking.matrix.child import ANSWER
from deploykit.benchmarking.matrix.processes import ProcessLimits, call
from deploykit.benchmarking.results import BenchmarkResult
from deploykit.core.choices import DefinitionChoices
from deploykit.core.serialization import from_plain, to_plain
from deploykit.costs.peaks import peak_to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from threading import Event

    from deploykit.benchmarking.matrix.cells import Cell
    from deploykit.benchmarking.results import Switches
    from deploykit.core.progress import ProgressTask
    from deploykit.costs.peaks import DevicePeak


PREPARE_S: Final = 3600
"""Time for an export, or for TensorRT to try out its kernels: minutes, for the largest networks."""

_MAX_JOBS: Final = 4
_BYTES_OF_A_JOB: Final = 8 * 10**9

MEMORY_SHARE: Final = 0.9
"""Of the machine's memory, for one process: beyond that the system starts to kill or to swap."""


@dataclass(frozen=True)
class Steps:
    """How one cell is prepared and measured; what is set here is the same for all cells.

    ``work`` is where graphs and engines are kept for the next run. ``jobs`` graphs are prepared at
    a time; nothing else runs beside a measurement. ``peaks`` has the best rates of "cpu" and "gpu"
    as far as they are known. ``choices`` has the head, and its output, that is said of what is
    exported. ``call`` runs one step. Each method raises `ChildFailure` where its
    process fails.
    """

    switches: Switches
    work: Path
    limits: ProcessLimits
    prepare_limits: ProcessLimits
    jobs: int = 1
    peaks: Mapping[str, DevicePeak] = field(default_factory=dict)
    call: Callable[..., dict[str, Any]] = field(default=call)
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)

    def graph(
        self, cell: Cell, batches: Iterable[int], task: ProgressTask, stop: Event | None = None
    ) -> CellGraph:
        """The verified graph of a cell, with its limits for all ``batches``."""
        request = {
            "target": cell.target,
            "precision": cell.precision,
            "work": str(self.work),
            "batches": sorted(batches),
            "head": self.choices.head,
            "head_output": self.choices.head_output,
            "peaks": {device: peak_to_plain(peak) for device, peak in self.peaks.items()},
        }
        answer = self.call("graph", request, self.prepare_limits, progress=task, stop=stop)
        return from_plain(CellGraph, answer, ANSWER)

    def prepared(self, cell: Cell, graph: CellGraph, task: ProgressTask) -> PreparedCell:
        """A cell with its engine, where it needs one."""
        engine = None
        if cell.runs_an_engine:
            request = to_plain({"cell": cell, "graph": graph, "work": self.work})
            answer = self.call("engine", request, self.prepare_limits, progress=task)
            engine = from_plain(BuiltEngine, answer, ANSWER)
        peak = self.peaks.get(cell.device)
        return PreparedCell(cell, graph, engine, None if peak is None else peak_to_plain(peak))

    def result(self, prepared: PreparedCell, task: ProgressTask) -> BenchmarkResult:
        """The measurement of a cell."""
        request = {**prepared_to_plain(prepared), "switches": to_plain(self.switches)}
        answer = self.call("cell", request, self.limits, progress=task)
        return from_plain(BenchmarkResult, answer, ANSWER)

    def rounds(
        self, a: PreparedCell, b: PreparedCell, count: int, task: ProgressTask
    ) -> dict[str, Any]:
        """Two cells in turn, in one process."""
        request = {
            "a": prepared_to_plain(a),
            "b": prepared_to_plain(b),
            "switches": to_plain(self.switches),
            "rounds": count,
        }
        return self.call("ab", request, self.limits, progress=task)


def process_limits(
    cell_s: float,
    memory_bytes: int | None,
    physical_bytes: int | None,
    visible_gpus: str | None = None,
) -> tuple[ProcessLimits, ProcessLimits]:
    """For a measurement and for what is made before it; ``None`` for `MEMORY_SHARE`.

    ``visible_gpus`` is `ProcessLimits.visible_gpus` of both.
    """
    if memory_bytes is None and physical_bytes is not None:
        memory_bytes = int(physical_bytes * MEMORY_SHARE)
    measuring, preparing = (
        ProcessLimits(time_s, memory_bytes, visible_gpus=visible_gpus)
        for time_s in (cell_s, PREPARE_S)
    )
    return measuring, preparing


def usual_jobs(logical_cores: int, physical_bytes: int | None) -> int:
    """Exports at a time: one has little to do for a second core, and may take 4 GB."""
    if physical_bytes is None:
        return 1
    return max(1, min(_MAX_JOBS, logical_cores, physical_bytes // _BYTES_OF_A_JOB))

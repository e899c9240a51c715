"""Cell after cell, each step in a process of its own; what fails is noted and the rest goes on."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

from deploykit.benchmarking.runs import Failure
from deploykit.pipeline.benchmark.processes import ChildFailure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.pipeline.benchmark.cells import Cell
    from deploykit.pipeline.benchmark.countdown import Countdown
    from deploykit.pipeline.benchmark.notebook import Notebook
    from deploykit.pipeline.benchmark.prepared import Graph
    from deploykit.pipeline.benchmark.steps import Steps
    from deploykit.specs import Precision

    Source = tuple[str, Precision]


class Campaign:
    """Measures a list of cells into a notebook, which may hold some of them already."""

    def __init__(self, cells: Sequence[Cell], steps: Steps, notebook: Notebook) -> None:
        self._planned = {cell.key for cell in cells}
        self._steps = steps
        self._notebook = notebook
        self._graphs: dict[Source, Graph] = {}
        self._open = deque(self._unfinished(cells))

    @property
    def length(self) -> int:
        """Graphs to prepare and cells to measure that are still to be done."""
        return len(self._sources()) + len(self._open)

    def run(self, countdown: Countdown) -> None:
        """Prepare every graph, then measure every cell.

        All graphs first, several at a time: while a cell is measured nothing else may run.

        Raises:
            BundleError: the notebook cannot be written; what it has is kept.
        """
        self._prepare_all(countdown)
        while self._open:
            cell = self._open.popleft()
            if cell not in self._notebook:
                self._do(cell, countdown)

    def _unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """What is not in the notebook, with the smaller batches that stand in for failed ones."""
        found = []
        for cell in cells:
            current: Cell | None = cell
            while current is not None and current in self._notebook:
                current = self._stand_in(current, self._notebook.failure_of(current))
            if current is not None:
                found.append(current)
        return found

    def _sources(self) -> dict[Source, list[Cell]]:
        found: dict[Source, list[Cell]] = {}
        for cell in self._open:
            found.setdefault((cell.target, cell.precision), []).append(cell)
        return found

    def _prepare_all(self, countdown: Countdown) -> None:
        sources, stop = self._sources(), Event()
        prepare = partial(self._prepare, countdown, stop)
        with ThreadPoolExecutor(self._steps.jobs) as pool:
            try:
                outcomes = list(pool.map(prepare, sources.values()))
            except BaseException:  # an interrupt reaches this thread alone
                pool.shutdown(wait=False, cancel_futures=True)
                stop.set()
                raise
        for (source, cells), (outcome, seconds) in zip(sources.items(), outcomes, strict=True):
            if isinstance(outcome, ChildFailure):
                for cell in cells:
                    self._note(cell, outcome, seconds)
            else:
                self._graphs[source] = outcome

    def _prepare(
        self, countdown: Countdown, stop: Event, cells: Sequence[Cell]
    ) -> tuple[Graph | ChildFailure, float]:
        batches = {part for cell in cells for part in _halvings(cell.batch)}
        begin_s = monotonic()
        with countdown.step(f"{cells[0].model} {cells[0].precision}") as task:
            try:
                return self._steps.graph(cells[0], batches, task, stop), monotonic() - begin_s
            except ChildFailure as failure:
                return failure, monotonic() - begin_s

    def _do(self, cell: Cell, countdown: Countdown) -> None:
        graph = self._graphs[cell.target, cell.precision]
        begin_s = monotonic()
        with countdown.step(cell.key) as task:
            try:
                prepared = self._steps.prepared(cell, graph, task)
                self._notebook.add(cell, self._steps.result(prepared, task))
            except ChildFailure as failure:
                self._note(cell, failure, monotonic() - begin_s)
                smaller = self._stand_in(cell, self._notebook.failure_of(cell))
                if smaller is not None:
                    countdown.add(1)
                    self._open.appendleft(smaller)

    def _note(self, cell: Cell, failure: ChildFailure, seconds: float) -> None:
        entry = Failure(
            model=cell.model,
            precision=cell.precision,
            backend=cell.backend,
            batch=cell.batch,
            kind=failure.kind,
            reason=failure.reason,
            seconds=seconds,
        )
        self._notebook.add(cell, entry)

    def _stand_in(self, cell: Cell, failure: Failure | None) -> Cell | None:
        """The next smaller batch after one that did not fit, unless it is measured anyway."""
        if failure is None or failure.kind != "out of memory" or cell.batch == 1:
            return None
        smaller = cell.with_batch(cell.batch // 2)
        return None if smaller.key in self._planned else smaller


def _halvings(batch: int) -> list[int]:
    """The batch and what may stand in for it: 8, 4, 2, 1."""
    return [batch >> shift for shift in range(batch.bit_length())]

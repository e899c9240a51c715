"""A run over the cells: each step in a process; a failure is recorded and the rest goes on.

Results are kept line by line in a checkpoint, so that an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.matrix.processes import ChildFailure
from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure, to_line
from deploykit.core.errors import BundleError, DataError
from deploykit.core.serialization import Source, from_plain, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.benchmarking.matrix.cells import Cell, CellGraph
    from deploykit.benchmarking.matrix.steps import Steps
    from deploykit.core.precision import Precision
    from deploykit.core.progress import ProgressTask

    GraphKey = tuple[str, Precision]


_DIGITS: Final = 12


class Checkpoint:
    """The results and failures of one run, in a file that is gone when the run is complete.

    Its name depends on everything in ``identity``: the same command on the same machine finds it,
    another one does not. A last line that was cut off is dropped.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"unfinished-{digest[:_DIGITS]}.jsonl"
        self._entries: dict[str, BenchmarkResult | CellFailure] = {}
        self._size = 0
        self._read()
        self.found = len(self._entries)
        """Entries of an earlier start."""

    def __contains__(self, cell: Cell) -> bool:
        """Whether the cell was measured, or failed, already."""
        return cell.key in self._entries

    def __len__(self) -> int:
        """Cells that are done."""
        return len(self._entries)

    def failure_of(self, cell: Cell) -> CellFailure | None:
        """Why the cell failed; ``None`` where it did not."""
        entry = self._entries.get(cell.key)
        return entry if isinstance(entry, CellFailure) else None

    def add(self, cell: Cell, entry: BenchmarkResult | CellFailure) -> None:
        """Keep an entry, on disk before this returns.

        Raises:
            BundleError: the disk refuses; what was kept before is still there.
        """
        kind = "failure" if isinstance(entry, CellFailure) else "result"
        line = to_line({kind: entry}).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(line)
        except OSError as error:
            raise BundleError(
                f"cannot write {self.path}: {error.strerror or error}\n"
                f"{len(self)} cells that were measured are kept there\n"
                "make room and give the same command: it goes on from there"
            ) from error
        self._entries[cell.key] = entry

    def run(self) -> BenchmarkRun:
        """Everything so far, in the order of measuring."""
        entries = self._entries.values()
        return BenchmarkRun(
            tuple(each for each in entries if isinstance(each, BenchmarkResult)),
            tuple(each for each in entries if isinstance(each, CellFailure)),
        )

    def discard(self) -> None:
        """Remove the file: the run is complete and kept elsewhere, or is to begin anew."""
        self.path.unlink(missing_ok=True)
        self._entries.clear()
        self._size = self.found = 0

    def _append(self, line: bytes) -> None:
        with self.path.open("ab") as file:
            file.truncate(self._size)  # what a full disk or a crash left of a line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise BundleError(f"cannot read {self.path}: {error.strerror or error}") from error
        for line in content.splitlines(keepends=True):
            entry = _entry(line)
            if entry is None:
                return
            self._entries[entry.key] = entry
            self._size += len(line)


def _entry(line: bytes) -> BenchmarkResult | CellFailure | None:
    """What a line holds; ``None`` for one that is not whole."""
    if not line.endswith(b"\n"):
        return None
    source = Source("a line")
    try:
        ((kind, data),) = parse_json(line, source).items()
        if kind == "failure":
            return from_plain(CellFailure, data, source)
        return from_plain(BenchmarkResult, data, source)
    except (ValueError, AttributeError, TypeError, DataError):
        return None


_FIRST: Final = 2
"""Steps after which their mean says something about the next ones."""

WARM_UP: Final = "warm-up"
"""What the harness calls the part of a measurement that does not count."""

_WARM_UP_SHARE: Final = 0.3

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


class RemainingTime:
    """Shows ``total`` steps on one progress task; all are expected to take equally long."""

    def __init__(
        self, task: ProgressTask, total: int, *, now_s: Callable[[], float] = monotonic
    ) -> None:
        self._task = task
        self._total = total
        self._done = 0
        self._now_s = now_s
        self._begin_s = now_s()

    def add(self, count: int) -> None:
        """More steps than were expected."""
        self._total += count

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        """One step; what it reports itself moves the bar within it."""
        self._show(0.0, name)
        yield _Step(self._show, name)
        self._done += 1
        self._show(0.0, name)

    def _show(self, share: float, detail: str) -> None:
        done = self._done + share
        self._task.update(done, self._total, f"{detail}{self._left(done)}")

    def _left(self, done: float) -> str:
        if self._done < _FIRST:
            return ""
        elapsed_s = self._now_s() - self._begin_s
        return f", about {duration(elapsed_s / done * (self._total - done))} left"


@dataclass
class _Step:
    show: Callable[[float, str], None]
    name: str
    share: float = 0.0

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        """Move the bar within the step, never back; a step without a total stands still."""
        share = min(1.0, done / total) if total else 0.0
        if detail == WARM_UP:
            share *= _WARM_UP_SHARE
        self.share = max(self.share, share)
        self.show(self.share, f"{self.name} {detail}".rstrip())


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(42.3), duration(150), duration(5400)
    ('43 s', '3 min', '1.5 h')
    """
    if seconds < _MINUTE_S:
        return f"{ceil(seconds)} s"
    if seconds < _HOUR_S:
        return f"{ceil(seconds / _MINUTE_S)} min"
    return f"{seconds / _HOUR_S:.1f} h"


class MatrixRun:
    """Measures a list of cells into a notebook, which may hold some of them already."""

    def __init__(self, cells: Sequence[Cell], steps: Steps, checkpoint: Checkpoint) -> None:
        self._planned = {cell.key for cell in cells}
        self._steps = steps
        self._checkpoint = checkpoint
        self._graphs: dict[GraphKey, CellGraph] = {}
        self._open = deque(self._unfinished(cells))

    @property
    def length(self) -> int:
        """Graphs to prepare and cells to measure that are still to be done."""
        return len(self._sources()) + len(self._open)

    def run(self, remaining: RemainingTime) -> None:
        """Prepare every graph, then measure every cell.

        All graphs first, several at a time: while a cell is measured nothing else may run.

        Raises:
            BundleError: the notebook cannot be written; what it has is kept.
        """
        self._prepare_all(remaining)
        while self._open:
            cell = self._open.popleft()
            if cell not in self._checkpoint:
                self._do(cell, remaining)

    def _unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """What is not in the notebook, with the smaller batches that stand in for failed ones."""
        found = []
        for cell in cells:
            current: Cell | None = cell
            while current is not None and current in self._checkpoint:
                current = self._stand_in(current, self._checkpoint.failure_of(current))
            if current is not None:
                found.append(current)
        return found

    def _sources(self) -> dict[GraphKey, list[Cell]]:
        found: dict[GraphKey, list[Cell]] = {}
        for cell in self._open:
            found.setdefault((cell.target, cell.precision), []).append(cell)
        return found

    def _prepare_all(self, remaining: RemainingTime) -> None:
        sources, stop = self._sources(), Event()
        prepare = partial(self._prepare, remaining, stop)
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
        self, remaining: RemainingTime, stop: Event, cells: Sequence[Cell]
    ) -> tuple[CellGraph | ChildFailure, float]:
        batches = {part for cell in cells for part in _halvings(cell.batch)}
        begin_s = monotonic()
        with remaining.step(f"{cells[0].model} {cells[0].precision}") as task:
            try:
                return self._steps.graph(cells[0], batches, task, stop), monotonic() - begin_s
            except ChildFailure as failure:
                return failure, monotonic() - begin_s

    def _do(self, cell: Cell, remaining: RemainingTime) -> None:
        graph = self._graphs[cell.target, cell.precision]
        begin_s = monotonic()
        with remaining.step(cell.key) as task:
            try:
                prepared = self._steps.prepared(cell, graph, task)
                self._checkpoint.add(cell, self._steps.result(prepared, task))
            except ChildFailure as failure:
                self._note(cell, failure, monotonic() - begin_s)
                smaller = self._stand_in(cell, self._checkpoint.failure_of(cell))
                if smaller is not None:
                    remaining.add(1)
                    self._open.appendleft(smaller)

    def _note(self, cell: Cell, failure: ChildFailure, seconds: float) -> None:
        entry = CellFailure(
            model=cell.model,
            precision=cell.precision,
            backend=cell.backend,
            batch=cell.batch,
            kind=failure.kind,
            reason=failure.reason,
            seconds=seconds,
        )
        self._checkpoint.add(cell, entry)

    def _stand_in(self, cell: Cell, failure: CellFailure | None) -> Cell | None:
        """The next smaller batch after one that did not fit, unless it is measured anyway."""
        if failure is None or failure.kind != "out of memory" or cell.batch == 1:
            return None
        smaller = cell.with_batch(cell.batch // 2)
        return None if smaller.key in self._planned else smaller


def _halvings(batch: int) -> list[int]:
    """The batch and what may stand in for it: 8, 4, 2, 1."""
    return [batch >> shift for shift in range(batch.bit_length())]

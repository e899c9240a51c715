"""Checkpoint of a run: results kept line by line, so that an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.result_files import to_line
from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure, cell_key
from deploykit.core.errors import BundleError, DataError
from deploykit.core.serialization import Source, from_plain, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.benchmarking.matrix.cells import Cell

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
            self._entries[_key(entry)] = entry
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


def _key(entry: BenchmarkResult | CellFailure) -> str:
    if isinstance(entry, CellFailure):
        return entry.key
    subject = entry.subject
    return cell_key(subject.model, subject.backend, subject.precision_asked, subject.batch)

from __future__ import annotations

import resource
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.matrix.cells import Cell
from deploykit.benchmarking.matrix.run import Checkpoint
from deploykit.benchmarking.results import BenchmarkRun, CellFailure
from deploykit.core.errors import BundleError
from deploykit.core.precision import Precision
from tests.unit.benchmarking.statistics.noise import SUBJECT, result_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IDENTITY = {"cells": ["a", "b"], "switches": {"seed": 0}}
CELL = Cell("resnet50", "resnet50", "tensorrt", Precision.FP16, 8)
OTHER = CELL.with_batch(16)
RESULT = result_of([1.0, 2.0])
FAILURE = CellFailure("resnet50", Precision.FP16, "tensorrt", 16, "time limit", "too slow", 60.0)


def filled(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(folder, IDENTITY)
    checkpoint.add(CELL, RESULT)
    checkpoint.add(OTHER, FAILURE)
    return checkpoint


def test_a_second_start_finds_what_the_first_one_measured(tmp_path: Path) -> None:
    first = filled(tmp_path / "results")
    again = Checkpoint(tmp_path / "results", IDENTITY)
    assert again.path == first.path
    assert CELL in again
    assert OTHER in again
    assert CELL.with_batch(1) not in again
    assert again.found == len(again) == 2
    assert again.failure_of(OTHER) == FAILURE
    assert again.failure_of(CELL) is None
    assert again.run() == BenchmarkRun((RESULT,), (FAILURE,)) == first.run()


def test_another_run_does_not_find_it(tmp_path: Path) -> None:
    filled(tmp_path)
    assert not len(Checkpoint(tmp_path, {**IDENTITY, "switches": {"seed": 1}}))


@pytest.mark.parametrize("rest", [b'{"result": {"subj', b"\xff\n", b"[1]\n", b'{"failure": {}}\n'])
def test_a_line_that_was_cut_off_is_dropped_and_overwritten(tmp_path: Path, rest: bytes) -> None:
    first = filled(tmp_path)
    with first.path.open("ab") as file:
        file.write(rest)
    again = Checkpoint(tmp_path, IDENTITY)
    assert len(again) == 2
    third = replace(SUBJECT, batch=32)
    again.add(CELL.with_batch(32), result_of([3.0], subject=third))
    assert [each.subject.batch for each in Checkpoint(tmp_path, IDENTITY).run().results] == [8, 32]


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path) -> None:
    checkpoint = filled(tmp_path)
    third = result_of([3.0] * 1000, subject=replace(SUBJECT, batch=32))
    with room_for(checkpoint.path.stat().st_size + 500):
        message = "File too large\n2 cells that were measured are kept there\nmake room"
        with pytest.raises(BundleError, match=message):
            checkpoint.add(CELL.with_batch(32), third)
    assert Checkpoint(tmp_path, IDENTITY).run() == checkpoint.run()
    checkpoint.add(CELL.with_batch(32), third)
    assert Checkpoint(tmp_path, IDENTITY).run().results == (RESULT, third)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond ``size``, as on a full disk: half a line is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_notebook_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    Checkpoint(tmp_path, IDENTITY).path.mkdir()
    with pytest.raises(BundleError, match=r"cannot read .*unfinished-\w{12}\.jsonl: Is a dir"):
        Checkpoint(tmp_path, IDENTITY)


def test_discarding_begins_anew(tmp_path: Path) -> None:
    checkpoint = filled(tmp_path)
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []
    assert not len(checkpoint)
    checkpoint.add(CELL, RESULT)
    assert len(Checkpoint(tmp_path, IDENTITY)) == 1

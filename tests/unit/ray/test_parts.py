"""The output folder: its plan, parts that are whole or not there, and one writer at a time."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.atomic import locked
from deploykit.core.errors import BundleError, DataError
from deploykit.core.sharing import lock_of
from deploykit.ray import parts as parts_module
from deploykit.ray.parts import PLAN, PartsFolder
from deploykit.ray.predicting import parquet_of

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("pyarrow")

NO_FIELDS: dict[str, str] = {"index": "int"}


def content(names: list[str], outcomes: list[Any]) -> bytes:
    return parquet_of(names, outcomes, NO_FIELDS)


def test_parts_that_are_there_are_done(tmp_path: Path) -> None:
    folder = PartsFolder(tmp_path / "out.parquet", {"source": "s"})
    with folder.opened() as done:
        assert done == set()
        folder.commit(3, content(["a"], ["no"]))
    with PartsFolder(tmp_path / "out.parquet", {"source": "s"}).opened() as done:
        assert done == {3}
    assert sorted(path.name for path in folder.folder.iterdir()) == [PLAN, "part-000003.parquet"]


def test_the_summary_counts_rows_and_names_those_without_an_answer(tmp_path: Path) -> None:
    folder = PartsFolder(tmp_path / "out.parquet", {})
    with folder.opened():
        folder.commit(0, content(["a", "b"], ["no", []]))
        folder.commit(1, content(["c"], ["neither"]))
        assert folder.summary() == (3, 2, (("a", "no"), ("c", "neither")))


def test_another_run_is_refused(tmp_path: Path) -> None:
    with PartsFolder(tmp_path / "out", {"bundle": "1", "top_k": 5}).opened():
        pass
    other = PartsFolder(tmp_path / "out", {"bundle": "2", "top_k": 5})
    with pytest.raises(BundleError, match="was begun with another bundle"), other.opened():
        pass


def test_a_folder_with_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with (
        pytest.raises(BundleError, match="holds something else"),
        PartsFolder(tmp_path, {}).opened(),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_plan(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text("{")
    folder = PartsFolder(tmp_path, {"bundle": "1"})
    with pytest.raises(DataError, match="is damaged"), folder.opened():
        pass


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    folder = PartsFolder(tmp_path / "out", {})
    with (
        locked(lock_of(tmp_path / "out"), 1.0),
        pytest.raises(BundleError, match="another process is writing"),
        folder.opened(),
    ):
        pass


def test_a_full_disk_is_one_error_and_leaves_whole_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PartsFolder(tmp_path / "out", {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with folder.opened():
        folder.commit(0, content(["a"], ["no"]))
        monkeypatch.setattr(parts_module, "replace_file", full)
        with pytest.raises(BundleError, match=r"No space left on device\n.*run the same again"):
            folder.commit(1, content(["b"], ["no"]))
    monkeypatch.undo()
    with folder.opened() as done:
        assert done == {0}


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = PartsFolder(tmp_path / "file" / "out", {})
    with pytest.raises(BundleError, match="cannot write to"), folder.opened():
        pass

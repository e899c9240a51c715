from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.benchmarking.report.page import page_of, write_reports
from deploykit.benchmarking.report.table import csv_of, markdown_of
from deploykit.benchmarking.results import BenchmarkRun
from deploykit.core.errors import BundleError, UsageError
from tests.unit.benchmarking.report.reported import gpu_run, measured

if TYPE_CHECKING:
    from pathlib import Path


def test_the_reports_stand_beside_the_results(tmp_path: Path) -> None:
    run = gpu_run()
    written = write_reports(run, tmp_path / "l4.2026.json")
    assert [path.name for path in written] == ["l4.2026.md", "l4.2026.csv", "l4.2026.html"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    texts = [path.read_text(encoding="utf-8") for path in written]
    assert texts == [markdown_of(run), csv_of(run), page_of(run)]


@pytest.mark.parametrize("name", ["run", "run.md", "run.html"])
def test_results_that_a_report_would_replace_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is no file of results\nexpected a name that en"):
        write_reports(gpu_run(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot write .*run\.md"):
        write_reports(gpu_run(), tmp_path / "file" / "run.json")


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    run = BenchmarkRun((measured("model-\udcff", [1.0] * 9),))
    for path in write_reports(run, tmp_path / "run.json"):
        assert "model-" in path.read_text(encoding="utf-8")

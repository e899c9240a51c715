"""The reports of a run, written beside its file of results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.benchmarking.report.page import page_of
from deploykit.benchmarking.report.table import csv_of, markdown_of
from deploykit.core.atomic import write_whole
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.benchmarking.results import BenchmarkRun

_RESULTS: Final = ".json"


def write_reports(run: BenchmarkRun, path: Path) -> tuple[Path, ...]:
    """Write ``X.md``, ``X.csv`` and ``X.html`` beside the file of results ``X.json``.

    Each is written whole or not at all, and none before all of them are made.

    Raises:
        UsageError: ``path`` does not end in ``.json``.
        BundleError: the place cannot be written to; files that were there are as they were.
    """
    require_results_name(path)
    # All texts before the first file: a failure leaves no half of a set of reports.
    texts = {".md": markdown_of(run), ".csv": csv_of(run), ".html": page_of(run)}
    reports = {path.with_suffix(suffix): text for suffix, text in texts.items()}
    for report, text in reports.items():
        # A name from a file system may hold bytes that are no text; UTF-8 has no place for them.
        write_whole(report, text.encode("utf-8", "replace").decode("utf-8"))
    return tuple(reports)


def require_results_name(path: Path) -> None:
    """Check that the name of a results file leaves room for its reports.

    Raises:
        UsageError: ``path`` does not end in ``.json``.
    """
    if path.suffix != _RESULTS:
        raise UsageError(f"{path} is no file of results\nexpected a name that ends in {_RESULTS}")

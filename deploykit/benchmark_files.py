"""A file of benchmark results: JSON, one result a line, read back without losing a bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from deploykit.benchmarking.results import BenchmarkResult
from deploykit.errors import DataError, UsageError
from deploykit.staging import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA_VERSION: Final = 1


def write_results(path: Path, results: Iterable[BenchmarkResult]) -> None:
    """Write to ``path``, whole or not at all; folders are made where they are missing.

    Raises:
        BundleError: the place cannot be written to; a file that was there is as it was.
        UsageError: an environment holds something that is not plain data.
    """
    write_whole(path, _to_json(results))


def read_results(path: Path) -> tuple[BenchmarkResult, ...]:
    """Read what `write_results` wrote.

    Raises:
        DataError: missing, unreadable, not JSON, of another schema, or a result lacks or misspells
            something; the message says which result and what.
    """
    body = _parse(_read(path), path)
    entries = body.get("results")
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list of results{_MEASURE_AGAIN}")
    return tuple(_result(path, number, entry) for number, entry in enumerate(entries, 1))


_MEASURE_AGAIN: Final = "\nmeasure again: deploykit bench"


def _to_json(results: Iterable[BenchmarkResult]) -> str:
    try:
        lines = [json.dumps(result.to_dict(), allow_nan=False) for result in results]
    except (TypeError, ValueError) as exc:
        raise UsageError(f"a result holds something that JSON cannot hold: {exc}") from exc
    inner = ",\n".join(lines)
    return f'{{"schema_version": {SCHEMA_VERSION}, "results": [\n{inner}\n]}}\n'


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise DataError(f"there is no file of results {path}{_MEASURE_AGAIN}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{path} is not JSON, perhaps cut off: {exc}{_MEASURE_AGAIN}") from exc
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION or not isinstance(body, dict):
        raise DataError(
            f"{path} has schema version {version}, this deploykit reads {SCHEMA_VERSION}"
            f"{_MEASURE_AGAIN}, or read it with the release that wrote it"
        )
    return body


def _result(path: Path, number: int, entry: Any) -> BenchmarkResult:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: result {number} is not an object{_MEASURE_AGAIN}")
    try:
        return BenchmarkResult.from_dict(entry)
    except DataError as exc:
        raise DataError(f"{path}: result {number}: {exc}") from exc

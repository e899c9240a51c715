"""A file of benchmark results: JSON, an entry a line, read back without losing a bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure
from deploykit.core.atomic import write_whole
from deploykit.core.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SCHEMA_VERSION: Final = 1


def write_run(path: Path, run: BenchmarkRun) -> None:
    """Write to ``path``, whole or not at all; folders are made where they are missing.

    Raises:
        BundleError: the place cannot be written to; a file that was there is as it was.
        UsageError: an environment holds something that is not plain data.
    """
    write_whole(path, _to_json(run))


def read_run(path: Path) -> BenchmarkRun:
    """Read what `write_run` wrote.

    Raises:
        DataError: missing, unreadable, not JSON, of another schema, or a result lacks or misspells
            something; the message says which result and what.
    """
    body = _parse(_read(path), path)
    results = _entries(body, path, "result", BenchmarkResult.from_dict)
    return BenchmarkRun(results, _entries(body, path, "failure", CellFailure.from_dict))


def to_line(data: Any) -> str:
    """Plain data as JSON on one line.

    Raises:
        UsageError: it holds something that JSON cannot hold.
    """
    try:
        return json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"a result holds something that JSON cannot hold: {exc}") from exc


_MEASURE_AGAIN: Final = "\nmeasure again: deploykit bench"


Entry = TypeVar("Entry", BenchmarkResult, CellFailure)


def _to_json(run: BenchmarkRun) -> str:
    results, failures = _lines(run.results), _lines(run.failures)
    body = f'"results": [\n{results}\n], "failures": [\n{failures}\n]'
    return f'{{"schema_version": {SCHEMA_VERSION}, {body}}}\n'


def _lines(entries: Iterable[BenchmarkResult | CellFailure]) -> str:
    return ",\n".join(to_line(entry.to_dict()) for entry in entries)


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


def _entries(
    body: dict[str, Any], path: Path, kind: str, read: Callable[[dict[str, Any]], Entry]
) -> tuple[Entry, ...]:
    given = body.get(f"{kind}s")
    if not isinstance(given, list):
        raise DataError(f"{path} has no list of {kind}s{_MEASURE_AGAIN}")
    return tuple(_entry(f"{path}: {kind} {at}", each, read) for at, each in enumerate(given, 1))


def _entry(where: str, data: Any, read: Callable[[dict[str, Any]], Entry]) -> Entry:
    if not isinstance(data, dict):
        raise DataError(f"{where} is not an object{_MEASURE_AGAIN}")
    try:
        return read(data)
    except (DataError, UnknownNameError) as exc:
        raise DataError(f"{where}: {exc}") from exc

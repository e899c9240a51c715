"""A file of benchmark results: JSON, an entry a line, read back without losing a bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun, CellFailure
from deploykit.core.atomic import write_whole
from deploykit.core.errors import DataError, UsageError
from deploykit.core.serialization import Source, from_plain, parse_json, to_plain

if TYPE_CHECKING:
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
    body = _parsed(path)
    results = _entries(BenchmarkResult, body, path, "result")
    return BenchmarkRun(results, _entries(CellFailure, body, path, "failure"))


def to_line(noun: Any) -> str:
    """Plain data, or nouns that can become it, as JSON on one line.

    Raises:
        UsageError: it holds something that JSON cannot hold.
    """
    try:
        return json.dumps(to_plain(noun), allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"a result holds something that JSON cannot hold: {exc}") from exc


_REMEDY: Final = "measure again: deploykit bench"
_MEASURE_AGAIN: Final = f"\n{_REMEDY}"


Entry = TypeVar("Entry", BenchmarkResult, CellFailure)


def _to_json(run: BenchmarkRun) -> str:
    results = ",\n".join(map(to_line, run.results))
    failures = ",\n".join(map(to_line, run.failures))
    body = f'"results": [\n{results}\n], "failures": [\n{failures}\n]'
    return f'{{"schema_version": {SCHEMA_VERSION}, {body}}}\n'


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise DataError(f"there is no file of results {path}{_MEASURE_AGAIN}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc


def _parsed(path: Path) -> dict[str, Any]:
    body = parse_json(_read(path), Source(str(path), remedy=_REMEDY))
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION or not isinstance(body, dict):
        raise DataError(
            f"{path} has schema version {version}, this deploykit reads {SCHEMA_VERSION}"
            f"{_MEASURE_AGAIN}, or read it with the release that wrote it"
        )
    return body


def _entries(noun: type[Entry], body: dict[str, Any], path: Path, kind: str) -> tuple[Entry, ...]:
    given = body.get(f"{kind}s")
    if not isinstance(given, list):
        raise DataError(f"{path} has no list of {kind}s{_MEASURE_AGAIN}")
    return tuple(
        from_plain(noun, each, Source(f"{path}: {kind} {at}", remedy=_REMEDY))
        for at, each in enumerate(given, 1)
    )

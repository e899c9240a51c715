"""Nouns of a measurement: subject, switches, every sample; a run over a matrix, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploykit.backends import LayerConversion  # noqa: TC001  (read back by this type)
from deploykit.core.atomic import write_whole
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.core.precision import Precision  # noqa: TC001
from deploykit.core.serialization import Source, from_plain, parse_json, to_plain
from deploykit.costs.limits import Limit  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path


Series: TypeAlias = NDArray[np.float64]
"""Durations or moments (queries,), as `times` makes them."""


def require_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse a name that is not one of ``known``."""
    if name not in known:
        raise UnknownNameError(kind, name, known, ", ".join(known))


def require_at_least(least: int, **values: float) -> None:
    """Refuse numbers under ``least``, infinite ones and NaN."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise UsageError(f"{name} is {value}, expected {least} or more")


def times(name: str, given: Any) -> Series:
    """A read-only copy as float64 of durations or moments, all finite and not negative."""
    series = np.array(given, dtype=np.float64)  # a copy: the caller's array may go on growing
    if series.ndim != 1:
        raise UsageError(f"{name} has shape {series.shape}, expected one entry per query")
    if not np.isfinite(series).all() or (series < 0).any():
        raise UsageError(f"{name} holds a time that is negative, infinite or not a number")
    series.flags.writeable = False
    return series


SCENARIOS: Final = ("single-stream", "offline", "server")
PRESETS: Final = ("trtexec10", "trtexec10-exposedma", "trtexec11", "trtexec11-exposedma")


@dataclass(frozen=True, slots=True)
class Switches:
    """Everything that changes a figure and is not the model.

    ``spin`` waits for the GPU by asking it again and again, otherwise the thread sleeps until it
    is called. ``transfers`` copies inputs and outputs inside each query. ``threads`` are those of
    a CPU backend. A measurement lasts at least ``duration_s`` and has at least ``min_samples``.
    In the server scenario queries come at ``rate_per_s``; with ``bound_ms`` it is the highest rate
    whose 99th percentile stays within that bound, and was searched for. ``queue`` is how many
    queries of the single stream are under way: with 2 the next is queued while one computes.
    """

    scenario: str
    cuda_graph: bool
    transfers: bool
    streams: int
    spin: bool
    warmup_s: float
    duration_s: float
    min_samples: int
    seed: int
    preset: str | None = None
    threads: int | None = None
    rate_per_s: float | None = None
    bound_ms: float | None = None
    queue: int = 1

    def __post_init__(self) -> None:
        require_known("scenario", self.scenario, SCENARIOS)
        if self.preset is not None:
            require_known("preset", self.preset, PRESETS)
        require_at_least(1, streams=self.streams, min_samples=self.min_samples, queue=self.queue)
        require_at_least(0, warmup_s=self.warmup_s, duration_s=self.duration_s, seed=self.seed)
        if self.threads is not None:
            require_at_least(1, threads=self.threads)
        for name in ("rate_per_s", "bound_ms"):
            given = getattr(self, name)
            if given is not None and not 0 < given < float("inf"):
                raise UsageError(f"{name} is {given}, expected more than 0")


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The raw times of each query in the order of their begin, all series equally long (queries,).

    ``None`` where the backend has no such step. ``start_s`` is the begin of each query since the
    start of the measurement; in the server scenario the moment for which it was scheduled.
    ``warmup_ms`` (warm-up queries,) is the wall time of the queries that do not count.

    Raises:
        UsageError: no query at all, a series of another length, a time that is negative, infinite
            or NaN.
    """

    wall_ms: Series
    compute_ms: Series | None
    h2d_ms: Series | None
    d2h_ms: Series | None
    enqueue_ms: Series | None
    start_s: Series
    warmup_ms: Series

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None:
                object.__setattr__(self, field.name, times(field.name, given))
        if not len(self.wall_ms):
            raise UsageError("a measurement without a query\nexpected at least one in wall_ms")
        for name, series in self._series().items():
            if name != "warmup_ms" and len(series) != len(self):
                raise UsageError(f"{name} has {len(series)} entries, wall_ms has {len(self)}")

    def __len__(self) -> int:
        """Number of queries that count."""
        return len(self.wall_ms)

    def __eq__(self, other: object) -> bool:
        """Whether every sample is the same number."""
        if not isinstance(other, Samples):
            return NotImplemented
        return bool(to_plain(self) == to_plain(other))

    __hash__ = None  # type: ignore[assignment]  # as of every dataclass that compares

    @property
    def latency_ms(self) -> Series:
        """As trtexec defines it: H2D + GPU compute + D2H; the wall time where no step is timed."""
        if self.compute_ms is None:
            return self.wall_ms
        return self.compute_ms + sum(s for s in (self.h2d_ms, self.d2h_ms) if s is not None)

    def step(self, name: str) -> Series:
        """One series by its name, ``"wall_ms"`` or ``"compute_ms"``.

        Raises:
            UnknownNameError: the backend has no such step.
        """
        known = self._series()
        if name not in known:
            raise UnknownNameError("step", name, known, ", ".join(known))
        return known[name]

    def _series(self) -> dict[str, Series]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: series for name, series in every.items() if series is not None}


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured; ``precision_proven`` is ``None`` where nobody counted."""

    model: str
    precision_asked: Precision
    precision_proven: Precision | None
    backend: str
    batch: int
    onnx_sha256: str | None = None
    engine_sha256: str | None = None
    compiler: str | None = None
    compiler_version: str | None = None

    def __post_init__(self) -> None:
        require_at_least(1, batch=self.batch)


@dataclass(frozen=True)
class BenchmarkResult:
    """One measurement with all that is needed to judge it.

    ``duration_s`` is from the begin of the measurement (of the first query, or of the schedule of
    arrivals) to the end of the last query. ``environment`` is
    plain data of a `deploykit.core.environment.Environment`. ``condition`` are
    sentences about a busy or throttled machine, ``notes`` about what was measured. ``limit`` is
    ``None`` where the network or the device is not known. ``created`` is a time in ISO 8601.
    ``conversions`` are the engine's layers that compute nothing; ``None`` where nobody knows.
    """

    subject: Subject
    switches: Switches
    samples: Samples
    duration_s: float
    environment: Mapping[str, Any]
    condition: tuple[str, ...]
    created: str
    limit: Limit | None = None
    notes: tuple[str, ...] = ()
    conversions: tuple[LayerConversion, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.duration_s < float("inf"):
            raise UsageError(f"a measurement of {self.duration_s} s\nexpected more than 0 s")

    @property
    def key(self) -> str:
        """The name of the cell."""
        subject = self.subject
        return cell_key(subject.model, subject.backend, subject.precision_asked, subject.batch)

    @property
    def throughput_per_s(self) -> float:
        """Queries x batch / duration, in samples (images) per second: trtexec's definition."""
        return len(self.samples) * self.subject.batch / self.duration_s


FAILURES: Final = ("error", "out of memory", "time limit")
"""Why a cell has no result. A limit on memory counts as out of memory."""


@dataclass(frozen=True, slots=True)
class CellFailure:
    """A cell of the matrix without a result; ``reason`` is what a person should read."""

    model: str
    precision: Precision
    backend: str
    batch: int
    kind: str
    reason: str
    seconds: float

    def __post_init__(self) -> None:
        require_known("kind of failure", self.kind, FAILURES)

    @property
    def key(self) -> str:
        """The name of the cell.

        >>> CellFailure("nin", Precision("fp16"), "tensorrt", 8, "error", "no driver", 0.5).key
        'nin/tensorrt/fp16/b8'
        """
        return cell_key(self.model, self.backend, self.precision, self.batch)


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """Results and failures, each in the order in which they were measured."""

    results: tuple[BenchmarkResult, ...]
    failures: tuple[CellFailure, ...] = ()


def cell_key(model: str, backend: str, precision: Precision, batch: int) -> str:
    """How a cell of the matrix is named and filtered.

    >>> cell_key("resnet50", "ort", Precision("fp32"), 1)
    'resnet50/ort/fp32/b1'
    """
    return f"{model}/{backend}/{precision}/b{batch}"


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

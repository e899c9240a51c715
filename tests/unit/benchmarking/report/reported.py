"""Runs as they are reported: of a GPU with everything, of a CPU with little, and a hostile one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.benchmarking.results import (
    BenchmarkResult,
    BenchmarkRun,
    CellFailure,
    Samples,
    Subject,
)
from deploykit.core.precision import Precision
from deploykit.core.serialization import to_plain
from deploykit.costs.limits import Limit
from deploykit.costs.peaks import gpu_peak
from tests.unit.benchmarking.statistics.noise import SWITCHES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HOSTILE = "</script><b onclick=alert(1)>|`x`</b>\n{{script}} \u2028 <!--"

_PEAK = gpu_peak("NVIDIA L4").peak
assert _PEAK is not None
PEAK = _PEAK

CPU: dict[str, Any] = {
    "deploykit": "0.1.0",
    "python": "3.11.9",
    "platform": "Linux",
    "cpu": "Some CPU @ 2 GHz",
    "logical_cores": 2,
    "memory_bytes": 8 * 2**30,
    "packages": {"numpy": "2.4.0"},
    "gpus": [],
    "driver": None,
}
GPU: dict[str, Any] = CPU | {
    "gpus": [{"name": "NVIDIA L4", "compute_capability": "8.9", "memory_bytes": 24 * 2**30}],
    "driver": "13.0",
    "peak": to_plain(PEAK),
}
LIMIT = Limit(
    flop=8_000_000_000,
    required_bytes=100_000_000,
    compute_ms=0.2,
    memory_ms=1 / 3,
    uncached_ms=0.1,
    peak_measured=False,
)
DOUBT = "is probably an error: the arithmetic alone takes"
BUSY = "busy: other processes used 34% of the processors meanwhile"
NOTE = "weights: untrained, seed 0"
SWITCHED = replace(SWITCHES, preset=None)


def lognormal(median_ms: float, count: int, seed: int = 0) -> Any:
    return median_ms * np.exp(0.01 * np.random.default_rng(seed).standard_normal(count))


def measured(
    model: str,
    wall_ms: Any,
    *,
    precision: str = "fp32",
    backend: str = "ort",
    batch: int = 1,
    environment: Mapping[str, Any] = CPU,
    **changes: Any,
) -> BenchmarkResult:
    """On a CPU: nothing but wall times."""
    wall = np.asarray(wall_ms, dtype=np.float64)
    given: dict[str, Any] = {
        "subject": Subject(model, Precision(precision), None, backend, batch),
        "switches": SWITCHED,
        "samples": Samples(wall, None, None, None, None, np.cumsum(wall) / 1e3, wall[:2]),
        "duration_s": float(wall.sum() / 1e3),
        "environment": environment,
        "condition": (),
        "created": f"2026-11-22T05:{batch % 60:02d}:00+00:00",
    }
    return BenchmarkResult(**{**given, **changes})


def on_gpu(model: str, precision: str, batch: int, compute_ms: Any) -> BenchmarkResult:
    compute = np.asarray(compute_ms, dtype=np.float64)
    copies, enqueue = np.full(len(compute), 0.02), np.full(len(compute), 0.03)
    wall = compute + 0.05
    asked = Precision(precision)
    return measured(
        model,
        wall,
        batch=batch,
        environment=GPU,
        subject=Subject(
            model, asked, asked, "tensorrt", batch, "a" * 64, "b" * 64, "tensorrt", "11.4.0"
        ),
        samples=Samples(wall, compute, copies, copies, enqueue, np.cumsum(wall) / 1e3, compute[:5]),
        limit=LIMIT,
    )


FAILURES = (
    CellFailure(
        "vgg16", Precision.FP32, "tensorrt", 32, "out of memory", "needs 23 GiB\nhas 21", 4.2
    ),
    CellFailure(
        "nin", Precision.INT8, "tensorrt-rtx", 8, "error", "BuildError: no <such> layer", 0.8
    ),
)


def gpu_run(
    models: Iterable[str] = ("resnet50", "alexnet"), batches: Iterable[int] = (1, 8, 32)
) -> BenchmarkRun:
    """Some rows in doubt, on a busy machine or with a note; and two failures."""
    results = []
    cells = [(m, p, b) for m in models for p in ("fp32", "fp16", "int8") for b in batches]
    for number, (model, precision, batch) in enumerate(cells):
        factor = {"fp32": 1.0, "fp16": 0.6, "int8": 0.4}[precision] * (1 + number / 100)
        result = on_gpu(model, precision, batch, lognormal(factor * (0.7 + batch), 600, number))
        results.append(result)
    results[0] = replace(results[0], condition=(BUSY,), notes=(NOTE,))
    results[1] = replace(results[1], limit=replace(LIMIT, compute_ms=1e3))
    return BenchmarkRun(tuple(results), FAILURES)


def cpu_run() -> BenchmarkRun:
    """Few samples, one precision, no limit."""
    cells = [(model, batch) for model in ("nin", "resnet18", "vgg16") for batch in (1, 8)]
    results = (
        measured(model, lognormal(20.0 * batch, 7 if model == "vgg16" else 40), batch=batch)
        for model, batch in cells
    )
    return BenchmarkRun(tuple(results))


def first_look(count: int = 5) -> BenchmarkRun:
    """What a first run gives: one batch, two backends, a limit, a row with too few samples."""
    peak = replace(
        PEAK,
        name="Some CPU",
        fp32_flop_per_s=72.54e9,
        tf32_flop_per_s=None,
        fp16_flop_per_s=None,
        int8_op_per_s=None,
        source="a trial",
        threads=2,
    )
    # In a mixed order, so that a chart has something to sort; the fastest is the bare one.
    medians_ms = {f"resnet{number}": 20.0 * (1 + number * 3 % count) for number in range(count)}
    results = [
        measured(
            model,
            lognormal(median_ms * factor, 3 if median_ms == min(medians_ms.values()) else 40),
            backend=backend,
            environment=CPU | {"peak": to_plain(peak)},
            limit=LIMIT,
        )
        for model, median_ms in medians_ms.items()
        for backend, factor in (("ort", 1.0), ("eager", 1.3))
    ]
    return BenchmarkRun(tuple(results))


def alike_run() -> BenchmarkRun:
    """Rows that all say the same, in other figures."""
    busy = (BUSY, BUSY.replace("34%", "12%"))
    results = (measured(f"net{n}", lognormal(2.0, 40, n), condition=(busy[n],)) for n in (0, 1))
    return BenchmarkRun(tuple(results))


def hostile_run() -> BenchmarkRun:
    result = measured(
        HOSTILE,
        lognormal(3.0, 60),
        backend=HOSTILE,
        environment=CPU | {"cpu": HOSTILE},
        condition=(HOSTILE,),
        notes=(HOSTILE,),
    )
    failure = CellFailure(HOSTILE, Precision.FP16, HOSTILE, 1, "error", HOSTILE, 1.0)
    return BenchmarkRun((result,), (failure,))

"""Latencies in ms with a known distribution, and results that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.benchmarking.results import BenchmarkResult, Samples, Subject, Switches
from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Series = NDArray[np.float64]

MEDIAN_MS = 5.0

SWITCHES = Switches(
    scenario="single-stream",
    cuda_graph=False,
    transfers=True,
    streams=1,
    spin=True,
    warmup_s=0.2,
    duration_s=3.0,
    min_samples=10,
    seed=0,
    preset="trtexec10",
    threads=2,
)
SUBJECT = Subject(
    model="resnet50",
    precision_asked=Precision.FP16,
    precision_proven=Precision.FP16,
    backend="tensorrt",
    batch=8,
    onnx_sha256="a" * 64,
    engine_sha256="b" * 64,
    compiler="tensorrt",
    compiler_version="11.4.0",
)
ENVIRONMENT: dict[str, Any] = {
    "cpu": "Some CPU @ 2 GHz",
    "logical_cores": 2,
    "gpus": [{"name": "NVIDIA L4", "compute_capability": "8.9", "memory_bytes": 24_000_000_000}],
    "driver": "13.0",
    "packages": {"numpy": "2.4.0"},
}


def independent(rng: np.random.Generator, count: int, variation: float) -> Series:
    return MEDIAN_MS * (1 + variation * rng.standard_normal(count))


def dependent(rng: np.random.Generator, count: int, variation: float, lag: float) -> Series:
    """First-order autoregressive noise whose neighbours have the correlation ``lag``."""
    shocks = rng.standard_normal(count) * (1 - lag**2) ** 0.5
    state = rng.standard_normal()
    states = np.empty(count)
    for index, shock in enumerate(shocks):
        state = lag * state + shock
        states[index] = state
    return MEDIAN_MS * (1 + variation * states)


def lognormal(rng: np.random.Generator, count: int, sigma: float) -> Series:
    return MEDIAN_MS * np.exp(sigma * rng.standard_normal(count))


def mixture(
    rng: np.random.Generator, count: int, parts: tuple[tuple[float, float, float], ...]
) -> Series:
    """Normal parts as (weight, mean, standard deviation), drawn at random."""
    weights, means, deviations = np.array(parts).T
    part = rng.choice(len(parts), count, p=weights)
    drawn: Series = means[part] + deviations[part] * rng.standard_normal(count)
    return drawn


def samples_of(wall_ms: Any, **steps: Any) -> Samples:
    wall = np.asarray(wall_ms, dtype=np.float64)
    given = {
        "compute_ms": None,
        "h2d_ms": None,
        "d2h_ms": None,
        "enqueue_ms": None,
        "start_s": np.cumsum(wall) / 1e3,
        "warmup_ms": np.array([9.0, 7.0]),
    }
    return Samples(wall_ms=wall, **{**given, **steps})


def result_of(wall_ms: Any, **changes: Any) -> BenchmarkResult:
    samples = samples_of(wall_ms)
    given: dict[str, Any] = {
        "subject": SUBJECT,
        "switches": SWITCHES,
        "samples": samples,
        "duration_s": max(float(samples.wall_ms.sum()) / 1e3, 1e-3),
        "environment": ENVIRONMENT,
        "condition": ("load average 3.1 on 2 cores before the start",),
        "created": "2026-11-22T00:00:00+00:00",
    }
    return BenchmarkResult(**{**given, **changes})

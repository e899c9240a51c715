"""One cell, measured in this process."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.backends.ort import OrtRunner
from deploykit.benchmarking.harness import Clock, SystemClock, benchmark, highest_rate
from deploykit.benchmarking.machine.conditions import watch
from deploykit.benchmarking.matrix.cells import ENGINES, ON_GPU
from deploykit.benchmarking.results import BenchmarkResult, Samples, Subject, Switches
from deploykit.core import environment
from deploykit.core.errors import DataError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.sizes import BATCH_AXIS, IMAGE_AXES
from deploykit.sources.targets import find_definition
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.benchmarking.matrix.cells import BuiltEngine, PreparedCell
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, Runner, TensorSpec
    from deploykit.runtime.choice import Machine


@dataclass(frozen=True)
class _Measured:
    samples: Samples
    duration_s: float
    switches: Switches


def measure_cell(
    prepared: PreparedCell,
    switches: Switches,
    machine: Machine,
    *,
    clock: Clock,
    task: ProgressTask,
) -> BenchmarkResult:
    """Open the cell's backend, warm up, measure, and note what the machine did meanwhile.

    Raises:
        DataError: no rate of queries keeps the bound on the latency.
        DeploykitError: what opening or running the model raises.
    """
    cell = prepared.cell
    switches = fitting(switches, cell.backend)
    with open_cell(prepared, switches, machine) as (runner, feeds):
        measured, conditions = watch(
            lambda: _measure(runner, feeds, switches, clock, task), on_gpu=cell.backend in ON_GPU
        )
    return BenchmarkResult(
        subject=subject_of(prepared),
        switches=measured.switches,
        samples=measured.samples,
        duration_s=measured.duration_s,
        environment={
            **environment.describe().to_dict(),
            "conditions": conditions.to_dict(),
            "peak": prepared.peak,
        },
        condition=conditions.sentences(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        limit=prepared.graph.limits.get(cell.device, {}).get(cell.batch),
        notes=_notes(prepared, switches.streams),
    )


@contextmanager
def open_cell(
    prepared: PreparedCell, switches: Switches, machine: Machine
) -> Iterator[tuple[Runner, Mapping[str, Array]]]:
    """The runner of a cell with one batch of noise to feed it, on the GPU without transfers."""
    cell = prepared.cell
    if cell.backend not in ENGINES:
        with _open_unbuilt(prepared, switches) as runner:
            yield runner, noise(runner.inputs, cell.batch, switches.seed, prepared.graph.image)
        return
    from deploykit.backends.trt.runner import ResidentRunner, TrtRunner

    engine = _required(prepared.engine)
    with TrtRunner(
        Path(engine.path),
        machine.load_compiler(engine.compiler),
        engine.profile,
        cuda_graphs=switches.cuda_graph,
        cache=None if engine.cache is None else Path(engine.cache),
        spin=switches.spin,
    ) as runner:
        feeds = noise(runner.inputs, cell.batch, switches.seed, prepared.graph.image)
        if switches.transfers:
            yield runner, feeds
            return
        with ResidentRunner(runner) as resident:
            yield resident, resident.upload(feeds)


def noise(
    inputs: tuple[TensorSpec, ...], batch: int, seed: int, image: tuple[int, int] | None = None
) -> dict[str, Array]:
    """A batch for each input, normal with mean 0 and deviation 1, as prepared images are.

    ``image`` is the height and width where they are open. Whole numbers, which may be places in a
    table, are 0.

    Raises:
        UsageError: the model's batch is fixed at another number, or another dimension is open.
    """
    spec = inputs[0]
    if spec.shape[0] != batch and not isinstance(spec.shape[0], str):
        raise UsageError(
            f"input {spec.name!r} has a fixed batch of {spec.shape[0]}, not {batch}\n"
            f"measure --batch {spec.shape[0]}, or export the model with an open one"
        )
    random = np.random.default_rng(seed)
    sizes = {BATCH_AXIS: batch, **dict(zip(IMAGE_AXES, image or (), strict=False))}
    shapes = {spec: spec.with_sizes(sizes) for spec in inputs}
    return {
        spec.name: random.standard_normal(shape).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else np.zeros(shape, spec.dtype)
        for spec, shape in shapes.items()
    }


def _measure(
    runner: Runner,
    feeds: Mapping[str, Array],
    switches: Switches,
    clock: Clock,
    task: ProgressTask,
) -> _Measured:
    if switches.scenario == "server" and switches.bound_ms is not None:
        return _search(runner, feeds, switches, switches.bound_ms, clock, task)
    samples, duration_s = benchmark(
        runner, feeds, switches, clock=clock, task=task, rate_per_s=switches.rate_per_s
    )
    return _Measured(samples, duration_s, switches)


def _search(
    runner: Runner,
    feeds: Mapping[str, Array],
    switches: Switches,
    bound_ms: float,
    clock: Clock,
    task: ProgressTask,
) -> _Measured:
    found = highest_rate(runner, feeds, switches, bound_ms=bound_ms, clock=clock, task=task)
    if found.samples is None or found.duration_s is None:
        lowest = min(trial.rate_per_s for trial in found.trials)
        raise DataError(
            f"not even {lowest:.3g} queries per second keep 99 % of the latencies within "
            f"{bound_ms:g} ms\nallow more milliseconds, or take a smaller batch"
        )
    switches = replace(switches, rate_per_s=found.rate_per_s)
    return _Measured(found.samples, found.duration_s, switches)


@contextmanager
def _open_unbuilt(prepared: PreparedCell, switches: Switches) -> Iterator[Runner]:
    cell, threads = prepared.cell, switches.threads
    if cell.backend == "eager":
        from deploykit.backends.eager import EagerRunner

        spec = find_definition(cell.target)
        module, _ = build_with_weights(spec, None, 0)
        with EagerRunner(module, spec.inputs, spec.outputs, threads=threads) as runner:
            yield runner
        return
    device = "cuda" if cell.backend in ON_GPU else "cpu"
    # As `deploykit.load` runs it: a Q/DQ graph is computed node by node on the CPU.
    optimise = not prepared.graph.precision.facts.quantized
    with OrtRunner(
        Path(prepared.graph.path),
        device=device,
        threads=threads,
        optimise=optimise,
        spin=switches.spin,
    ) as session:
        yield session


def fitting(switches: Switches, backend: str) -> Switches:
    """A CPU has no graphs to launch and nothing to transfer; onnxruntime uses no CUDA graph."""
    if backend in ENGINES:
        return switches
    return replace(switches, cuda_graph=False, transfers=backend in ON_GPU)


def subject_of(prepared: PreparedCell) -> Subject:
    """What is measured, as far as it is known before."""
    cell, engine = prepared.cell, prepared.engine
    proven = prepared.graph.computes if engine is None else engine.precision
    is_eager = cell.backend == "eager"
    return Subject(
        model=cell.model,
        precision_asked=cell.precision,
        precision_proven=Precision.FP32 if is_eager else proven,
        backend=cell.backend,
        batch=cell.batch,
        onnx_sha256=None if is_eager else prepared.graph.sha256,
        engine_sha256=None if engine is None else engine.sha256,
        compiler=None if engine is None else engine.compiler,
        compiler_version=None if engine is None else engine.compiler_version,
    )


def _notes(prepared: PreparedCell, streams: int) -> tuple[str, ...]:
    cell, engine = prepared.cell, prepared.engine
    notes = [] if cell.backend == "eager" else list(prepared.graph.notes)
    if engine is not None:
        notes += engine.notes
        notes += _notes_on_lanes(streams)
    elif cell.backend == "ort" and not prepared.graph.precision.facts.is_source:
        notes.append(f"{cell.precision} is emulated on the CPU: this says nothing about a GPU")
    return tuple(notes)


def _notes_on_lanes(streams: int) -> list[str]:
    from deploykit.backends.trt.runner import LANES

    if streams <= LANES:
        return []
    return [f"{streams} streams share {LANES} execution contexts: the wall time has waiting in it"]


def _required(engine: BuiltEngine | None) -> BuiltEngine:
    if engine is None:
        raise DataError("the cell has no engine\nthis is an error in deploykit: report it")
    return engine


SYSTEM: Clock = SystemClock()

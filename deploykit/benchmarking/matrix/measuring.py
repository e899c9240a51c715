"""One cell, measured in this process."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.backends import (
    GPU,
    EngineBackend,
    EngineOptions,
    GraphBackend,
    GraphOptions,
    InspectedRunner,
    ModuleBackend,
    ModuleOptions,
)
from deploykit.backends._registry import find_backend
from deploykit.benchmarking.harness.rates import highest_rate
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.harness.system import Clock, SystemClock, SystemUnderTest
from deploykit.benchmarking.machine.conditions import watch
from deploykit.benchmarking.results import BenchmarkResult, Samples, Subject, Switches
from deploykit.core import environment
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import DataError, DeploykitError, IntegrityError, UsageError
from deploykit.core.serialization import to_plain
from deploykit.core.sizes import BATCH_AXIS, IMAGE_AXES, IMAGE_DIMS
from deploykit.sources.targets import find_definition
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.backends import AnyBackend, LayerConversion
    from deploykit.benchmarking.matrix.cells import BuiltEngine, Cell, CellGraph, PreparedCell
    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Array, QueryQueue, Runner, TensorSpec
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
    with open_cell(prepared, switches, machine) as (runner, feeds, queue):
        measured, conditions = watch(
            lambda on_warm: _measure(
                SystemUnderTest(runner, feeds, clock, on_warm, queue), switches, task
            ),
            on_gpu=cell.device == GPU,
        )
        remarks = tuple(getattr(runner, "remarks", ()))  # of a runner that has something to say
        conversions, unknown = conversions_of(runner, feeds)
    return BenchmarkResult(
        subject=subject_of(prepared),
        switches=measured.switches,
        samples=measured.samples,
        duration_s=measured.duration_s,
        environment={
            **to_plain(environment.describe()),
            "conditions": to_plain(conditions),
            "peak": prepared.peak,
        },
        condition=conditions.sentences(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        limit=prepared.graph.limits.get(cell.device, {}).get(cell.batch),
        notes=(*_notes(prepared, switches.streams), *remarks, *unknown),
        conversions=conversions,
    )


def conversions_of(
    runner: Runner, feeds: Mapping[str, Array]
) -> tuple[tuple[LayerConversion, ...] | None, tuple[str, ...]]:
    """Layers that only convert, ``None`` where they are not known; a note if that is a failure.

    What was measured is worth more than this, so no error is raised.
    """
    if not isinstance(runner, InspectedRunner):
        return None, ()
    try:
        return runner.conversions(feeds), ()
    except DeploykitError as error:
        reason = "; ".join(str(error).splitlines()[:2])
        return None, (f"the layers of the engine are not known: {reason}",)


@contextmanager
def open_cell(
    prepared: PreparedCell, switches: Switches, machine: Machine
) -> Iterator[tuple[Runner, Mapping[str, Array], QueryQueue | None]]:
    """The runner of a cell with one batch of noise to feed it, on the GPU without transfers.

    And the queue of the runner, where the switches ask for one.
    """
    cell = prepared.cell
    backend = find_backend(cell.backend)
    keep_on_device = backend.resident
    with _runner(prepared, switches, machine) as runner:
        feeds = noise(runner.inputs, cell.batch, switches.seed, prepared.graph.image)
        if switches.transfers or keep_on_device is None:
            with _queue(backend, runner, feeds, switches) as queue:
                yield runner, feeds, queue
            return
        resident, uploaded = keep_on_device(runner, feeds)
        with resident, _queue(backend, runner, uploaded, switches) as queue:
            yield resident, uploaded, queue


@contextmanager
def _queue(
    backend: AnyBackend, runner: Runner, feeds: Mapping[str, Array], switches: Switches
) -> Iterator[QueryQueue | None]:
    if backend.queue is None or switches.queue == 1:
        yield None
        return
    with closing(backend.queue(runner, feeds, switches.transfers)) as queue:
        yield queue


def _runner(prepared: PreparedCell, switches: Switches, machine: Machine) -> Runner:
    backend = find_backend(prepared.cell.backend)
    match backend:
        case ModuleBackend():
            spec = find_definition(prepared.cell.target)
            module, _ = build_with_weights(spec, None, 0)
            module_options = ModuleOptions(
                switches.threads, prepared.cell.precision, machine.gpu_index
            )
            return backend.open(module, spec.inputs, spec.outputs, module_options)
        case GraphBackend():
            # As `deploykit.load` runs it.
            graph_options = GraphOptions.for_precision(
                prepared.graph.precision,
                threads=switches.threads,
                spin=switches.spin,
                gpu_index=machine.gpu_index,
            )
            return backend.open(_same(prepared.graph), graph_options)
        case EngineBackend():
            return _engine_runner(backend, _required(prepared.engine), switches, machine)


def _engine_runner(
    backend: EngineBackend, engine: BuiltEngine, switches: Switches, machine: Machine
) -> Runner:
    options = EngineOptions(
        cuda_graphs=switches.cuda_graph,
        cache=None if engine.cache is None else Path(engine.cache),
        spin=switches.spin,
        gpu_index=machine.gpu_index,
    )
    compiler = machine.load_compiler(engine.compiler)
    return backend.open(_same(engine), compiler, engine.profile, options)


def _same(prepared: CellGraph | BuiltEngine) -> Path:
    """The file that was prepared: somebody may have exported over it since.

    Raises:
        IntegrityError: another file is there, or none.
    """
    path = Path(prepared.path)
    if not path.is_file() or sha256_of(path) != prepared.sha256:
        raise IntegrityError(
            f"{path} is not the file any more that was prepared: it was replaced meanwhile\n"
            "measure again when nobody exports to it"
        )
    return path


def noise(
    inputs: tuple[TensorSpec, ...], batch: int, seed: int, image: tuple[int, int] | None = None
) -> dict[str, Array]:
    """A batch for each input, normal with mean 0 and deviation 1, as prepared images are.

    ``image`` is the height and width where they are open. Pixels of uint8 are from 0 to 255; other
    whole numbers, which may be places in a table, are 0.

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
    return {each.name: _noise(each, shape, random) for each, shape in shapes.items()}


def _noise(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if spec.dtype.startswith("float"):
        return random.standard_normal(shape).astype(spec.dtype)
    if spec.dtype == "uint8" and len(shape) == IMAGE_DIMS:
        return random.integers(0, 256, shape, np.uint8)
    return np.zeros(shape, spec.dtype)


def _measure(system: SystemUnderTest, switches: Switches, task: ProgressTask) -> _Measured:
    if switches.scenario == "server" and switches.bound_ms is not None:
        return _search(system, switches, switches.bound_ms, task)
    samples, duration_s = benchmark(
        system.runner,
        system.feeds,
        switches,
        clock=system.clock,
        task=task,
        rate_per_s=switches.rate_per_s,
        on_warm=system.on_warm,
        queue=system.queue,
    )
    return _Measured(samples, duration_s, switches)


def _search(
    system: SystemUnderTest, switches: Switches, bound_ms: float, task: ProgressTask
) -> _Measured:
    found = highest_rate(
        system.runner,
        system.feeds,
        switches,
        bound_ms=bound_ms,
        clock=system.clock,
        task=task,
        on_warm=system.on_warm,
    )
    if found.samples is None or found.duration_s is None:
        lowest = min(trial.rate_per_s for trial in found.trials)
        raise DataError(
            f"not even {lowest:.3g} queries per second keep 99 % of the latencies within "
            f"{bound_ms:g} ms\nallow more milliseconds, or take a smaller batch"
        )
    switches = replace(switches, rate_per_s=found.rate_per_s)
    return _Measured(found.samples, found.duration_s, switches)


def fitting(switches: Switches, name: str) -> Switches:
    """The switches as they apply to a backend: a CPU has no launches and no transfers."""
    backend = find_backend(name)
    return replace(
        switches,
        cuda_graph=switches.cuda_graph and backend.cuda_graphs,
        transfers=backend.device == GPU and (switches.transfers or backend.resident is None),
        queue=1 if backend.queue is None else switches.queue,
    )


def subject_of(prepared: PreparedCell) -> Subject:
    """What is measured, as far as it is known before."""
    cell, engine = prepared.cell, prepared.engine
    runs_graph = _runs_graph(cell)
    proven = prepared.graph.computes if engine is None else engine.precision
    return Subject(
        model=cell.model,
        precision_asked=cell.precision,
        precision_proven=proven if runs_graph else cell.precision,
        backend=cell.backend,
        batch=cell.batch,
        onnx_sha256=prepared.graph.sha256 if runs_graph else None,
        engine_sha256=None if engine is None else engine.sha256,
        compiler=None if engine is None else engine.compiler,
        compiler_version=None if engine is None else engine.compiler_version,
    )


def _runs_graph(cell: Cell) -> bool:
    """Whether what is measured was made from the graph, and is not the definition's own module."""
    return not isinstance(find_backend(cell.backend), ModuleBackend)


def _notes(prepared: PreparedCell, streams: int) -> tuple[str, ...]:
    cell, engine = prepared.cell, prepared.engine
    of_graph = prepared.graph.notes if _runs_graph(cell) else ()
    of_engine = () if engine is None else engine.notes
    of_backend = find_backend(cell.backend).notes(prepared.graph.precision, streams)
    return (*of_graph, *of_engine, *of_backend)


def _required(engine: BuiltEngine | None) -> BuiltEngine:
    if engine is None:
        raise DataError("the cell has no engine\nthis is an error in deploykit: report it")
    return engine


SYSTEM: Clock = SystemClock()

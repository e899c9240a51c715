"""`deploykit bench`: from what was asked for to a file of results and its reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.backends import CPU, GPU
from deploykit.backends._product import product_programs
from deploykit.backends._registry import unavailable_backends
from deploykit.benchmarking.matrix.cells import plan_cells
from deploykit.benchmarking.matrix.cpu_peak import with_settled_peak
from deploykit.benchmarking.matrix.run import Checkpoint, MatrixRun, RemainingTime
from deploykit.benchmarking.matrix.steps import Steps, process_limits, usual_jobs
from deploykit.benchmarking.report.page import require_results_name, write_reports
from deploykit.benchmarking.report.rows import ranking, row_of, row_to_plain
from deploykit.benchmarking.report.slower import with_notes_on_slower
from deploykit.benchmarking.results import Switches, write_run
from deploykit.core import environment
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.gpu_choice import ENGINE_DEVICE, split_device, visible_alone
from deploykit.core.html_tables import html_table
from deploykit.core.progress import Progress, SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.costs.peaks import gpu_peak, measure_cpu_peaks
from deploykit.runtime.choice import machine_with
from deploykit.sources.calls import require_call
from deploykit.sources.targets import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from deploykit.benchmarking.matrix.cells import Cell, Matrix
    from deploykit.benchmarking.matrix.processes import ProcessLimits
    from deploykit.benchmarking.report.rows import Row
    from deploykit.benchmarking.results import BenchmarkResult, BenchmarkRun
    from deploykit.core.environment import Environment, Gpu
    from deploykit.costs.peaks import DevicePeak


OUR_WAY: Final = {"cuda_graph": True, "transfers": True, "spin": True, "overlap": False}
"""How a GPU is measured without a preset."""


def extent(*, quick: bool) -> tuple[float, float, int]:
    """Warm-up in s, duration in s and queries of a measurement, each at least."""
    return (0.2, 1.0, 10) if quick else (0.5, 5.0, 20)


def cell_s(*, quick: bool) -> float:
    """Time in s that the measurement of one cell may take."""
    return 90 if quick else 600


def usual_switches(*, quick: bool, seed: int = 0) -> Switches:
    """How it is measured where nothing else is asked: one query at a time."""
    warmup_s, duration_s, min_samples = extent(quick=quick)
    return Switches(
        scenario="single-stream",
        streams=1,
        warmup_s=warmup_s,
        duration_s=duration_s,
        min_samples=min_samples,
        seed=seed,
        cuda_graph=OUR_WAY["cuda_graph"],
        transfers=OUR_WAY["transfers"],
        spin=OUR_WAY["spin"],
    )


def default_output(kind: str) -> Path:
    """The file of results by the time, as ``benchmarks/results/bench-20260131-120000.json``."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return Path("benchmarks") / "results" / f"{kind}-{stamp}.json"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how.

    ``work`` keeps graphs and engines for the next run. ``memory_bytes`` is ``None`` for
    nine tenths of the machine's. ``fresh`` forgets an unfinished run instead of going on with it.
    ``choices`` are said of the targets that are exported to be measured: their head and its output.
    ``device`` names the GPU, of several: "cuda:1", a PCI bus id, a UUID.
    ``sizes`` has the height and width that an ``.onnx`` leaves open: the preferred ones are
    measured.
    """

    matrix: Matrix
    switches: Switches
    output: Path
    work: Path
    cell_s: float
    memory_bytes: int | None = None
    fresh: bool = False
    choices: DefinitionChoices = field(default_factory=DefinitionChoices)
    device: str = ENGINE_DEVICE
    sizes: ShapeProfile = field(default_factory=ShapeProfile)


@dataclass(frozen=True)
class Ranked:
    """The models of one backend, precision and batch, the fastest first."""

    title: str
    places: tuple[tuple[int, str, float], ...]


def ranked_to_plain(ranked: Ranked) -> dict[str, Any]:
    """Plain data for ``--json``."""
    names = ("rank", "model", "latency_ms")
    places = [dict(zip(names, place, strict=True)) for place in ranked.places]
    return {"title": ranked.title, "places": places}


@dataclass(frozen=True)
class BenchReport:
    """What was measured, where it was written, and what a person should know about it."""

    run: BenchmarkRun
    files: tuple[Path, ...]
    resumed: int
    notes: tuple[str, ...]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """A row for each result."""
        return tuple(map(row_of, self.run.results))

    def _repr_html_(self) -> str:
        """A row for each measurement, as notebooks show it."""
        columns = ("model", "precision", "backend", "batch", "p50, ms", "images/s")
        rows = (
            (
                row.model,
                str(row.precision),
                row.backend,
                str(row.batch),
                f"{row.median_ms:.3f}",
                f"{row.throughput_per_s:.1f}",
            )
            for row in self.rows
        )
        failed = (f"{each.key} failed: {each.reason}" for each in self.run.failures)
        return html_table(columns, rows, right=columns[3:], notes=(*failed, *self.notes))

    @property
    def rankings(self) -> tuple[Ranked, ...]:
        """Every group of two models or more that differ in nothing else."""
        return tuple(rankings(self.run.results))


def bench_to_plain(report: BenchReport) -> dict[str, Any]:
    """Plain data for ``--json``."""
    return {
        "results": list(map(row_to_plain, report.rows)),
        "failures": to_plain(report.run.failures),
        "rankings": list(map(ranked_to_plain, report.rankings)),
        "files": [str(path) for path in report.files],
        "resumed": report.resumed,
        "notes": list(report.notes),
    }


def require_targets(named: Iterable[str]) -> tuple[str, ...]:
    """The targets, each once.

    Raises:
        UsageError: there is none.
    """
    targets = tuple(dict.fromkeys(named))
    if not targets:
        raise UsageError(
            "nothing to measure\nname architectures, .onnx files or bundles; every architecture: "
            "deploykit bench --all"
        )
    return targets


def measure(options: BenchOptions, progress: Progress | None = None) -> BenchReport:
    """As `bench`, of targets that are looked at first.

    Raises:
        DeploykitError: there is no such target, or as `bench` says.
    """
    require_call(options.matrix.targets)
    from deploykit.benchmarking.matrix.preparing import own_precisions  # takes seconds

    own = own_precisions(options.matrix.targets, options.choices, options.sizes)
    return bench(options, own, progress)


def bench(
    options: BenchOptions, own_precision: Mapping[str, Any], progress: Progress | None = None
) -> BenchReport:
    """Measure every cell of the matrix and write ``options.output`` with its reports beside it.

    ``own_precision`` comes from `graphs.own_precisions`. A run that was interrupted goes on where
    it was when the same is asked for again.

    Raises:
        EngineIncompatibleError: no backend that was asked for works here.
        UsageError: nothing is left to measure, or the file's name is not ``*.json``.
        BundleError: a file cannot be written; the notebook keeps what was measured.
    """
    progress = progress or SilentProgress()
    require_results_name(options.output)
    here = environment.describe()
    named = named_gpu(options.device)
    visible = None
    if named is not None:
        here, visible = replace(here, gpus=(named,)), visible_alone(named)
    unavailable = unavailable_backends(here.gpus)
    cells = plan_cells(options.matrix, unavailable, own_precision)
    checkpoint = Checkpoint(options.output.parent, _identity(cells, options, here))
    if options.fresh:
        checkpoint.discard()
    resumed, notes = checkpoint.found, list(_notes_on_backends(options.matrix, unavailable))
    limits = process_limits(options.cell_s, options.memory_bytes, here.memory_bytes, visible)
    steps = _steps(cells, options, here, limits, progress, notes)
    campaign = MatrixRun(cells, steps, checkpoint)
    with progress.step("bench") as task:
        campaign.run(RemainingTime(task, campaign.length))
    run = with_notes_on_slower(checkpoint.run())
    if CPU in steps.peaks:
        measure = _cpu_trial(cells, options.switches, here)
        with progress.step("measure this CPU's peak again"):
            run = with_settled_peak(run, lambda seconds: measure(seconds=seconds))
    write_run(options.output, run)
    files = (options.output, *write_reports(run, options.output))
    checkpoint.discard()
    return BenchReport(run, files, resumed, tuple(notes))


def named_gpu(device: str) -> Gpu | None:
    """The GPU that ``device`` names; ``None`` for "cuda" alone, or where there is none.

    Raises:
        UsageError: it is no GPU, or one that is not here.
    """
    machine = machine_with(device)
    return machine.gpus[0] if split_device(device)[1] and machine.gpus else None


def visible_gpus(device: str) -> str | None:
    """``CUDA_VISIBLE_DEVICES`` of the processes that measure on ``device``.

    ``None`` where it names no GPU: then they see what this process sees.

    Raises:
        UsageError: it is no GPU, or one that is not here.
    """
    named = named_gpu(device)
    return None if named is None else visible_alone(named)


def rankings(results: Iterable[BenchmarkResult]) -> Iterable[Ranked]:
    """The models that differ in nothing else, ranked."""
    groups: dict[str, list[BenchmarkResult]] = {}
    for result in results:
        subject = result.subject
        title = f"{subject.backend} {subject.precision_asked} batch {subject.batch}"
        groups.setdefault(title, []).append(result)
    for title, members in groups.items():
        if len(members) > 1:
            yield Ranked(title, tuple(ranking(members)))


def _steps(
    cells: Sequence[Cell],
    options: BenchOptions,
    here: Environment,
    limits: tuple[ProcessLimits, ProcessLimits],
    progress: Progress,
    notes: list[str],
) -> Steps:
    devices = {cell.device for cell in cells}
    found = {
        CPU: _cpu_peak(_cpu_trial(cells, options.switches, here), progress, notes)
        if CPU in devices
        else None,
        GPU: _gpu_peak(here, notes) if GPU in devices else None,
    }
    return Steps(
        switches=options.switches,
        work=options.work,
        limits=limits[0],
        prepare_limits=limits[1],
        jobs=usual_jobs(here.logical_cores, here.memory_bytes),
        peaks={name: peak for name, peak in found.items() if peak is not None},
        choices=options.choices,
        sizes=options.sizes,
    )


def _cpu_trial(
    cells: Sequence[Cell], switches: Switches, here: Environment
) -> Callable[..., DevicePeak]:
    """A trial of this CPU with the threads and the libraries of the run."""
    products = product_programs({cell.backend for cell in cells})
    threads = switches.threads or here.logical_cores
    return partial(measure_cpu_peaks, threads, products=products)


def _cpu_peak(
    measure: Callable[..., DevicePeak], progress: Progress, notes: list[str]
) -> DevicePeak | None:
    with progress.step("measure this CPU's peak"):
        try:
            return measure()
        except DeviceError as error:
            notes.append(f"no physical limits: {'; '.join(str(error).splitlines())}")
            return None


def _gpu_peak(here: Environment, notes: list[str]) -> DevicePeak | None:
    name = here.gpus[0].name
    found = gpu_peak(name)
    if found.peak is None:
        like = f"; it may be {' or '.join(found.candidates)}" if found.candidates else ""
        notes.append(f"no physical limits: the rates of {name} are not in the table{like}")
    return found.peak


def _notes_on_backends(matrix: Matrix, unavailable: Mapping[str, str]) -> Iterable[str]:
    """Of those that were asked for by name; of the others nobody expects anything."""
    for name in matrix.backends or ():
        if name in unavailable:
            yield f"{name} was not measured: {unavailable[name]}"


def _identity(cells: Sequence[Cell], options: BenchOptions, here: Environment) -> dict[str, Any]:
    """What makes two runs the same: the cells, how they are measured, and the machine."""
    targets = sorted({cell.target for cell in cells})
    return {
        "cells": [[cell.target, cell.key] for cell in cells],
        "files": {target: digest_of(target) for target in targets},
        "switches": to_plain(options.switches),
        "limits": [options.cell_s, options.memory_bytes],
        "head": [options.choices.head, options.choices.head_output],
        "sizes": [str(options.sizes.height), str(options.sizes.width)],
        "environment": to_plain(here),
    }

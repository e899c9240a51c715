from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.benchmarking.matrix.cells import BuiltEngine, Cell, CellGraph
from deploykit.benchmarking.matrix.processes import ChildFailure, ProcessLimits
from deploykit.benchmarking.matrix.run import Checkpoint, MatrixRun, RemainingTime
from deploykit.benchmarking.matrix.steps import Steps, usual_jobs
from deploykit.benchmarking.results import Subject
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import Source, engine_to_plain, from_plain, to_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.costs.peaks import gpu_peak
from tests.unit.benchmarking.statistics.noise import SWITCHES, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from threading import Event

    from deploykit.core.progress import ProgressTask

FP32 = Precision.FP32
LIMITS, PREPARE = ProcessLimits(10.0), ProcessLimits(99.0)


class Scripted:
    """Answers as the worker does; ``fails`` has the reason for some of the steps."""

    def __init__(self, fails: Mapping[str, ChildFailure] | None = None) -> None:
        self.fails = dict(fails or {})
        self.made: list[str] = []
        self.requests: dict[str, Mapping[str, Any]] = {}

    def __call__(
        self,
        step: str,
        request: Mapping[str, Any],
        limits: ProcessLimits,
        *,
        progress: ProgressTask,
        stop: Event | None = None,
    ) -> dict[str, Any]:
        assert limits is (LIMITS if step == "cell" else PREPARE)
        cell = None if step == "graph" else from_plain(Cell, request["cell"], Source("request"))
        name = f"{step} {request['target'] if cell is None else cell.key}"
        self.made.append(name)
        self.requests[name] = request
        progress.update(1, 2, "half")
        if name in self.fails:
            raise self.fails[name]
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "graph": lambda: to_plain(graph_of(request)),
            "engine": lambda: engine_to_plain(ENGINE),
            "cell": lambda: to_plain(result_of([1.0], subject=subject_of(cell))),
        }
        return answers[step]()


ENGINE = BuiltEngine(
    path="e.engine",
    sha256="e" * 64,
    compiler="tensorrt",
    compiler_version="11.4",
    precision=FP32,
    profile=ShapeProfile(1, 1, 1),
    cache=None,
    notes=(),
)


def graph_of(request: Mapping[str, Any]) -> CellGraph:
    return CellGraph(
        path=f"{request['target']}.onnx",
        sha256="a" * 64,
        precision=Precision(request["precision"]),
        computes=FP32,
        folder=None,
        own=False,
        limits={},
        notes=(),
    )


def subject_of(cell: Cell | None) -> Subject:
    assert cell is not None
    return Subject(cell.model, cell.precision, FP32, cell.backend, cell.batch)


def cells(*names: str) -> list[Cell]:
    """From "model/backend/precision/batch"."""
    found = []
    for name in names:
        model, backend, precision, batch = name.split("/")
        found.append(Cell(model, model, backend, Precision(precision), int(batch.strip("b"))))
    return found


def run(folder: Path, wanted: Sequence[Cell], steps: Scripted) -> Checkpoint:
    checkpoint = Checkpoint(folder, {"cells": [cell.key for cell in wanted]})
    real = Steps(SWITCHES, folder / "work", LIMITS, PREPARE, call=steps)
    campaign = MatrixRun(wanted, real, checkpoint)
    with SilentProgress().step("bench") as task:
        campaign.run(RemainingTime(task, campaign.length))
    return checkpoint


def measured(checkpoint: Checkpoint) -> list[str]:
    subjects = [result.subject for result in checkpoint.run().results]
    return [f"{each.model}/{each.backend}/b{each.batch}" for each in subjects]


def test_graphs_come_first_one_for_all_cells_that_share_it(tmp_path: Path) -> None:
    wanted = cells("a/ort/fp32/b1", "a/eager/fp32/b8", "b/ort/fp32/b1")
    steps = Scripted()
    checkpoint = run(tmp_path, wanted, steps)
    assert steps.made == [
        "graph a",
        "graph b",
        "cell a/ort/fp32/b1",
        "cell a/eager/fp32/b8",
        "cell b/ort/fp32/b1",
    ]
    assert measured(checkpoint) == ["a/ort/b1", "a/eager/b8", "b/ort/b1"]
    request = steps.requests["graph a"]
    assert request["batches"] == [1, 2, 4, 8]
    assert (request["precision"], request["peaks"]) == ("fp32", {})
    request = steps.requests["cell a/ort/fp32/b1"]
    assert request["graph"]["path"] == "a.onnx"
    assert request["engine"] is None
    assert request["switches"]["seed"] == SWITCHES.seed


def test_a_backend_of_engines_gets_one_for_each_batch(tmp_path: Path) -> None:
    steps = Scripted()
    run(tmp_path, cells("a/tensorrt/fp32/b1", "a/tensorrt/fp32/b8"), steps)
    assert steps.made == [
        "graph a",
        "engine a/tensorrt/fp32/b1",
        "cell a/tensorrt/fp32/b1",
        "engine a/tensorrt/fp32/b8",
        "cell a/tensorrt/fp32/b8",
    ]
    assert steps.requests["cell a/tensorrt/fp32/b1"]["engine"]["sha256"] == "e" * 64


def test_a_failed_cell_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    late = ChildFailure("time limit", "not done after 10 s")
    steps = Scripted({"cell a/ort/fp32/b1": late})
    checkpoint = run(tmp_path, cells("a/ort/fp32/b1", "b/ort/fp32/b1"), steps)
    assert measured(checkpoint) == ["b/ort/b1"]
    (failure,) = checkpoint.run().failures
    assert (failure.key, failure.kind, failure.reason) == (
        "a/ort/fp32/b1",
        "time limit",
        "not done after 10 s",
    )
    assert failure.seconds >= 0


def test_without_its_graph_no_cell_is_measured(tmp_path: Path) -> None:
    steps = Scripted({"graph a": ChildFailure("error", "no exporter takes it")})
    wanted = cells("a/ort/fp32/b1", "a/eager/fp32/b1", "b/ort/fp32/b1")
    checkpoint = run(tmp_path, wanted, steps)
    assert measured(checkpoint) == ["b/ort/b1"]
    assert [each.key for each in checkpoint.run().failures] == ["a/ort/fp32/b1", "a/eager/fp32/b1"]


def test_out_of_memory_tries_smaller_batches_until_one_is_planned(tmp_path: Path) -> None:
    full = ChildFailure("out of memory", "over 900 MiB")
    steps = Scripted({f"cell a/ort/fp32/b{batch}": full for batch in (32, 16)})
    checkpoint = run(tmp_path, cells("a/ort/fp32/b1", "a/ort/fp32/b32"), steps)
    assert measured(checkpoint) == ["a/ort/b1", "a/ort/b8"]
    assert [each.batch for each in checkpoint.run().failures] == [32, 16]
    steps = Scripted({f"cell a/ort/fp32/b{batch}": full for batch in (8, 4)})
    checkpoint = run(tmp_path / "2", cells("a/ort/fp32/b4", "a/ort/fp32/b8"), steps)
    assert [each.batch for each in checkpoint.run().failures] == [4, 8]
    assert measured(checkpoint) == ["a/ort/b2"]


def test_the_smallest_batch_has_no_smaller_one(tmp_path: Path) -> None:
    steps = Scripted({"cell a/ort/fp32/b1": ChildFailure("out of memory", "over 900 MiB")})
    checkpoint = run(tmp_path, cells("a/ort/fp32/b1"), steps)
    assert len(checkpoint.run().failures) == len(checkpoint) == 1


def test_what_an_earlier_start_did_is_not_done_again(tmp_path: Path) -> None:
    wanted = cells("a/ort/fp32/b1", "a/ort/fp32/b32", "b/ort/fp32/b1")
    full = ChildFailure("out of memory", "over 900 MiB")

    class Interrupted(Scripted):
        def __call__(self, step: str, request: Mapping[str, Any], *rest: Any, **more: Any) -> Any:
            if step == "cell" and request["cell"]["batch"] == 16:
                raise KeyboardInterrupt
            return super().__call__(step, request, *rest, **more)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, wanted, Interrupted({"cell a/ort/fp32/b32": full}))
    steps = Scripted()
    checkpoint = run(tmp_path, wanted, steps)
    assert steps.made == ["graph a", "graph b", "cell a/ort/fp32/b16", "cell b/ort/fp32/b1"]
    assert checkpoint.found == 2
    assert measured(checkpoint) == ["a/ort/b1", "a/ort/b16", "b/ort/b1"]
    steps = Scripted()
    run(tmp_path, wanted, steps)
    assert steps.made == []


def test_a_graph_serves_cpu_and_gpu_and_each_cell_gets_its_own_peak(tmp_path: Path) -> None:
    peak = gpu_peak("NVIDIA L4").peak
    assert peak is not None
    peaks = {"cpu": replace(peak, name="CPU"), "gpu": peak}
    steps = Scripted()
    wanted = cells("a/ort/fp32/b1", "a/ort-cuda/fp32/b1")
    real = Steps(SWITCHES, tmp_path, LIMITS, PREPARE, 1, peaks, steps)
    campaign = MatrixRun(wanted, real, Checkpoint(tmp_path, {}))
    assert campaign.length == 3
    with SilentProgress().step("bench") as task:
        campaign.run(RemainingTime(task, campaign.length))
    assert steps.made == ["graph a", "cell a/ort/fp32/b1", "cell a/ort-cuda/fp32/b1"]
    assert set(steps.requests["graph a"]["peaks"]) == {"cpu", "gpu"}
    names = [
        steps.requests[f"cell a/{each}/fp32/b1"]["peak"]["name"] for each in ("ort", "ort-cuda")
    ]
    assert names == ["CPU", peak.name]


def test_an_interrupt_stops_the_exports_that_are_under_way(tmp_path: Path) -> None:
    stopped: list[str] = []

    def call(step: str, request: Mapping[str, Any], *_: Any, stop: Event, **__: Any) -> Any:
        if request["target"] == "a":
            time.sleep(0.3)  # until the main thread has nothing to do but wait
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(20)
        stopped.append(request["target"])
        raise ChildFailure("error", "stopped before its end")

    steps = Steps(SWITCHES, tmp_path, LIMITS, PREPARE, 2, call=call)
    wanted = cells("b/ort/fp32/b1", "a/ort/fp32/b1", "c/ort/fp32/b1")
    checkpoint = Checkpoint(tmp_path, {})
    campaign = MatrixRun(wanted, steps, checkpoint)
    with pytest.raises(KeyboardInterrupt), SilentProgress().step("bench") as task:
        campaign.run(RemainingTime(task, campaign.length))
    assert sorted(stopped) == ["a", "b"]
    assert not len(checkpoint)


def test_few_exports_run_at_a_time_on_a_small_machine() -> None:
    assert usual_jobs(2, 24_000_000_000) == 2
    assert usual_jobs(64, 500_000_000_000) == 4
    assert usual_jobs(8, 4_000_000_000) == usual_jobs(8, None) == 1

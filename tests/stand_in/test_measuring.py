"""Cells on an engine, measured on the stand-in driver: which switches reach it, and which steps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import LayerConversion
from deploykit.backends.trt.runner import ResidentRunner
from deploykit.benchmarking.matrix.cells import BuiltEngine, Cell, CellGraph, PreparedCell
from deploykit.benchmarking.matrix.measuring import SYSTEM, measure_cell
from deploykit.benchmarking.report.rows import row_of
from deploykit.benchmarking.results import BenchmarkResult, Switches
from deploykit.core import environment
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import UsageError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.runtime.choice import Machine
from tests.runner_scenarios import PROFILE, images

if TYPE_CHECKING:
    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

FP32 = Precision.FP32
TRTEXEC_10 = Switches(
    scenario="single-stream",
    cuda_graph=False,
    transfers=True,
    streams=1,
    spin=False,
    warmup_s=0.0,
    duration_s=0.0,
    min_samples=12,
    seed=0,
    preset="trtexec10",
)
TRTEXEC_11 = replace(TRTEXEC_10, cuda_graph=True, transfers=False, spin=True, preset="trtexec11")


def measured(bench: Bench, switches: Switches) -> BenchmarkResult:
    engine = BuiltEngine(
        path=str(bench.plan),
        sha256=sha256_of(bench.plan),
        compiler=bench.compiler.name,
        compiler_version=bench.compiler.version,
        precision=FP32,
        profile=PROFILE,
        cache=None,
        notes=("compiled for the stand-in",),
    )
    graph = CellGraph(str(bench.onnx), "a" * 64, FP32, FP32, None, False, {}, ())
    cell = Cell("conv.onnx", "conv", bench.compiler.name, FP32, 2)
    machine = Machine(gpus=environment.gpus(), load_compiler=lambda _: bench.compiler)
    with SilentProgress().step("cell") as task:
        prepared = PreparedCell(cell, graph, engine, None)
        return measure_cell(prepared, switches, machine, clock=SYSTEM, task=task)


def test_the_older_preset_has_transfers_and_no_graph(bench: Bench, script: Script) -> None:
    result = measured(bench, TRTEXEC_10)
    assert script.captured == 0
    samples = result.samples
    assert samples.h2d_ms is not None
    assert samples.d2h_ms is not None
    assert samples.compute_ms is not None
    assert (samples.latency_ms >= samples.compute_ms).all()
    assert set(row_of(result).steps_ms) == {
        "wall_ms",
        "h2d_ms",
        "compute_ms",
        "d2h_ms",
        "enqueue_ms",
    }
    assert result.subject.engine_sha256 == sha256_of(bench.plan)
    assert result.subject.compiler == "tensorrt"
    assert result.notes == ("compiled for the stand-in",)
    assert result.switches == TRTEXEC_10


def test_the_newer_preset_has_a_graph_and_no_transfers(bench: Bench, script: Script) -> None:
    result = measured(bench, TRTEXEC_11)
    assert script.captured == 1
    samples = result.samples
    assert samples.h2d_ms is None
    assert samples.d2h_ms is None
    assert samples.enqueue_ms is not None
    assert np.array_equal(samples.latency_ms, np.asarray(samples.compute_ms))


@pytest.mark.parametrize("switches", [TRTEXEC_10, TRTEXEC_11], ids=["host", "resident"])
def test_layers_that_only_convert_are_kept(
    bench: Bench, script: Script, switches: Switches
) -> None:
    name = "Reformatting CopyNode for Output Tensor 0 to conv"
    script.layers = json.dumps({"Layers": ["conv", name]})
    result = measured(bench, switches)
    assert result.conversions == (
        LayerConversion("reformat", name, "conv", "", "", at_border=False),
    )
    read = from_plain(BenchmarkResult, json.loads(json.dumps(to_plain(result))), Source("r"))
    assert read.conversions == result.conversions


def test_a_measurement_does_not_depend_on_the_inspector(bench: Bench, script: Script) -> None:
    script.refuses.add("create_engine_inspector")
    result = measured(bench, TRTEXEC_10)
    assert result.conversions is None
    (note,) = result.notes[1:]
    assert note == (
        f"the layers of the engine are not known: {bench.plan.name}: tensorrt "
        f"{bench.compiler.version} makes no inspector of its layers; it says: the reason"
    )


def test_more_streams_than_an_engine_serves_at_once_are_mentioned(bench: Bench) -> None:
    result = measured(bench, replace(TRTEXEC_10, scenario="offline", streams=6, preset=None))
    assert result.notes[-1].startswith("6 streams share 4 execution contexts")


def test_uploaded_inputs_compute_what_host_inputs_do(runner: TrtRunner, bench: Bench) -> None:
    check = bench.oracle()
    with ResidentRunner(runner) as resident:
        assert resident.inputs == runner.inputs
        assert resident.outputs == runner.outputs
        given = images(3)
        uploaded = resident.upload({"x": given})
        for _ in range(3):
            check(given, {name: each.numpy() for name, each in resident.run(uploaded).items()})
        outputs, steps = resident.run_timed(uploaded)
    assert outputs == {}
    assert steps.compute_ms is not None
    assert steps.wall_ms >= 0
    assert steps.h2d_ms is steps.d2h_ms is None
    check(given, runner.run({"x": given}))  # the runner behind it is still open


def test_uploads_are_checked_as_any_input(runner: TrtRunner) -> None:
    with pytest.raises(UsageError, match="x"):
        ResidentRunner(runner).upload({"x": images(1)[:, :1]})


@pytest.mark.parametrize(("spin", "flag"), [(True, 1), (False, 4)])
def test_waiting_is_chosen_for_the_whole_process(bench: Bench, *, spin: bool, flag: int) -> None:
    driver = environment.require("cuda.bindings.driver")
    with bench.runner(spin=spin) as runner:
        runner.run({"x": images(1)})
        _, flags, active = driver.cuDevicePrimaryCtxGetState(0)
        # CUctx_flags of cuda.h: CU_CTX_SCHED_SPIN is 1, CU_CTX_SCHED_BLOCKING_SYNC is 4.
        assert (flags, active) == (flag, 1)

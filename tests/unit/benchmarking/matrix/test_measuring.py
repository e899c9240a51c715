from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit import __version__
from deploykit.benchmarking.matrix.cells import (
    BuiltEngine,
    Cell,
    CellGraph,
    PreparedCell,
    prepared_to_plain,
)
from deploykit.benchmarking.matrix.measuring import SYSTEM, measure_cell, noise, open_cell
from deploykit.benchmarking.results import BenchmarkResult, Switches
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import (
    DataError,
    EngineIncompatibleError,
    IntegrityError,
    MissingDependencyError,
    UsageError,
)
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import Source, from_plain, to_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import TensorSpec
from deploykit.costs.limits import Limit
from deploykit.runtime.choice import Machine
from tests.graphs import graph, normal, save

FP32 = Precision.FP32
SWITCHES = Switches(
    scenario="single-stream",
    cuda_graph=True,
    transfers=True,
    streams=1,
    spin=True,
    warmup_s=0.0,
    duration_s=0.0,
    min_samples=12,
    seed=3,
    threads=1,
)
LIMIT = Limit(
    flop=10,
    required_bytes=10,
    compute_ms=1e-9,
    memory_ms=1e-9,
    uncached_ms=0.0,
    peak_measured=True,
)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedCell:
    model = graph(
        """g (float[N,3,8,8] input) => (float[N,4,8,8] logits) {
            logits = Conv <pads = [1, 1, 1, 1]> (input, w)
        }""",
        {"w": normal(4, 3, 3, 3)},
    )
    path = save(model, tmp_path / "mine.onnx")
    graph_ = CellGraph(
        str(path), sha256_of(path), FP32, FP32, None, False, {"cpu": {2: LIMIT}}, ("given",)
    )
    return PreparedCell(Cell(str(path), "mine", "ort", FP32, 2), graph_, None, {"name": "this CPU"})


def measured(prepared: PreparedCell, switches: Switches = SWITCHES) -> BenchmarkResult:
    with SilentProgress().step("cell") as task:
        return measure_cell(prepared, switches, Machine(gpus=()), clock=SYSTEM, task=task)


def test_a_result_holds_all_that_is_needed_to_judge_it(prepared: PreparedCell) -> None:
    result = measured(prepared)
    subject = result.subject
    assert (subject.model, subject.backend, subject.batch) == ("mine", "ort", 2)
    assert (subject.precision_asked, subject.precision_proven) == (FP32, FP32)
    assert subject.onnx_sha256 == prepared.graph.sha256
    assert subject.engine_sha256 is subject.compiler is None
    assert len(result.samples) >= 12
    assert result.samples.compute_ms is not None
    assert (result.samples.compute_ms <= result.samples.wall_ms).all()
    assert result.samples.h2d_ms is result.samples.enqueue_ms is None
    assert result.environment["deploykit"] == __version__
    assert result.environment["conditions"]["host"]["logical_cores"] >= 1
    assert result.environment["conditions"]["gpu"] is None
    assert result.environment["peak"] == {"name": "this CPU"}
    assert (result.limit, result.notes) == (LIMIT, ("given",))
    # A CPU has no graphs and no transfers, whatever the switches say about GPUs.
    assert result.switches == replace(SWITCHES, cuda_graph=False, transfers=False)
    text = json.dumps(to_plain(result))
    assert json.dumps(to_plain(from_plain(BenchmarkResult, json.loads(text), Source("r")))) == text


def test_a_request_survives_json(prepared: PreparedCell) -> None:
    engine = BuiltEngine(
        "e.engine", "e" * 64, "tensorrt", "11.4", FP32, ShapeProfile(1, 2, 4), "c.cache", ("x",)
    )
    full = replace(prepared, engine=engine)
    plain = json.loads(json.dumps(prepared_to_plain(full)))
    assert from_plain(PreparedCell, plain, Source("request")) == full


def test_torch_runs_the_definition_in_fp32(prepared: PreparedCell) -> None:
    cell = Cell("resnet20", "resnet20", "eager", FP32, 1)
    result = measured(replace(prepared, cell=cell), replace(SWITCHES, min_samples=1))
    assert result.subject.precision_proven is FP32
    assert result.subject.onnx_sha256 is None
    assert result.notes == ()


def test_on_a_cpu_other_precisions_are_emulated(prepared: PreparedCell) -> None:
    half = replace(
        prepared,
        cell=replace(prepared.cell, precision=Precision.FP16),
        graph=replace(prepared.graph, precision=Precision.FP16),
    )
    text = "fp16 is emulated on the CPU: this says nothing about a GPU"
    assert measured(half).notes == ("given", text)


def test_a_graph_that_was_replaced_meanwhile_is_not_measured(prepared: PreparedCell) -> None:
    Path(prepared.graph.path).write_bytes(b"another")
    with pytest.raises(IntegrityError, match=r"it was replaced meanwhile\nmeasure again"):
        measured(prepared)
    Path(prepared.graph.path).unlink()
    with pytest.raises(IntegrityError, match="is not the file any more that was prepared"):
        measured(prepared)


def test_queries_that_arrive_are_measured_at_their_rate(prepared: PreparedCell) -> None:
    served = replace(SWITCHES, scenario="server", rate_per_s=2000.0, min_samples=50)
    result = measured(prepared, served)
    assert len(result.samples) == 50
    assert result.samples.start_s[-1] > 5 / 2000


def test_the_highest_rate_within_a_bound_is_found_and_kept(prepared: PreparedCell) -> None:
    searched = replace(SWITCHES, scenario="server", bound_ms=10_000.0, min_samples=100)
    result = measured(prepared, searched)
    assert result.switches.bound_ms == 10_000.0
    assert result.switches.rate_per_s is not None
    assert result.switches.rate_per_s > 0


def test_a_bound_that_nothing_keeps_is_refused(prepared: PreparedCell) -> None:
    searched = replace(SWITCHES, scenario="server", bound_ms=1e-6, min_samples=100)
    message = r"not even .* queries per second keep 99 % of the latencies within 1e-06 ms\nallow"
    with pytest.raises(DataError, match=message):
        measured(prepared, searched)


def test_a_cell_on_a_gpu_fails_where_there_is_none(prepared: PreparedCell) -> None:
    cell = replace(prepared.cell, backend="ort-cuda")
    with pytest.raises(EngineIncompatibleError, match=r"mine\.onnx cannot run on cuda"):
        measured(replace(prepared, cell=cell))


def test_an_engine_that_nobody_built_is_an_error_of_ours(prepared: PreparedCell) -> None:
    cell = replace(prepared.cell, backend="tensorrt")
    with pytest.raises(DataError, match="the cell has no engine\nthis is an error in deploykit"):
        measured(replace(prepared, cell=cell))


def test_an_engine_needs_its_compiler(prepared: PreparedCell, tmp_path: Path) -> None:
    def load(name: str) -> Any:
        raise MissingDependencyError(f"{name} is not installed")

    engine = BuiltEngine(
        str(tmp_path / "e"), "e" * 64, "tensorrt", "11.4", FP32, ShapeProfile(1, 2, 4), None, ()
    )
    full = replace(prepared, cell=replace(prepared.cell, backend="tensorrt"), engine=engine)
    machine = Machine(gpus=(), load_compiler=load)
    with (
        pytest.raises(MissingDependencyError, match="tensorrt is not installed"),
        open_cell(full, SWITCHES, machine),
    ):
        pass


def test_noise_is_what_the_seed_makes() -> None:
    inputs = (TensorSpec("x", "float16", ("N", 3, 8, 8)), TensorSpec("y", "float32", (4, 2)))
    first, again, other = (noise(inputs, 4, seed) for seed in (0, 0, 1))
    assert first["x"].shape == (4, 3, 8, 8)
    assert [first[name].dtype.name for name in ("x", "y")] == ["float16", "float32"]
    assert np.array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    assert abs(float(first["x"].mean())) < 0.2


def test_whole_numbers_beside_the_images_are_places_in_any_table() -> None:
    inputs = (
        TensorSpec("x", "float32", ("batch", 3, 8, 8)),
        TensorSpec("word", "int64", ("batch", 2)),
    )
    found = noise(inputs, 4, 0)
    np.testing.assert_array_equal(found["word"], np.zeros((4, 2), np.int64))


def test_noise_of_an_open_size_is_of_the_size_that_the_bundle_prepares() -> None:
    inputs = (TensorSpec("x", "float32", ("N", 3, "h", 8)),)
    assert noise(inputs, 4, 0, (12, 9))["x"].shape == (4, 3, 12, 8)
    with pytest.raises(UsageError, match="h is open, and has no size here"):
        noise(inputs, 4, 0)


def test_a_fixed_batch_is_not_measured_as_another_one() -> None:
    inputs = (TensorSpec("x", "float32", (2, 3, 8, 8)),)
    assert noise(inputs, 2, 0)["x"].shape == (2, 3, 8, 8)
    with pytest.raises(UsageError, match="input 'x' has a fixed batch of 2, not 8\nmeasure --ba"):
        noise(inputs, 8, 0)

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends import Compiler
from deploykit.benchmarking.matrix.cells import (
    BuiltEngine,
    Cell,
    CellGraph,
    PreparedCell,
    prepared_to_plain,
)
from deploykit.benchmarking.matrix.preparing import RECORD, prepare_engine
from deploykit.bundle.manifest import Bundle
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import EngineIncompatibleError, IntegrityError
from deploykit.core.precision import Precision
from deploykit.core.serialization import Source, engine_to_plain, from_plain
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.runtime.choice import Machine
from tests.bundles import COLOURS, engine_record, write_bundle
from tests.fakes.engine_fake import ADA, FakeMachine
from tests.fakes.network_fake import ILayer, INetworkDefinition, ITensor, LayerType
from tests.fakes.tensorrt_fake import FakeTensorrt
from tests.fakes.tensorrt_fake import Script as FakeScript
from tests.graphs import graph as onnx_graph
from tests.graphs import save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.environment import Gpu

CELL = Cell("mine.onnx", "mine", "tensorrt", Precision.FP32, 8)

ENGINE = Source("engine")


def machine(
    plan: bytes = b"ftrt plan", gpu: Gpu = ADA, shape: tuple[int, ...] = (-1, 3)
) -> Machine:
    x = ITensor("x", shape=shape)
    layer = ILayer(LayerType.MATRIX_MULTIPLY, [x, ITensor("w")], ITensor("y"))
    module = FakeTensorrt(FakeScript(network=INetworkDefinition([x], [layer]), plan=plan))

    def load(name: str) -> Compiler:
        return Compiler(name, module.__version__, module, name == "tensorrt-rtx")

    return Machine(gpus=(gpu,), driver="13.0", load_compiler=load)


@pytest.fixture
def graph(tmp_path: Path) -> CellGraph:
    path = save(onnx_graph(COLOURS.format(batch="N", image="8, 8")), tmp_path / "mine.onnx")
    digest = sha256_of(path)
    return CellGraph(str(path), digest, Precision.FP32, None, None, False, {}, ())


def prepare(graph: CellGraph, work: Path, cell: Cell = CELL, **changes: Any) -> BuiltEngine:
    return prepare_engine(cell, graph, work, machine(**changes))


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit.core import environment

    monkeypatch.setattr(environment, "gpus", lambda: (ADA,))


def test_an_engine_is_compiled_for_exactly_this_batch(graph: CellGraph, tmp_path: Path) -> None:
    found = prepare(graph, tmp_path / "work")
    assert found.profile == ShapeProfile(8, 8, 8)
    assert (found.compiler, found.precision) == ("tensorrt", Precision.FP32)
    assert sha256_of(tmp_path / "work/engines/mine-fp32-b8-tensorrt" / found.path) == found.sha256
    assert from_plain(BuiltEngine, engine_to_plain(found), ENGINE) == found


def test_an_engine_for_open_images_is_compiled_for_the_size_of_the_bundle(
    graph: CellGraph, tmp_path: Path
) -> None:
    path = save(onnx_graph(COLOURS.format(batch="N", image="H, 8")), tmp_path / "open.onnx")
    changed = replace(graph, path=str(path), image=(6, 8))
    shape = (-1, 3, -1, 8)
    found = prepare(changed, tmp_path / "work", shape=shape)
    assert found.profile == ShapeProfile(8, 8, 8, height=SizeRange(6, 6, 6))
    assert from_plain(BuiltEngine, engine_to_plain(found), ENGINE) == found
    prepared = PreparedCell(CELL, changed, found, None)
    assert from_plain(PreparedCell, prepared_to_plain(prepared), ENGINE) == prepared


def test_it_is_used_again_for_the_same_graph_only(graph: CellGraph, tmp_path: Path) -> None:
    first = prepare(graph, tmp_path)
    assert prepare(graph, tmp_path, plan=b"ftrt other") == first
    changed = replace(graph, sha256="b" * 64)
    assert prepare(changed, tmp_path, plan=b"ftrt other").sha256 != first.sha256


@pytest.mark.parametrize("damage", ["engine", "record", "not json", "missing key", "other gpu"])
def test_one_that_is_not_as_it_was_is_compiled_anew(
    graph: CellGraph, tmp_path: Path, damage: str
) -> None:
    first = prepare(graph, tmp_path)
    folder = tmp_path / "engines" / "mine-fp32-b8-tensorrt"
    record = folder / RECORD
    if damage == "engine":
        (folder / first.path).write_bytes(b"ftrt evil")
    elif damage == "record":
        record.unlink()
    elif damage == "not json":
        record.write_text("{", encoding="utf-8")
    elif damage == "missing key":
        record.write_text('{"onnx_sha256": "a"}', encoding="utf-8")
    else:
        body = json.loads(record.read_text(encoding="utf-8"))
        body["record"]["compute_capabilities"] = ["9.0"]
        record.write_text(json.dumps(body), encoding="utf-8")
    again = prepare(graph, tmp_path, plan=b"ftrt new")
    assert again.sha256 == sha256_of(folder / again.path)
    assert again.sha256 != first.sha256


def own(folder: Path) -> CellGraph:
    return CellGraph("", "a" * 64, Precision.FP32, None, str(folder), True, {}, ())


def test_a_bundle_is_measured_with_the_engine_it_would_run(tmp_path: Path) -> None:
    unfit = engine_record("old.engine", compiler_version="10.0")
    folder = write_bundle(tmp_path / "b", engine_record(), unfit)
    found = prepare_engine(replace(CELL, batch=4), own(folder), tmp_path, FakeMachine()())
    assert found.path == str(folder / engine_record().file)
    assert found.sha256 == engine_record().sha256
    assert found.profile == ShapeProfile(1, 2, 4)
    assert found.cache is None


def test_rtx_keeps_what_it_compiles_beside_the_engine(tmp_path: Path) -> None:
    record = engine_record(
        "tensorrt-rtx-1.7.1.116.engine",
        compiler="tensorrt-rtx",
        compiler_version="1.7.1.116",
        compute_capabilities=("8.9",),
    )
    folder = write_bundle(tmp_path / "b", record)
    cell = replace(CELL, backend="tensorrt-rtx", batch=1)
    found = prepare_engine(cell, own(folder), tmp_path, FakeMachine(ADA)())
    assert found.cache == str(folder / "tensorrt-rtx-1.7.1.116-sm89.cache")


def test_a_batch_outside_of_the_bundles_profile_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", engine_record())
    message = r"takes batches of 1 to 4, not 8\nmeasure one of those, or build"
    with pytest.raises(EngineIncompatibleError, match=message):
        prepare_engine(CELL, own(folder), tmp_path, FakeMachine()())


SEVERAL = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(8, 16, 32)])


def test_a_bundles_engine_of_several_profiles(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", engine_record(profile=SEVERAL))
    found = prepare_engine(replace(CELL, batch=8), own(folder), tmp_path, FakeMachine()())
    assert found.profile == SEVERAL
    message = r"takes batches of 1, 8 to 32, not 4\nmeasure one of those, or build"
    with pytest.raises(EngineIncompatibleError, match=message):
        prepare_engine(replace(CELL, batch=4), own(folder), tmp_path, FakeMachine()())


def test_a_bundle_without_a_fitting_engine_says_why(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", engine_record(compiler_version="10.0"))
    with pytest.raises(EngineIncompatibleError, match=r"compiled by tensorrt 10\.0, installed is"):
        prepare_engine(CELL, own(folder), tmp_path, FakeMachine()())


def test_a_changed_engine_of_a_bundle_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", engine_record())
    (folder / engine_record().file).write_text("something else", encoding="utf-8")
    with pytest.raises(IntegrityError, match="sm90"):
        prepare_engine(replace(CELL, batch=1), own(folder), tmp_path, FakeMachine()())
    assert Bundle.open(folder).manifest.engines

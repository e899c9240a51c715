"""`build` on a machine with a GPU: a new engine runs before the bundle has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends import CompileOptions, Compiler
from deploykit.bundle.manifest import Bundle
from deploykit.core.artifacts import sha256_of, sha256_of_bytes
from deploykit.core.errors import (
    EngineIncompatibleError,
    MissingDependencyError,
    UsageError,
    ValidationError,
)
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.exporting.engine_run import Expected
from deploykit.heads.multiclass import MULTICLASS
from deploykit.images.side_inputs import SideInputs
from deploykit.runtime.choice import machine_with
from deploykit.verbs import build as building
from tests.bundles import engine_record, write_bundle
from tests.fakes.engine_fake import ADA, HOPPER, VERSIONS, FakeMachine

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.environment import Gpu
    from deploykit.verbs.build import BuildReport


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The compiler is not the point: it writes its engine's name to the file."""
    given: list[CompileOptions] = []

    def compiled(
        _onnx: Any, folder: Path, _compiler: Any, options: CompileOptions, *_: Any, **__: Any
    ) -> EngineRecord:
        given.append(options)
        record = engine_record(sha256=sha256_of_bytes(b"plan"), bytes=4)
        (folder / record.file).write_bytes(b"plan")
        return record

    compiler = Compiler("tensorrt", VERSIONS["tensorrt"], None)
    monkeypatch.setattr(building, "choose_compiler", lambda *_: compiler)
    monkeypatch.setattr(building, "build_engine", compiled)
    return write_bundle(tmp_path / "colours")


def build(bundle: Path, machine: FakeMachine, **changes: Any) -> BuildReport:
    return building.build(bundle, "auto", CompileOptions(), machine=machine(**changes))


def test_an_engine_runs_on_the_gpu_that_it_was_built_for(bundle: Path) -> None:
    machine = FakeMachine()
    report = build(bundle, machine)
    (engine,) = machine.opened
    # One, two and five images; the engine takes four at most.
    assert engine.batches == [1, 2, 4, 1]
    assert engine.closed
    assert report.engine.ran_on == "Hopper"
    assert Bundle.open(bundle).manifest.engines == (report.engine,)
    assert report.notes == (
        f"{report.engine.file} ran on Hopper: 8 images within the limits of fp16",
    )
    assert [stage.name for stage in report.stages] == ["verify", "build engine", "run engine"]


def test_each_of_several_profiles_runs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = ShapeProfile.of(
        [ShapeProfile(1, 1, 1), ShapeProfile(4, 6, 8), ShapeProfile(16, 16, 16)]
    )
    compiled: Any = getattr(building, "build_engine")  # noqa: B009 - what the fixture put there

    def several(*given: Any, **more: Any) -> EngineRecord:
        record: EngineRecord = replace(compiled(*given, **more), profile=profile)
        return record

    monkeypatch.setattr(building, "build_engine", several)
    machine = FakeMachine()
    report = build(bundle, machine)
    (engine,) = machine.opened
    # Two images are filled up to four; then each profile has what it is tuned for.
    assert engine.batches == [1, 4, 5, 1, 6, 16]
    assert report.engine.ran_on == "Hopper"
    assert Bundle.open(bundle).manifest.engines[0].profile == profile


def test_an_engine_that_computes_something_else_is_not_added(bundle: Path) -> None:
    files = {path.name: sha256_of(path) for path in bundle.iterdir()}
    with pytest.raises(ValidationError, match=r"\.engine does not compute what model\.onnx "):
        build(bundle, FakeMachine(offset=1.0))
    assert {path.name: sha256_of(path) for path in bundle.iterdir()} == files
    assert Bundle.open(bundle).manifest.engines == ()


def test_an_engine_that_its_own_gpu_does_not_load_is_not_added(bundle: Path) -> None:
    error = EngineIncompatibleError("x.engine: out of date\nit says: why\ncompile it here")
    with pytest.raises(EngineIncompatibleError) as raised:
        build(bundle, FakeMachine(error=error))
    # Not the loader's own advice: it was compiled here a moment ago.
    assert str(raised.value) == (
        "tensorrt-11.4.0.106-sm90.engine was compiled for this GPU, and does not run on it\n"
        "x.engine: out of date; it says: why\n"
        "deploykit doctor says what works on this machine"
    )
    assert Bundle.open(bundle).manifest.engines == ()


def test_a_portable_engine_can_be_compiled_without_running_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portable = Compiler("tensorrt", VERSIONS["tensorrt"], None, is_portable=True)
    monkeypatch.setattr(building, "choose_compiler", lambda *_: portable)
    monkeypatch.setattr(building, "require_options", lambda *_: None)
    with pytest.raises(EngineIncompatibleError, match=r"hide the GPU: CUDA_VISIBLE_DEVICES=-1$"):
        build(bundle, FakeMachine(error=EngineIncompatibleError("no CUDA runtime")))


def test_an_engine_is_kept_where_what_runs_it_is_not_installed(bundle: Path) -> None:
    error = MissingDependencyError("it needs cuda.core\ninstall it: pip install cuda-core")
    report = build(bundle, FakeMachine(error=error))
    assert report.engine.ran_on is None
    (note,) = report.notes
    assert note == (
        f"{report.engine.file} was compiled, it did not run: it needs cuda.core; install it: "
        "pip install cuda-core; where it will: deploykit check BUNDLE --device cuda"
    )
    assert Bundle.open(bundle).manifest.engines == (report.engine,)


def test_an_engine_is_kept_where_the_driver_is_too_old_for_it(bundle: Path) -> None:
    machine = FakeMachine()
    report = build(bundle, machine, driver="12.8")
    assert machine.opened == []
    (note,) = report.notes
    assert "it did not run: tensorrt 11.4.0.106 needs a driver for CUDA 13, this one ends" in note


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, "no GPU on this machine"),
        (ADA, "compiled for compute capability 9.0, this GPU has 8.9"),
    ],
)
def test_an_engine_for_elsewhere_is_added_and_said_not_to_have_run(
    bundle: Path, gpu: Gpu | None, reason: str
) -> None:
    machine = FakeMachine(gpu)
    report = build(bundle, machine)
    assert machine.opened == []
    assert report.engine.ran_on is None
    (note,) = report.notes
    assert note == (
        f"{report.engine.file} was compiled, it did not run: {reason}; where it will: "
        "deploykit check BUNDLE --device cuda"
    )


def test_the_gpu_that_was_named_is_built_for_and_run_on(bundle: Path) -> None:
    machine = FakeMachine()
    second = replace(HOPPER, index=1)
    build(bundle, machine, gpus=(second, ADA))
    assert machine.options[0].gpu_index == 1


def test_what_is_kept_as_reference_is_what_an_engine_is_compared_with(bundle: Path) -> None:
    from deploykit.exporting.engine_run import Expected

    expected = Expected.of_bundle(Bundle.open(bundle))
    assert [len(batch) for batch in expected.batches] == [1, 2, 5]
    assert expected.precision is Precision.FP32
    for batch, outputs in zip(expected.batches, expected.outputs, strict=True):
        np.testing.assert_allclose(outputs, batch.mean(axis=(2, 3)), rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "ort-cuda", "auto"])
def test_engines_are_for_gpus(device: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {device}: engines are for GPUs\nexpected"):
        machine_with(device)


SMALL, LARGE = SizeRange(8, 8, 8), SizeRange(16, 16, 16)
PAIRS = ShapeProfile.of([ShapeProfile(1, 4, 8, SMALL, SMALL), ShapeProfile(1, 1, 1, LARGE, LARGE)])


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([(8, 8), (16, 16), (8, 16)], [(2, 8, 8), (2, 16, 16), (4, 8, 8)]),
        ([(16, 16)], [(2, 16, 16), (1, 16, 16)]),
        ([(8, 16), (8, 8)], [(2, 8, 8), (4, 8, 8)]),
    ],
)
def test_what_an_engine_of_several_profiles_is_compared_with(
    sizes: list[tuple[int, int]], batches: list[tuple[int, int, int]]
) -> None:
    images = [np.arange(2 * 3 * h * w, dtype=np.float32).reshape(2, 3, h, w) for h, w in sizes]
    outputs = [batch.mean(axis=(2, 3)) for batch in images]
    given = Expected(images, outputs, "it", Precision.FP32, MULTICLASS, SideInputs())
    found = given.covering(PAIRS)
    assert [(len(b), *b.shape[2:]) for b in found.batches] == batches
    for batch, wanted in zip(found.batches, found.outputs, strict=True):
        np.testing.assert_array_equal(batch.mean(axis=(2, 3)), wanted)
    assert given.covering(PAIRS.parts[0]) is given

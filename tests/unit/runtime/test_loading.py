from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.bundle.manifest import LABELS, MANIFEST, MODEL, Bundle, manifest_text
from deploykit.core.artifacts import UNPROVEN, sha256_of
from deploykit.core.environment import Gpu
from deploykit.core.errors import (
    BundleError,
    EngineIncompatibleError,
    IntegrityError,
    MissingDependencyError,
    ModelFileError,
    UsageError,
)
from deploykit.core.sizes import ShapeProfile
from deploykit.runtime.loading import load
from tests.bundles import SIZE, colours_of, engine_record, write_bundle
from tests.fakes.engine_fake import ADA, FakeMachine, OnGpu
from tests.graphs import normal

if TYPE_CHECKING:
    from pathlib import Path

TENSORRT = engine_record()
RTX = engine_record(
    "tensorrt-rtx-1.7.1.116.engine",
    compiler="tensorrt-rtx",
    compiler_version="1.7.1.116",
    compute_capabilities=("8.9", "9.0"),
    profile=ShapeProfile(1, 8, 16),
)
UNPROVEN_RTX = replace(RTX, warnings=(f"{UNPROVEN}: NVIDIA does not list it",))
BATCH = normal(2, 3, SIZE, SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours", TENSORRT, RTX)


# On the CPU


@pytest.mark.parametrize("as_text", [True, False])
def test_a_bundle_on_the_cpu(folder: Path, *, as_text: bool) -> None:
    with load(str(folder) if as_text else folder, device="cpu") as model:
        np.testing.assert_allclose(model.run(BATCH), colours_of(BATCH), atol=1e-6)
    assert model.device == "cpu"
    assert model.choice == "model.onnx on onnxruntime (cpu): asked for with device='cpu'"
    assert model.labels == ("red", "green", "blue")
    assert model.name == "colours-fp32"
    assert repr(model) == f"<Classifier colours-fp32 on cpu: {model.choice}>"


def test_threads_are_those_of_onnxruntime(folder: Path) -> None:
    with load(folder, device="cpu", threads=1) as model:
        options = model.runner._open().session.get_session_options()  # type: ignore[attr-defined]  # onnxruntime's
    assert options.intra_op_num_threads == 1


def test_the_cpu_needs_no_engine_to_be_whole(folder: Path) -> None:
    (folder / TENSORRT.file).write_text("changed")
    with load(folder, device="cpu") as model:
        model.self_test()


def test_onnxruntime_on_cuda_is_never_the_cpu_in_secret(folder: Path) -> None:
    with pytest.raises(EngineIncompatibleError, match=r"model.onnx cannot run on cuda: "):
        load(folder, device="ort-cuda")


def test_auto_without_a_gpu_takes_the_cpu_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deploykit")
    with load(folder, machine=FakeMachine(None)()) as model:
        assert model.device == "cpu"
        assert "no engine runs here (tensorrt-11.4.0.106-sm90.engine: no GPU on" in model.choice
    assert caplog.messages == [f"colours-fp32: {model.choice}"]
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_auto_of_a_bundle_without_engines(tmp_path: Path) -> None:
    with load(write_bundle(tmp_path / "b"), machine=FakeMachine(None)()) as model:
        assert model.choice.endswith("the bundle has no engine")


def test_an_idle_gpu_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeMachine(replace(ADA, compute_capability="7.5"))
    with load(folder, machine=fake()) as model:
        assert model.device == "cpu"
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "no engine of colours-fp32 runs on this machine (Ada, compute cap" in record.message


# On a GPU


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_best_engine_is_opened_as_its_manifest_says(
    folder: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deploykit")
    fake = FakeMachine()
    model = load(folder, device=device, cuda_graphs=False, machine=fake())
    (engine,) = fake.opened
    assert engine.is_open
    assert engine.plan == folder / TENSORRT.file
    assert engine.profile == TENSORRT.profile
    assert (engine.compiler.name, engine.cuda_graphs, engine.cache) == ("tensorrt", False, None)
    assert model.device == "cuda"
    assert model.choice == (
        "tensorrt-11.4.0.106-sm90.engine on Hopper, compute capability 9.0, driver for CUDA 13.0: "
        "the best of 2 engines that fit"
    )
    assert caplog.messages == [f"colours-fp32: {model.choice}"]
    np.testing.assert_array_equal(model.run(BATCH), colours_of(BATCH))
    model.close()
    assert engine.closed == 1


def test_rtx_gets_a_cache_beside_its_engine(folder: Path) -> None:
    fake = FakeMachine(ADA)
    with load(folder, machine=fake()) as model:
        assert model.choice.endswith(": the engine that fits")
    assert fake.opened[0].cache == folder / "tensorrt-rtx-1.7.1.116-sm89.cache"


def test_cuda_never_falls_back(folder: Path) -> None:
    fake = FakeMachine(None)
    with pytest.raises(
        EngineIncompatibleError,
        match=r"(?s)runs on this machine \(no GPU\)\ntensorrt-11.* no GPU.*\ntensorrt-rtx.* no GPU"
        r'.*what helps: deploykit.load\(..., device="cpu"\)$',
    ):
        load(folder, device="cuda", machine=fake())


REFUSALS = [
    EngineIncompatibleError("a.engine: does not load\nit says: no"),
    MissingDependencyError("cuda.core is not installed\ninstall it: pip install cuda-core"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_engines_that_do_not_open_are_listed(folder: Path, error: Exception) -> None:
    fake = FakeMachine(error=error)
    first = str(error).splitlines()[0]
    with pytest.raises(EngineIncompatibleError, match=first) as caught:
        load(folder, device="cuda", machine=fake())
    assert len(fake.opened) == str(caught.value).count(first) == 2
    assert [engine.closed for engine in fake.opened] == [1, 1]


def test_auto_goes_on_to_the_cpu_when_no_engine_opens(folder: Path) -> None:
    with load(folder, machine=FakeMachine(error=REFUSALS[0])()) as model:
        assert model.device == "cpu"
        assert "does not load; it says: no" in model.choice


def test_other_errors_are_not_swallowed_and_leave_nothing_open(folder: Path) -> None:
    fake = FakeMachine(error=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        load(folder, machine=fake())
    assert [engine.closed for engine in fake.opened] == [1]


# Engines that nobody vouches for


def test_an_unproven_engine_has_to_compute_the_golden_sample(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", UNPROVEN_RTX)
    fake = FakeMachine()
    with load(folder, machine=fake()) as model:
        assert model.device == "cuda"
        assert model.choice.endswith("unproven, but it computes the golden sample")
    assert fake.opened[0].batches == [2]


def test_an_unproven_engine_that_is_wrong_is_not_used(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", UNPROVEN_RTX)
    fake = FakeMachine(offset=1.0)
    with pytest.raises(EngineIncompatibleError, match=r"rtx.*: the golden sample gives other log"):
        load(folder, device="cuda", machine=fake())
    assert fake.opened[0].closed == 1
    with load(folder, machine=fake()) as model:
        assert model.device == "cpu"


def test_a_proven_engine_is_not_tested_at_every_start(folder: Path) -> None:
    fake = FakeMachine(offset=1.0)
    with load(folder, machine=fake()):
        assert fake.opened[0].batches == []


# One engine, by its path


def test_a_path_to_an_engine_is_that_engine_only(folder: Path) -> None:
    fake = FakeMachine()
    with load(folder / RTX.file, machine=fake()) as model:
        assert model.choice.startswith(RTX.file)
        assert model.choice.endswith(": asked for by its path")
    assert [engine.plan.name for engine in fake.opened] == [RTX.file]


def test_a_path_to_an_engine_is_never_the_cpu(folder: Path) -> None:
    with pytest.raises(EngineIncompatibleError, match="no GPU on this machine") as caught:
        load(folder / RTX.file, machine=FakeMachine(None)())
    assert TENSORRT.file not in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "ort-cuda"])
def test_an_engine_does_not_run_on_onnxruntime(folder: Path, device: str) -> None:
    with pytest.raises(
        UsageError, match=rf"does not run on '{device}': tensorrt-rtx.*\nload its bundle instead: d"
    ):
        load(folder / RTX.file, device=device)


def test_an_engine_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "my.engine").write_bytes(b"ftrt")
    with pytest.raises(
        BundleError,
        match=r"my.engine has no manifest.json beside it: for which .* unknown\nload it",
    ):
        load(tmp_path / "my.engine")


def test_an_engine_that_the_manifest_does_not_know(folder: Path) -> None:
    (folder / "other.engine").write_bytes(b"ftrt")
    with pytest.raises(
        BundleError, match=r"beside other.engine does not name it; it names tensorrt-11.*\nadd an"
    ):
        load(folder / "other.engine")


def test_an_engine_that_is_not_there(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no engine at .*gone.engine\nlist those"):
        load(folder / "gone.engine")


# What is wrong with the files


@pytest.mark.parametrize(
    ("name", "device", "damage"),
    [
        (MODEL, "cpu", "missing"),
        (MODEL, "cpu", "changed"),
        (LABELS, "cpu", "missing"),
        (LABELS, "cuda", "changed"),
        (TENSORRT.file, "cuda", "changed"),  # a missing one only does not fit
        (TENSORRT.file, "auto", "changed"),
    ],
)
def test_a_file_that_is_needed_has_to_be_as_it_was_written(
    folder: Path, name: str, device: str, damage: str
) -> None:
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"changed")
    fake = FakeMachine()
    with pytest.raises(IntegrityError, match=rf"colours: {name} (is missing|has sha256 .* gives)"):
        load(folder, device=device, machine=fake())
    assert fake.opened == []


def test_a_file_that_is_no_engine_in_an_honest_manifest(tmp_path: Path) -> None:
    """With the real compilers: TensorRT for RTX reads the first bytes itself."""
    from deploykit.backends.tensorrt import read_header

    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX")
    folder = write_bundle(tmp_path / "b", RTX)
    with pytest.raises(EngineIncompatibleError, match="damaged or not an engine of this compiler"):
        load(folder, device="cuda", machine=FakeMachine()(read_header=read_header))


def test_a_graph_that_onnxruntime_does_not_load(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"junk")
    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, MODEL: sha256_of(folder / MODEL)}
    (folder / MANIFEST).write_text(manifest_text(replace(manifest, files=files)))
    with pytest.raises(ModelFileError, match=r"onnxruntime cannot load model.onnx"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, r"there is nothing at .*place\nmake a bundle with: deploykit export"),
        (lambda place: place.mkdir(), "place is not a bundle: it has no manifest.json"),
        (lambda place: place.write_bytes(b""), r"place is a file, neither .*\ngive the folder"),
    ],
    ids=["missing", "folder", "file"],
)
def test_a_place_without_a_bundle(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "place")
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "place")


def test_an_onnx_file_has_to_be_exported_first(tmp_path: Path) -> None:
    (tmp_path / "my.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is a file, .*\n.*: deploykit export .*my.onnx"):
        load(tmp_path / "my.onnx")


def test_a_bundle_of_a_newer_deploykit(folder: Path) -> None:
    body = '{"schema_version": 3, "packages": {"deploykit": "7.0"}}'
    (folder / MANIFEST).write_text(body)
    with pytest.raises(BundleError, match=r"version 3, .*\n.*deploykit 7\.0 wrote it: install"):
        load(folder)


@pytest.mark.parametrize("device", ["gpu", "", "gpu:1"])
def test_an_unknown_device(folder: Path, device: str) -> None:
    name = device.partition(":")[0]
    known = "possible: auto, cuda, cpu, ort-cuda; of several GPUs one: cuda:1"
    with pytest.raises(UsageError, match=rf"device '{name}'\n{known}$"):
        load(folder, device=device)


@pytest.mark.parametrize("device", ["cpu:1", "auto:1", "cpu:GPU-8f"])
def test_a_gpu_of_what_is_on_none(folder: Path, device: str) -> None:
    name, _, gpu = device.partition(":")
    with pytest.raises(UsageError, match=rf"'{name}' is not on a GPU, but '{gpu}' .*\n.*:{gpu}"):
        load(folder, device=device)


SECOND = Gpu("Hopper", "9.0", 1, 1, "0000:86:00.0", "GPU-22222222-3333-4444-5555-666666666666")


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0000:86:00.0", SECOND.uuid, "GPU-2222"])
def test_one_of_two_gpus(folder: Path, device: str) -> None:
    fake = FakeMachine()
    with load(folder, device=device, machine=fake(gpus=(ADA, SECOND))) as model:
        assert model.device == "cuda:1"
        assert model.file == TENSORRT.file
        assert "on Hopper (cuda:1), compute capability 9.0" in model.choice
        np.testing.assert_array_equal(model.run(BATCH), colours_of(BATCH))
        assert model.run(OnGpu(BATCH), keep_on_device=True).shape == (2, 3)
    assert [options.gpu_index for options in fake.options] == [1]


def test_an_engine_is_for_the_gpu_that_was_named(folder: Path) -> None:
    """The other one would have run it."""
    here = FakeMachine()(gpus=(replace(SECOND, index=0), replace(ADA, index=1)))
    with pytest.raises(EngineIncompatibleError, match=r"9\.0, this GPU has 8\.9"):
        load(folder / TENSORRT.file, device="cuda:1", machine=here)
    with pytest.raises(UsageError, match=r"no GPU is called '7'\npossible: cuda:0, Ada; cuda:1"):
        load(folder, device="cuda:7", machine=FakeMachine()(gpus=(ADA, SECOND)))


def test_no_threads(folder: Path) -> None:
    with pytest.raises(UsageError, match="threads=0 would compute nothing\nexpected 1 or more"):
        load(folder, device="cpu", threads=0)

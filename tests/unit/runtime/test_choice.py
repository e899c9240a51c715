from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends import Compiler, EngineHeader
from deploykit.backends._registry import load_compiler
from deploykit.bundle.manifest import Bundle
from deploykit.core import environment
from deploykit.core.artifacts import UNPROVEN
from deploykit.core.errors import EngineIncompatibleError, MissingDependencyError
from deploykit.runtime.choice import (
    Fit,
    Machine,
    Misfit,
    cache_of,
    cuda_major,
    incompatible,
    rank_engines,
)
from tests.bundles import engine_record, write_bundle
from tests.fakes.engine_fake import ADA, HOPPER, FakeMachine

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import EngineRecord

TENSORRT = engine_record()
RTX = engine_record(
    "tensorrt-rtx-1.7.1.116.engine",
    compiler="tensorrt-rtx",
    compiler_version="1.7.1.116",
    compute_capabilities=("8.9", "9.0"),
)
UNPROVEN_RTX = replace(RTX, warnings=(f"{UNPROVEN}: NVIDIA does not list it",))


def compared(
    folder: Path, *engines: EngineRecord, machine: Machine | None = None
) -> tuple[list[Fit], list[Misfit]]:
    bundle = Bundle.open(write_bundle(folder / "my bundle", *engines))
    return rank_engines(bundle, bundle.manifest.engines, machine or FakeMachine()())


def misfit(folder: Path, engine: EngineRecord, **changes: Any) -> Misfit:
    fits, (found,) = compared(folder, engine, machine=FakeMachine()(**changes))
    assert fits == []
    assert found.file == engine.file
    return found


# The best


def test_one_for_this_gpu_comes_before_one_for_all_from_ampere_on(tmp_path: Path) -> None:
    wide = engine_record(
        "tensorrt-11.4.0.106-sm80plus.engine",
        compute_capabilities=("8.0",),
        hardware_compatibility="ampere+",
    )
    fits, misfits = compared(tmp_path, RTX, TENSORRT, wide)
    assert [fit.record for fit in fits] == [TENSORRT, wide, RTX]
    assert misfits == []


def test_tensorrt_comes_before_tensorrt_for_rtx(tmp_path: Path) -> None:
    fits, misfits = compared(tmp_path, RTX, TENSORRT)
    assert [fit.record for fit in fits] == [TENSORRT, RTX]
    assert misfits == []
    assert fits[0].compiler.label == "tensorrt 11.4.0.106"


def test_an_unproven_engine_comes_last(tmp_path: Path) -> None:
    older = replace(TENSORRT, file="older.engine")
    fits, _ = compared(tmp_path, UNPROVEN_RTX, older)
    assert [fit.record for fit in fits] == [older, UNPROVEN_RTX]
    unproven = replace(TENSORRT, warnings=(UNPROVEN,))
    fits, _ = compared(tmp_path, unproven, RTX)
    assert [fit.record for fit in fits] == [RTX, unproven]


def test_of_equals_the_one_that_was_built_last(tmp_path: Path) -> None:
    later = replace(TENSORRT, file="later.engine")
    fits, _ = compared(tmp_path, TENSORRT, later)
    assert [fit.record for fit in fits] == [later, TENSORRT]


# The reasons


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b", TENSORRT))
    (bundle.folder / TENSORRT.file).unlink()
    fits, (found,) = rank_engines(bundle, bundle.manifest.engines, FakeMachine()())
    assert fits == []
    assert found.reason == "the file is missing"
    assert found.remedy == f"deploykit build {bundle.folder} --backend tensorrt"


def test_no_gpu(tmp_path: Path) -> None:
    _, (found,) = compared(tmp_path, TENSORRT, machine=FakeMachine(None)())
    assert found.reason == "no GPU on this machine"
    assert found.remedy == 'deploykit.load(..., device="cpu")'


def test_a_compiler_that_is_not_installed(tmp_path: Path) -> None:
    def load(_: str) -> Compiler:
        raise MissingDependencyError("this step needs x, which is not installed\ninstall it: pip x")

    found = misfit(tmp_path, TENSORRT, load_compiler=load)
    assert found.reason == "this step needs x, which is not installed"
    assert found.remedy == "pip x"


def test_a_compiler_of_another_package(tmp_path: Path) -> None:
    found = misfit(tmp_path, replace(RTX, compiler="toy"), load_compiler=load_compiler)
    assert found.reason == "unknown compiler 'toy'; all of them: tensorrt, tensorrt-rtx"


def test_another_version(tmp_path: Path) -> None:
    found = misfit(tmp_path, replace(RTX, compiler_version="1.6.0.1"))
    assert found.reason == "compiled by tensorrt-rtx 1.6.0.1, installed is 1.7.1.116"
    assert found.remedy == f"deploykit build '{tmp_path}/my bundle' --backend tensorrt-rtx"


def test_another_compute_capability(tmp_path: Path) -> None:
    found = misfit(tmp_path, replace(RTX, compute_capabilities=("8.6", "8.9")))
    assert found.reason == "compiled for compute capability 8.6, 8.9, this GPU has 9.0"
    assert found.remedy.endswith("--backend tensorrt")


@pytest.mark.parametrize(("driver", "needed"), [("12.8", 13), ("9.2", 12)])
def test_a_driver_that_is_too_old(tmp_path: Path, driver: str, needed: int) -> None:
    found = misfit(tmp_path, TENSORRT, driver=driver, cuda_major=lambda _: needed)
    expected = f"tensorrt 11.4.0.106 needs a driver for CUDA {needed}, this one ends at {driver}"
    assert found.reason == expected
    assert found.remedy == "install a newer NVIDIA driver"


@pytest.mark.parametrize(
    ("driver", "needed"), [("13.0", 13), ("14.1", 13), (None, 13), ("9.0", None)]
)
def test_a_driver_that_is_new_enough_or_unknown(
    tmp_path: Path, driver: str | None, needed: int | None
) -> None:
    machine = FakeMachine()(driver=driver, cuda_major=lambda _: needed)
    fits, _ = compared(tmp_path, TENSORRT, machine=machine)
    assert len(fits) == 1


def test_a_header_that_is_wrong(tmp_path: Path) -> None:
    def read(plan: bytes, compiler: str) -> EngineHeader:
        assert (plan, compiler) == (RTX.file.encode(), "tensorrt-rtx")
        return EngineHeader("invalid", "it is damaged")

    found = misfit(tmp_path, RTX, read_header=read)
    assert found.reason == "it is damaged"
    assert found.remedy.endswith("--backend tensorrt-rtx")


def test_the_cuda_version_is_that_of_the_installed_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"tensorrt-cu12": "10.12", "tensorrt-rtx-cu13": "1.7"}
    monkeypatch.setattr(environment, "package_version", installed.get)
    assert cuda_major("tensorrt") == 12
    assert cuda_major("tensorrt-rtx") == 13
    installed.clear()
    assert cuda_major("tensorrt") is None


# The message


def test_every_engine_is_listed_with_its_reason_and_what_helps(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b"))
    misfits = [Misfit("a.engine", "too old", "build it"), Misfit("b.engine", "too new", "build it")]
    with pytest.raises(
        EngineIncompatibleError,
        match=r"^no engine of colours-fp32 runs on this machine \(Hopper, compute capability 9.0, "
        r"driver for CUDA 13.0\)\na.engine: too old\nb.engine: too new\nwhat helps: build it$",
    ):
        raise incompatible(bundle, FakeMachine()(), misfits)


def test_different_remedies_are_all_named(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b"))
    misfits = [Misfit("a", "x", "build it"), Misfit("b", "y", "pip it"), Misfit("c", "z")]
    error = incompatible(bundle, FakeMachine(None)(), misfits)
    assert "runs on this machine (no GPU)\n" in str(error)
    assert str(error).endswith("c: z\nwhat helps: build it; or pip it")
    assert str(incompatible(bundle, FakeMachine()(), misfits[2:])).endswith("\nc: z")


def test_a_bundle_without_engines(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b"))
    with pytest.raises(
        EngineIncompatibleError,
        match=r"colours-fp32 has no engine\nbuild one on the target: deploykit build .*b\nor run",
    ):
        raise incompatible(bundle, FakeMachine()(), [])


# The cache


def test_the_cache_is_for_rtx_and_for_one_kind_of_gpu(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b"))
    rtx = Fit(RTX, Compiler("tensorrt-rtx", "1.7.1.116", None, is_portable=True))
    assert cache_of(bundle, rtx, ADA) == bundle.folder / "tensorrt-rtx-1.7.1.116-sm89.cache"
    tensorrt = Fit(TENSORRT, Compiler("tensorrt", "11.4.0.106", None))
    assert cache_of(bundle, tensorrt, HOPPER) is None


def test_this_machine_is_described_by_its_driver() -> None:
    here = Machine()
    assert here.gpus == environment.gpus()
    assert here.driver == environment.driver_version()

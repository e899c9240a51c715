"""`diagnose` on machines with and without a GPU, with packages that are and are not there."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from deploykit.core import environment
from deploykit.core.environment import Gpu
from deploykit.verbs.doctor import diagnose, diagnosis_to_plain

if TYPE_CHECKING:
    from deploykit.backends import Ability

EXPORTING = ("torch", "torchvision", "onnx", "onnxscript", "safetensors")
OTHERS = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda.core", "model_signing", "OpenSSL")


def diagnosed(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None = None, without: tuple[str, ...] = ()
) -> dict[str, Ability]:
    """Abilities by the first word of the task's end; every package is an empty module."""
    monkeypatch.setattr(environment, "gpus", lambda: () if gpu is None else (gpu,))
    for name in (*EXPORTING, *OTHERS):
        monkeypatch.setitem(sys.modules, name, None if name in without else ModuleType(name))
    return {ability.task: ability for ability in diagnose().abilities}


EXPORT = "export definitions to ONNX"
CPU = "validate, evaluate and check on the CPU"
BUILD_RTX = "compile engines for RTX-class GPUs"
BUILD = "compile engines with TensorRT"
RUN_RTX = "run engines of TensorRT for RTX"
RUN = "run engines of TensorRT"
SIGN = "sign bundles and verify signatures"


def test_everything_works_with_an_rtx_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(monkeypatch, Gpu("Ada", "8.9", 1))
    assert set(found) == {EXPORT, CPU, BUILD_RTX, BUILD, RUN_RTX, RUN, SIGN}
    assert list(found)[:3] == [EXPORT, CPU, BUILD_RTX]  # what needs least comes first
    assert all(ability.works for ability in found.values())


def test_without_a_gpu_engines_for_rtx_can_still_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(monkeypatch)
    works = [task for task, ability in found.items() if ability.works]
    assert works == [EXPORT, CPU, BUILD_RTX, SIGN]
    assert found[BUILD].how == found[RUN].how
    assert found[RUN].how == (
        "needs a GPU of compute capability 7.5 (T4, RTX 20) or later and its driver"
    )
    assert found[RUN_RTX].how == (
        "needs a GPU of compute capability 8.0, 8.6, 8.9, 12.0, 12.1 (A100, RTX 30, L4 and RTX 40, "
        "RTX 50) and its driver"
    )


@pytest.mark.parametrize("capability", ["7.0", "6.1"])
def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    found = diagnosed(monkeypatch, Gpu("Old", capability, 1))
    for task in (BUILD, RUN):
        assert not found[task].works
        assert found[task].how == f"compute capability {capability} is below 7.5 (T4, RTX 20)"
    assert not found[RUN_RTX].works


def test_a_gpu_that_tensorrt_for_rtx_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(monkeypatch, Gpu("Hopper", "9.0", 1))
    assert found[RUN].works
    assert not found[RUN_RTX].works
    assert found[RUN_RTX].how.startswith("compute capability 9.0 is not one of 8.0, 8.6, 8.9")


@pytest.mark.parametrize(
    ("module", "tasks"),
    [
        *((name, [EXPORT]) for name in EXPORTING),
        ("onnxruntime", [CPU]),
        ("tensorrt_rtx", [BUILD_RTX, RUN_RTX]),
        ("tensorrt", [BUILD, RUN]),
        ("cuda.core", [RUN_RTX, RUN]),
        ("model_signing", [SIGN]),
        ("OpenSSL", [SIGN]),
    ],
)
def test_a_missing_package_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, module: str, tasks: list[str]
) -> None:
    found = diagnosed(monkeypatch, Gpu("Ada", "8.9", 1), (module,))
    assert [task for task, ability in found.items() if not ability.works] == tasks
    for task in tasks:
        assert f"needs the Python module {module}, which is not installed" in found[task].how
        assert "install it: pip install" in found[task].how
        assert "\n" not in found[task].how


@pytest.mark.parametrize(("driver", "works"), [("12.8", False), ("13.0", True), (None, True)])
def test_a_driver_that_is_too_old_for_the_libraries(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, *, works: bool
) -> None:
    monkeypatch.setattr(environment, "driver_version", lambda: driver)
    installed = {"tensorrt-cu13": "11.4", "tensorrt-rtx-cu13": "1.7"}
    monkeypatch.setattr(environment, "package_version", installed.get)
    found = diagnosed(monkeypatch, Gpu("Ada", "8.9", 1))
    assert found[BUILD_RTX].works  # without a GPU too
    assert [found[task].works for task in (BUILD, RUN, RUN_RTX)] == [works] * 3
    if not works:
        said = "needs a driver for CUDA 13, this one ends at 12.8: update it"
        assert found[BUILD].how == found[RUN].how == f"TensorRT {said}"
        assert found[RUN_RTX].how == f"TensorRT for RTX {said}"


def test_plain_data_has_the_machine_and_its_abilities(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosed(monkeypatch)
    data = json.loads(json.dumps(diagnosis_to_plain(diagnose())))
    assert data["gpus"] == []
    assert data["abilities"][0].keys() == {"task", "works", "how"}
    assert data["python"].split(".")[0] == "3"

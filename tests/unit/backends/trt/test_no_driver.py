"""What the real packages say on a machine without a driver reaches the user as our error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from deploykit.backends import CompileOptions
from deploykit.backends._cuda.device import Device
from deploykit.backends.trt.builder import compile_onnx
from deploykit.backends.trt.engine import Engine
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core import environment
from deploykit.core.errors import EngineIncompatibleError, MissingDependencyError
from deploykit.core.sizes import ShapeProfile
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import Compiler
    from deploykit.core.specs import Runner


@pytest.fixture
def plan(rtx: Compiler, tmp_path: Path) -> Path:
    if environment.open_driver() is not None:
        pytest.skip("there is a CUDA driver on this machine")
    onnx = small_models.convolution(tmp_path / "model.onnx")
    path = tmp_path / "model.engine"
    path.write_bytes(compile_onnx(rtx, onnx, CompileOptions(ShapeProfile(1, 1, 1))).plan)
    return path


def test_a_good_engine_does_not_load(rtx: Compiler, plan: Path) -> None:
    with pytest.raises(EngineIncompatibleError, match="does not load it on this machine") as caught:
        Engine(plan, rtx, ShapeProfile(1, 1, 1), cuda_graphs=True, cache=None)
    assert "CUDA driver version is insufficient" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_is_no_engine(rtx: Compiler, tmp_path: Path) -> None:
    for content in (b"", b"no engine" * 100):
        path = tmp_path / "model.engine"
        path.write_bytes(content)
        with pytest.raises(EngineIncompatibleError, match="it says: IRuntime::deserializeCuda"):
            Engine(path, rtx, ShapeProfile(1, 1, 1), cuda_graphs=True, cache=None)


def test_the_runner_says_that_there_is_no_driver(rtx: Compiler, plan: Path) -> None:
    pytest.importorskip("cuda.core", reason="the package cuda-core is not installed")
    runner: Runner = TrtRunner(plan, rtx, ShapeProfile(1, 1, 1))
    for _ in range(2):
        with pytest.raises(EngineIncompatibleError, match="no CUDA driver with a GPU answers here"):
            runner.run({})
        with pytest.raises(EngineIncompatibleError, match="NVIDIA display driver is installed"):
            assert runner.inputs
    runner.close()


def test_without_cuda_core_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(MissingDependencyError, match=r"cuda.core, .* not installed\ninstall it"):
        Device()

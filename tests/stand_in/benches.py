"""An engine on the fake runtime: its plan is the ONNX file itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.backends import Compiler
from deploykit.backends.trt.compiler import TENSORRT, TENSORRT_RTX
from tests.fakes.runtime_fake import FakeRuntime, Script
from tests.runner_scenarios import Bench
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path


def fake_bench(script: Script, folder: Path, *, rtx: bool = False) -> Bench:
    plan = small_models.convolution(folder / "model.engine")
    name = TENSORRT_RTX if rtx else TENSORRT
    compiler = Compiler(name, FakeRuntime.__version__, FakeRuntime(script, rtx=rtx), rtx)
    # onnxruntime may use another kernel for another number of threads.
    return Bench(plan, plan, compiler, tolerance=1e-6, leak_bytes=0)

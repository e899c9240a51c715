"""The engine of real kernels, for the tests on a GPU, on a stand-in driver, and for the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.backends import Compiler
from deploykit.backends.trt.compiler import TENSORRT
from tests.fakes.runtime_fake import Script
from tests.kernels.runtime import KernelRuntime
from tests.runner_scenarios import Bench
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from pathlib import Path


def kernel_bench(
    folder: Path,
    *,
    cuda_graphs: bool = True,
    spin_cycles: int = 0,
    leak_bytes: int = 0,
    script: Script | None = None,
) -> Bench:
    plan = small_models.convolution(folder / "model.engine")
    runtime = KernelRuntime(script or Script(), spin_cycles=spin_cycles)
    compiler = Compiler(TENSORRT, KernelRuntime.__version__, runtime)
    # Sums in another order than onnxruntime's.
    return Bench(plan, plan, compiler, 1e-5, leak_bytes, cuda_graphs)

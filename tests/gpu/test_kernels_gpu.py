"""The runner's scenarios with real kernels in the place of an engine, on any NVIDIA GPU.

    pytest -n 0 tests/gpu/test_kernels_gpu.py

They need the driver, cuda-core and NVRTC; no TensorRT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.core import environment
from tests.kernels.benches import kernel_bench
from tests.runner_scenarios import Bench, RunnerScenarios

if TYPE_CHECKING:
    from pathlib import Path

if not environment.gpus():
    pytest.skip("no GPU on this machine", allow_module_level=True)

SPIN_CYCLES = 200_000
"""About 0.1 ms: what does not wait for the computation comes before its end."""
LEAK_BYTES = 8 << 20


class TestCaptured(RunnerScenarios):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return kernel_bench(tmp_path, spin_cycles=SPIN_CYCLES, leak_bytes=LEAK_BYTES)


class TestEager(RunnerScenarios):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return kernel_bench(
            tmp_path, cuda_graphs=False, spin_cycles=SPIN_CYCLES, leak_bytes=LEAK_BYTES
        )

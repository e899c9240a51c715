"""The scenarios of every GPU on real kernels, compiled for the processor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kernels.benches import kernel_bench
from tests.kernels.host_library import VARIABLE
from tests.runner_scenarios import Bench, RunnerScenarios

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"needs the kernels for the processor in {VARIABLE}"
)


class TestCaptured(RunnerScenarios):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return kernel_bench(tmp_path)


class TestEager(RunnerScenarios):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return kernel_bench(tmp_path, cuda_graphs=False)

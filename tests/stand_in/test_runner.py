"""The scenarios of every GPU, on both kinds of runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.runner_scenarios import Bench, RunnerScenarios
from tests.stand_in.benches import fake_bench

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.runtime_fake import Script


class TestTensorrt(RunnerScenarios):
    pass


class TestRtx(RunnerScenarios):
    @pytest.fixture
    def bench(self, script: Script, tmp_path: Path) -> Bench:
        return fake_bench(script, tmp_path, rtx=True)

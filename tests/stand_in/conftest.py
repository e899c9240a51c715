"""Tests that need a CUDA driver whose memory the host can read: `test_on_stand_in` starts them.

They are collected only in a process that has such a driver on its LD_LIBRARY_PATH, and never where
a real one is. There, `tests/gpu` has the same scenarios.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit.core import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

STAND_IN = "nullcuda"
REAL_DRIVER = Path("/proc/driver/nvidia/version")


def is_on_stand_in() -> bool:
    if REAL_DRIVER.exists() or "LD_LIBRARY_PATH" not in os.environ:
        return False
    return any(gpu.name.startswith(STAND_IN) for gpu in environment.gpus())


if not is_on_stand_in():
    # They are run, or skipped with their reason, by tests/integration/test_on_stand_in.py.
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def script() -> Script:
    from tests.fakes.runtime_fake import Script

    return Script()


@pytest.fixture
def bench(script: Script, tmp_path: Path) -> Bench:
    from tests.stand_in.benches import fake_bench

    return fake_bench(script, tmp_path)


@pytest.fixture
def runner(bench: Bench) -> Iterator[TrtRunner]:
    with bench.runner() as opened:
        yield opened


@pytest.fixture
def memory_mib(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the memory that the stand-in's GPU has; it reads the variable at each call."""

    def limit(mib: int) -> None:
        monkeypatch.setenv("NULLCUDA_MEM_MB", str(mib))

    return limit

"""Starts the tests that need a stand-in CUDA driver, each file in a process that has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in (ROOT / "tests" / "stand_in").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_on_the_stand_in_driver(cuda_stand_in: Path, file: str) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("a real CUDA driver is here: run tests/gpu")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", f"tests/stand_in/{file}"],
        env={**os.environ, "LD_LIBRARY_PATH": str(cuda_stand_in)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

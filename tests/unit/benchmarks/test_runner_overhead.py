"""The script of the runner's own time goes with the runner: what it times is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import runner_overhead

ROOT = Path(runner_overhead.__file__).parents[1]


def test_it_times_both_copies_of_a_call(cuda_stand_in: Path, tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("a real CUDA driver is here")
    results = tmp_path / "results" / "overhead.json"
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/runner_overhead.py", "--cuda-stand-in", cuda_stand_in),
            *("--rounds", "2", "--calls", "3", "--results", results),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(results.read_text(encoding="utf-8"))["samples"]
    assert len(samples) == 2 * 2 * 3
    assert all(sample["us_per_call"] > 0 for sample in samples)
    assert "| 1x3x224x224 | 602112 |" in done.stdout

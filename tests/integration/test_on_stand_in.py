"""Starts the tests that need a stand-in CUDA driver in processes that have it.

They run on a driver that does its work at once, and on one whose streams work in threads with
random delays, so that what no stream orders happens in any order. What such a driver sees happen
out of order it reports, and a report fails the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernels import host_library

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
TESTS = "tests/stand_in"
RUNNER, KERNELS, PLANTED, COMPARED, BYTES, SECOND = (
    f"{TESTS}/test_{name}.py"
    for name in ("runner", "kernels", "planted_faults", "compare_speed", "bytes", "second_gpu")
)
AT_ONCE = sorted(
    {f"{TESTS}/{path.name}" for path in (ROOT / TESTS).glob("test_*.py")} - {KERNELS, PLANTED}
)
FORKS = f"{TESTS}/test_forks.py"
# Children of a fork must not call the driver in any order, and the last three do no more on a
# stream than the runner's own scenarios.
ORDERED = [path for path in AT_ONCE if path not in (RUNNER, FORKS, COMPARED, BYTES, SECOND)]
# Spread over the seeds: all of it under each would take a minute.
SEEDS = {1: [f"{RUNNER}::TestRtx", *ORDERED], 2: [KERNELS, f"{RUNNER}::TestTensorrt"]}
DELAY_US = "100"
UNUSED = ("-p", "no:hypothesispytest", "-p", "no:anyio")
"""Plugins that would be imported for nothing."""
LONG_DELAYS = {"NULLCUDA_ASYNC": "1", "NULLCUDA_DELAY_US": "2000", "NULLCUDA_DELAY_PCT": "100"}


@pytest.fixture(scope="session")
def driver(cuda_stand_in: Path) -> Path:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("a real CUDA driver is here: run tests/gpu")
    return cuda_stand_in


@pytest.fixture(scope="session")
def asynchronous(driver: Path) -> Path:
    # The file is searched: loading it would make it this process's driver.
    if b"NULLCUDA_ASYNC" not in (driver / "libcuda.so.1").read_bytes():
        pytest.skip(f"the driver in {driver} has no asynchronous mode")
    return driver


@pytest.fixture(scope="session")
def kernels(made_once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, str]:
    """The environment variable for the kernels; without a compiler the tests skip, and say so."""
    if not host_library.has_compiler():
        return {}
    folder = made_once("kernels-for-the-host", host_library.compile_for_host)
    return {host_library.VARIABLE: str(folder / host_library.LIBRARY)}


def run(driver: Path, tests: list[str], report: Path, **environment: str) -> None:
    """The tests pass, and the driver reports nothing."""
    if host_library.VARIABLE not in environment and any(KERNELS in test for test in tests):
        pytest.skip(f"needs the compiler {host_library.COMPILER}")
    own = {"LD_LIBRARY_PATH": str(driver), "NULLCUDA_REPORT": str(report)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", *UNUSED, *tests],
        env={**os.environ, **own, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reported = report.read_text(errors="replace") if report.exists() else ""
    assert not reported, reported + done.stdout


def test_at_once(driver: Path, tmp_path: Path) -> None:
    run(driver, AT_ONCE, tmp_path / "report")


@pytest.mark.parametrize("seed", SEEDS)
def test_in_random_order(
    asynchronous: Path, kernels: dict[str, str], tmp_path: Path, seed: int
) -> None:
    mode = {"NULLCUDA_ASYNC": "1", "NULLCUDA_SEED": str(seed), "NULLCUDA_DELAY_US": DELAY_US}
    run(asynchronous, SEEDS[seed], tmp_path / "report", **kernels, **mode)


def test_planted_faults_are_found(asynchronous: Path) -> None:
    """What the driver reports is of the faults that it plants: it counts the reports by itself."""
    run(asynchronous, [PLANTED], Path(os.devnull), **LONG_DELAYS)

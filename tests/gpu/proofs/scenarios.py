"""The runner's scenarios on real kernels, plainly and under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.proofs.report import CannotRunError

if TYPE_CHECKING:
    from tests.gpu.proofs.report import Report

TESTS = "tests/gpu/test_kernels_gpu.py"
FEW = "TestCaptured and (layouts or steps or close_twice or new_values)"
SANITIZER_S = 75
BARE = (
    *("-c", os.devnull, "--rootdir", ".", "--noconftest", "--import-mode", "importlib"),
    *("-q", "-p", "no:cacheprovider"),
)
"""Options of pytest without the project's settings and fixtures, which want more packages."""
FOUND = 17
"""Exit code that compute-sanitizer is told to end with when it has found something."""


class Results:
    """A plug-in of pytest that keeps the outcomes."""

    def __init__(self) -> None:
        self.passed = 0
        self.other: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed or report.skipped:
            name = report.nodeid.partition("::")[2]
            self.other[name] = f"{report.outcome}: {report.longreprtext[-600:]}"
        elif report.when == "call":
            self.passed += 1


def prove(report: Report) -> None:
    """All scenarios, captured and eager, in this process."""
    import pytest

    results = Results()
    chosen = ["-k", FEW] if report.quick else []
    code = pytest.main([*BARE, *chosen, TESTS], plugins=[results])
    for name, said in results.other.items():
        report.check(name, passed=False, said=said)
    report.check("scenarios", code == 0 and results.passed > 0, count=results.passed)


def prove_memory(report: Report) -> None:
    """A few scenarios under compute-sanitizer: no access outside of what is allocated."""
    found = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if found is None:
        raise CannotRunError("compute-sanitizer is not installed: it comes with CUDA's tool kit")
    for tool in ("memcheck", "initcheck"):
        with report.piece(tool):
            _sanitize(report, found, tool)


def _sanitize(report: Report, program: str, tool: str) -> None:
    tests = [sys.executable, "-m", "pytest", *BARE, "-k", FEW, TESTS]
    try:
        done = subprocess.run(
            [program, "--tool", tool, "--error-exitcode", str(FOUND), *tests],
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            timeout=SANITIZER_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"it had not ended after {SANITIZER_S} s") from error
    said = (done.stdout + done.stderr)[-1500:]
    if "Device not supported" in said or "not supported on this" in said:
        raise CannotRunError(f"it does not work on this machine: {said}")
    report.check(tool, done.returncode == 0, exit_code=done.returncode, said=said)

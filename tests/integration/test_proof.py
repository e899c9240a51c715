"""The proof for a GPU as far as a stand-in driver goes, and what it says of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploykit.backends import Compiler
from deploykit.core import environment
from deploykit.core.environment import Gpu
from tests.gpu import prove as proof
from tests.gpu.proofs import compilers
from tests.gpu.proofs.report import Report
from tests.kernels import host_library

ROOT = Path(__file__).parents[2]
RUN_HERE = "abcde"
# The packages that a machine with nothing but torch, cupy and onnxruntime may lack.
LACKING = ("msgspec", "click", "rich", "psutil", "filelock", "PIL")


def prove(out: Path, *options: str, **environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.prove", str(out), "--quick", *options],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (out / "proof.json").exists(), done.stdout + done.stderr
    assert (out / "proof.md").read_text() in done.stdout
    found: dict[str, Any] = json.loads((out / "proof.json").read_text())
    return done.returncode, found


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which the packages of `LACKING` cannot be imported."""
    folder = tmp_path / "lacking"
    folder.mkdir()
    for name in LACKING:
        text = f"raise ModuleNotFoundError('lacking here', name={name!r})\n"
        (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def test_on_a_stand_in(cuda_stand_in: Path, tmp_path: Path, bare: dict[str, str]) -> None:
    if not host_library.has_compiler():
        pytest.skip(f"needs the compiler {host_library.COMPILER}")
    code, found = prove(tmp_path / "out", LD_LIBRARY_PATH=str(cuda_stand_in), **bare)
    log = (tmp_path / "out" / "proof.log").read_text()
    parts = found["parts"]
    failed = [part for part in RUN_HERE if parts[part]["status"] != "passed"]
    assert not failed, (found, log)
    assert code == 0
    for part in set(proof.PARTS) - set(RUN_HERE):
        assert parts[part]["status"] == "skipped"
        assert "does not run on a stand-in driver" in parts[part]["reason"]
    assert parts["a"]["entries"]["scenarios"]["count"] > 0
    assert parts["c"]["entries"]["torch"]["status"] == "skipped"
    assert found["machine"]["gpus"][0].startswith("nullcuda")


ENDS = {
    "import time; time.sleep(600)": ("stopped", "it had not ended after 2 s"),
    "import sys; sys.exit(3)": ("crashed", "its process ended with 3: see proof.log"),
    "import os; os.abort()": ("crashed", "its process ended with -6: see proof.log"),
    "pass": ("failed", None),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_part_leaves_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(proof, "LEAST_S", 0.0)
    into = tmp_path / "part.json"
    entries = {"one": {"status": "passed"}, "two": {"status": "failed"}}
    code = f"import pathlib; pathlib.Path({str(into)!r}).write_text({json.dumps(entries)!r}); {end}"
    command = [sys.executable, "-c", code, "--into", str(into)]
    with (tmp_path / "log").open("w") as log:
        found = proof.supervised(proof.Part("a", "b", 2.0), command, dict(os.environ), 9.0, log)
    assert (found["status"], found.get("reason")) == ENDS[end]
    assert found["entries"] == entries


def test_a_part_is_not_begun_without_time(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        found = proof.supervised(proof.Part("a", "b", 60.0), ["none"], {}, 4.0, log)
    assert (found["status"], found["reason"]) == ("stopped", "no time was left for it")


def test_without_a_gpu_each_part_says_so(tmp_path: Path) -> None:
    code, found = prove(tmp_path, "--part", "b", "--part", "g", LD_LIBRARY_PATH=str(tmp_path))
    if found["machine"]["gpus"]:
        pytest.skip("a GPU is here")
    assert code == 0
    assert {part["status"] for part in found["parts"].values()} == {"skipped"}
    assert found["parts"]["b"]["reason"] == "no GPU on this machine"


def test_its_limits_fit_into_nine_minutes() -> None:
    assert proof.TOTAL_S < 9 * 60
    assert all(part.limit_s < proof.TOTAL_S / 3 for part in proof.PARTS.values())


@pytest.mark.parametrize("capability", ["9.0", "8.9"])
def test_commands_on_a_gpu_that_a_compiler_does_not_cover_are_no_failure(
    capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT for RTX compiles for others on an H200, whose proof must not fail for it."""
    rtx = Compiler("tensorrt-rtx", "1.7", None, is_portable=True)
    covers = capability == "8.9"
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[3:])
        if "export" in command:
            Path(command[command.index("-o") + 1]).mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("it", capability, 1),))
    monkeypatch.setattr(compilers, "known_compute_capabilities", lambda _: ("8.0", "8.9"))
    monkeypatch.setattr(compilers, "load_compiler", lambda _: rtx)
    monkeypatch.setattr(compilers, "_run_engine", lambda *_: None)
    monkeypatch.setattr(compilers, "_build_for_current", lambda *_: "refused")
    monkeypatch.setattr(compilers, "TENSORRT", "tensorrt-rtx")
    monkeypatch.setattr(subprocess, "run", run)
    compilers.prove(Report(tmp_path / "part.json", quick=True))
    found = json.loads((tmp_path / "part.json").read_text())
    assert not [name for name, entry in found.items() if entry["status"] == "failed"]
    bench = found["tensorrt-rtx: bench --quick"]
    assert bench["status"] == ("passed" if covers else "skipped")
    assert covers or bench["reason"] == "tensorrt-rtx 1.7 does not cover this GPU"
    engines = [command for command in ran if "--device" in command or "bench" in command]
    assert bool(engines) == covers

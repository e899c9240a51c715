"""Proves on a machine with a GPU what cannot be proven without one. From the repository's root:

    python -m tests.gpu.prove OUT

Nothing needs to be installed of this project. Each part is a process with a limit of its own, and
the next goes on whatever happened to it. OUT gets ``proof.json``, ``proof.md`` and ``proof.log``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TOTAL_S = 530.0
"""All parts together; with what starts and ends them this stays below nine minutes."""
LEAST_S = 5.0
SKIPPED_CODE, CRASHED_CODE = 75, 70


@dataclass(frozen=True)
class Part:
    """``module`` is a file of ``proofs``; ``limit_s`` is the most that it gets.

    ``runs`` names what it runs that no stand-in driver runs.
    """

    title: str
    module: str
    limit_s: float
    function: str = "prove"
    runs: str = ""


PARTS = {
    "a": Part("the runner's scenarios on real kernels", "scenarios", 100),
    "b": Part("a fault in a kernel, then run, close, fork", "faults", 90),
    "c": Part("arrays of torch and cupy, whose producers are busy", "exchange", 60),
    "d": Part("the truth of times", "timing", 60),
    "e": Part("the meter, 32 threads, opening and closing", "endurance", 60),
    "f": Part("TensorRT and TensorRT for RTX", "compilers", 175, runs="NVIDIA's runtime"),
    "i": Part("sums and rounding in FP16", "half", 60, runs="torch.cuda"),
    "g": Part("ResNet-50 in PyTorch, eager and compiled", "networks", 150, runs="torch.cuda"),
    "h": Part("compute-sanitizer", "scenarios", 160, "prove_memory", "compute-sanitizer"),
}
"""In the order in which they run: what is known to work on any GPU first, what takes long last."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.into is not None:
        return _run_part(PARTS[options.part[0]], options.into, quick=options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    found: dict[str, Any] = {"machine": _machine(), "parts": {}}
    chosen = options.part or list(PARTS)
    with (options.out / "proof.log").open("w") as log, tempfile.TemporaryDirectory() as work:
        environment = _environment(Path(work))
        for letter in (each for each in PARTS if each in chosen):
            left = end - time.monotonic()
            command = _command(letter, Path(work) / "part.json", quick=options.quick)
            found["parts"][letter] = supervised(PARTS[letter], command, environment, left, log)
            _write(options.out, found)
    print((options.out / "proof.md").read_text())  # noqa: T201 - the summary is for who started it
    statuses = {part["status"] for part in found["parts"].values()}
    return 1 if statuses & {"failed", "crashed", "stopped"} else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.prove")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for what it finds")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all parts together")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, as its test asks")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # of a part's own process
    return parser.parse_args(arguments)


def _command(letter: str, into: Path, *, quick: bool) -> list[str]:
    into.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu.prove", str(into.parent), "--part", letter]
    return [*command, "--into", str(into), *(["--quick"] if quick else [])]


def _environment(work: Path) -> dict[str, str]:
    """That of the parts; with the kernels for the processor where there may be a stand-in."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    # Options of somebody's own runs of pytest: the parts know none of them.
    environment.pop("PYTEST_ADDOPTS", None)
    from deploykit.core.environment import gpus
    from tests.kernels import host_library

    on_stand_in = any(gpu.name.startswith("nullcuda") for gpu in gpus())
    if on_stand_in and host_library.VARIABLE not in environment and host_library.has_compiler():
        environment[host_library.VARIABLE] = str(host_library.compile_for_host(work))
    return environment


def supervised(
    part: Part, command: list[str], environment: dict[str, str], left_s: float, log: Any
) -> dict[str, Any]:
    """What became of a part: its entries, its status, and a reason where it did not end well."""
    limit = min(part.limit_s, left_s)
    entry: dict[str, Any] = {"title": part.title, "status": "stopped", "seconds": 0.0}
    if limit < LEAST_S:
        return {**entry, "reason": "no time was left for it", "entries": {}}
    print(f"== {part.title}", file=log, flush=True)
    begun = time.monotonic()
    # A session of its own: what the part has started ends with it.
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    _end_session(process)
    entry["seconds"] = round(time.monotonic() - begun, 1)
    into = Path(command[command.index("--into") + 1])
    written = json.loads(into.read_text()) if into.exists() else {}
    reason = written.pop("reason", None)
    entry["entries"] = written
    if code is None:
        return {**entry, "reason": f"it had not ended after {limit:.0f} s"}
    if code == SKIPPED_CODE:
        return {**entry, "status": "skipped", "reason": reason}
    if code != 0:
        said = reason or f"its process ended with {code}: see proof.log"
        return {**entry, "status": "crashed", "reason": said}
    return {**entry, "status": _status([each["status"] for each in written.values()])}


def _end_session(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself, and left nothing
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _status(statuses: list[str]) -> str:
    if "failed" in statuses:
        return "failed"
    return "passed" if {"passed", "measured"} & set(statuses) else "skipped"


def _run_part(part: Part, into: Path, *, quick: bool) -> int:
    """In the part's own process: its exit code; what is missing is a reason, not a crash."""
    try:
        from deploykit.core import environment
        from deploykit.core.errors import MissingDependencyError
        from tests.gpu.proofs.report import CannotRunError, Report

        if not environment.gpus():
            return _without(into, "no GPU on this machine")
        report = Report(into, quick=quick)
        try:
            if part.runs:
                report.needs_gpu(part.runs)
            module = importlib.import_module(f"tests.gpu.proofs.{part.module}")
            getattr(module, part.function)(report)
        except (CannotRunError, MissingDependencyError) as error:
            return _without(into, str(error))
    except ModuleNotFoundError as error:
        return _without(into, f"the Python package of {error.name!r} is not installed")
    except BaseException as error:  # pytest's own kind too, which is no Exception
        traceback.print_exc()
        if type(error).__name__ == "Skipped":
            return _without(into, str(error))
        _add_reason(into, f"{type(error).__name__}: {error}")
        return CRASHED_CODE
    return 0


def _without(into: Path, reason: str) -> int:
    _add_reason(into, reason)
    return SKIPPED_CODE


def _add_reason(into: Path, reason: str) -> None:
    written = json.loads(into.read_text()) if into.exists() else {}
    into.write_text(json.dumps({**written, "reason": reason}, indent=1))


def _machine() -> dict[str, Any]:
    from deploykit.core import environment

    packages = (
        *("numpy", "torch", "torchvision", "cuda-core", "cuda-bindings", "cupy-cuda13x", "onnx"),
        *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "pytest", "msgspec"),
    )
    return {
        "gpus": [f"{gpu.name} ({gpu.compute_capability})" for gpu in environment.gpus()],
        "driver": environment.driver_version(),
        "cpu": environment.cpu_model(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: environment.package_version(name) for name in packages},
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _write(out: Path, found: dict[str, Any]) -> None:
    (out / "proof.json").write_text(json.dumps(found, indent=1) + "\n")
    machine = found["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    lines = ["# Proof on a GPU", "", f"{gpus}; driver {machine['driver']}; {machine['when']}", ""]
    lines += ["| part | | s | |", "|---|---|---|---|"]
    for letter, part in found["parts"].items():
        reason = " ".join((part.get("reason") or "").split())[:200]
        cells = (f"{letter}: {part['title']}", part["status"], part["seconds"], reason)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for letter, part in found["parts"].items():
        if not part["entries"]:
            continue
        lines += ["", f"## {letter}: {part['title']}", ""]
        lines += [_line(name, entry) for name, entry in part["entries"].items()]
    (out / "proof.md").write_text("\n".join(lines) + "\n")


def _line(name: str, entry: dict[str, Any]) -> str:
    figures = {key: value for key, value in entry.items() if key != "status"}
    shown = ", ".join(f"{key} {_shown(value)}" for key, value in figures.items())
    return f"- {entry['status']}: {name}" + (f": {shown}" if shown else "")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())[:300]


if __name__ == "__main__":
    sys.exit(main())

"""A fault of a kernel, and what the runner tells afterwards; a fork before it and after it."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.core.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from deploykit.backends.trt.runner import TrtRunner
    from tests.gpu.proofs.report import Report

FAULTS = ("illegal address", "trap")
ILLEGAL_ADDRESS = 700
CHILD_S = 20


def prove(report: Report) -> None:
    """Each fault in a process of its own, which it makes unusable."""
    for fault in FAULTS[:1] if report.on_stand_in else FAULTS:
        kind = "stand-in" if report.on_stand_in else fault
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, kind],
            capture_output=True,
            text=True,
            timeout=CHILD_S * 3,
            check=False,
        )
        print(done.stderr, flush=True)  # noqa: T201 - the log of the part
        for line in done.stdout.splitlines():
            entry = json.loads(line)
            report.check(f"{fault}: {entry['name']}", entry["passed"], said=entry["said"])
        report.check(f"{fault}: the process ends", done.returncode == 0, code=done.returncode)


def _tell(name: str, passed: bool, said: object = "") -> None:
    print(json.dumps({"name": name, "passed": passed, "said": str(said)}), flush=True)  # noqa: T201


def _fault(kind: str) -> str:
    """Cause it, and return what the driver says of it."""
    if kind == "stand-in":
        ctypes.CDLL("libcuda.so.1").nullcuda_fault(ILLEGAL_ADDRESS)
        return "planted"
    from tests.device_arrays import core
    from tests.kernels.runtime import launch

    stream = core.Device(0).create_stream()
    try:
        if kind == "trap":
            launch(stream, "stop", 1)
        else:
            launch(stream, "fault", 1, 0x10)
        stream.sync()
    except Exception as error:  # the driver's own, which has no public class
        return str(error)
    return "nothing"


def _told(runner: TrtRunner) -> tuple[bool, str]:
    from tests.runner_scenarios import images

    try:
        runner.run({"x": images(1)})
    except DeviceError as error:
        return "start the process again" in str(error), str(error)
    except Exception as error:  # shown as what it is
        return False, f"{type(error).__name__}: {error}"
    return False, "an answer"


def _fork(name: str, runner: TrtRunner) -> None:
    """A child that asks, closes and drops the runner ends by itself, and is told."""
    child = os.fork()
    if child == 0:
        signal.alarm(CHILD_S)  # ends a child that waits for ever
        os._exit(_in_child([runner]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _tell(name, code == 0, f"the child ends with {code}")


def _in_child(held: list[TrtRunner]) -> int:
    from tests.runner_scenarios import images

    try:
        held[0].run({"x": images(1)})
    except UsageError as error:
        told = "load it after the fork" in str(error)
    except Exception:  # any other is a failure, and no child may go on as its parent
        return 2
    else:
        return 1
    held[0].close()
    held.clear()
    gc.collect()
    return 0 if told else 3


def main(kind: str) -> None:
    from tests.kernels.benches import kernel_bench
    from tests.runner_scenarios import images

    with tempfile.TemporaryDirectory() as folder:
        bench = kernel_bench(Path(folder))
        check = bench.oracle()
        runner = bench.runner()
        check(images(1), runner.run({"x": images(1)}))
        _fork("a fork before it", runner)
        check(images(2), runner.run({"x": images(2)}))
        _tell("the parent of the fork goes on", passed=True)
        said = _fault(kind)
        _tell("the fault happened", said != "nothing", said)
        for turn in ("first", "second"):
            _tell(f"the {turn} call after it is told", *_told(runner))
        _fork("a fork after it", runner)
        for turn in ("first", "second"):
            try:
                runner.close()
                _tell(f"the {turn} close", passed=True)
            except Exception as error:  # shown as what it is
                _tell(f"the {turn} close", passed=False, said=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])

"""A child of fork leaves its parent's GPU alone, however it ends; the driver reports each call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PARENT = """
import ctypes, gc, os, sys, tempfile
from pathlib import Path
from deploykit.core.errors import UsageError
from tests.device_arrays import ByDlpack
from tests.fakes.runtime_fake import Script
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

def refused(call, said):
    try:
        call()
    except UsageError as error:
        assert said in str(error), error
    else:
        raise SystemExit("the child was let in")

script = Script()
bench = fake_bench(script, Path(tempfile.mkdtemp()), rtx=RTX)
runner = bench.runner()
for _ in range(3):
    runner.run({"x": images(1)})
runner.run_timed({"x": images(2)})
output = runner.run_on_device({"x": images(1)})["y"]

def does_nothing(): pass
def closes_the_runner(): runner.close()
def closes_it_twice(): runner.close(); runner.close()
def leaves_a_with_block():
    try:
        with runner:
            pass
    except UsageError:
        pass
def drops_all_it_has():
    global runner, output, bench, script
    del runner, output, bench, script
    gc.collect()
def closes_and_drops():
    closes_the_runner()
    drops_all_it_has()
def asks():
    refused(lambda: runner.run({"x": images(1)}), "load it after the fork, in each process")
    refused(lambda: runner.inputs, "model.engine was loaded before this process was forked")
    refused(lambda: output.numpy(), "used the GPU before it forked this one")
    refused(lambda: output.__dlpack__(), "used the GPU before it forked this one")
    refused(lambda: bench.runner().inputs, "start processes by 'spawn'")

# All of Python's own end, but not that of C++: onnxruntime, which the fake computes with, waits
# there for threads that a child does not have.
def as_a_program_ends():
    c = ctypes.CDLL(None)
    c.on_exit(ctypes.cast(c._exit, ctypes.c_void_p), None)
    sys.exit(0)

for act in (does_nothing, closes_the_runner, closes_it_twice, leaves_a_with_block,
            drops_all_it_has, closes_and_drops, asks):
    child = os.fork()
    if child == 0:
        act()
        as_a_program_ends()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (act, status)
bench.oracle()(images(1), runner.run({"x": images(1)}))
assert output.numpy().shape == (1, 10)
runner.close()
print("the parent goes on", flush=True)
"""


def run(body: str, folder: Path) -> None:
    report = folder / "report"
    done = subprocess.run(
        [sys.executable, "-c", body],
        cwd=ROOT,  # from where it imports the tests
        env={**os.environ, "NULLCUDA_REPORT": str(report)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = report.read_text(errors="replace") if report.exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + said
    ends = done.stdout.count("the parent goes on")
    assert ends == body.count("the parent goes on"), done.stdout + done.stderr
    assert "forked" not in said + done.stderr


def test_a_child_calls_no_driver(tmp_path: Path) -> None:
    """Of TensorRT, and then of TensorRT for RTX: the process starts once for both."""
    run("".join(PARENT.replace("RTX", str(rtx)) for rtx in (False, True)), tmp_path)


OPENING = """
import os, tempfile, threading
from pathlib import Path
from deploykit.core.errors import UsageError
from tests.fakes.runtime_fake import Script
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

bench = fake_bench(Script(), Path(tempfile.mkdtemp()))
runner = bench.runner()
begun, go_on = threading.Event(), threading.Event()
open_engine = runner._open_engine
def slowly():
    begun.set()
    go_on.wait()
    return open_engine()
runner._open_engine = slowly
thread = threading.Thread(target=runner.run, args=({"x": images(1)},))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    try:
        runner.run({"x": images(1)})
    except UsageError:
        runner.close()
        os._exit(0)
    os._exit(1)
go_on.set()
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
thread.join()
runner.close()
print("the parent goes on", flush=True)
"""


def test_a_fork_while_another_thread_opens_the_engine(tmp_path: Path) -> None:
    run(OPENING, tmp_path)


UNOPENED = """
import os, tempfile
from pathlib import Path
from tests.fakes.runtime_fake import Script
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

bench = fake_bench(Script(), Path(tempfile.mkdtemp()))
runner = bench.runner()
child = os.fork()
if child == 0:
    bench.oracle()(images(1), runner.run({"x": images(1)}))
    runner.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
runner.close()
print("the parent goes on", flush=True)
"""


def test_a_runner_that_nobody_has_used_serves_the_child(tmp_path: Path) -> None:
    run(UNOPENED, tmp_path)

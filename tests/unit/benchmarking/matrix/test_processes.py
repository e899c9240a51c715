from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from deploykit.benchmarking.matrix.child import says_out_of_memory
from deploykit.benchmarking.matrix.processes import (
    ChildFailure,
    ProcessLimits,
    ProcessTree,
    call,
)

ROOT = Path(__file__).resolve().parents[4]
WORKER = "tests.unit.benchmarking.matrix.small_worker"
MIB = 2**20

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")

AMPLE = ProcessLimits(time_s=60)


class Recorded:
    """A progress task that keeps what it is told."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float | None, str]] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.updates.append((done, total, detail))


class Interrupting(Recorded):
    """The user presses Ctrl-C at the first sign of progress."""

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        super().update(done, total, detail)
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _findable_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def ask(task: str, limits: ProcessLimits = AMPLE, **request: Any) -> dict[str, Any]:
    return call(task, request, limits, progress=Recorded(), module=WORKER)


def failure(task: str, limits: ProcessLimits = AMPLE, **request: Any) -> ChildFailure:
    with pytest.raises(ChildFailure) as caught:
        ask(task, limits, **request)
    assert str(caught.value) == caught.value.reason
    return caught.value


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie has ended: in a container perhaps nobody asks how.
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    """A kill takes a moment; the test's own time limit ends a wait that is in vain."""
    while is_running(pid):
        time.sleep(0.01)


def test_the_answer_comes_back() -> None:
    request: dict[str, Any] = {"text": "größer\n", "numbers": [0.1, 1e-300, 3], "nothing": None}
    assert ask("echo", **request) == request


def test_requests_and_answers_may_be_long() -> None:
    samples = [index / 7 for index in range(200_000)]
    assert ask("echo", samples=samples) == {"samples": samples}


def test_progress_is_passed_on() -> None:
    task = Recorded()
    assert call("report", {}, AMPLE, progress=task, module=WORKER) == {}
    assert task.updates == [(1, 4, "warm up"), (2.5, None, "")]


def test_what_libraries_print_is_no_answer() -> None:
    assert ask("print_junk") == {"right": True}


def test_a_handler_has_no_standard_input() -> None:
    assert ask("read_input") == {"read": ""}


def test_a_file_in_the_current_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('wrong json')\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert ask("echo") == {}


def test_an_error_is_told_in_its_own_words() -> None:
    found = failure("refuse")
    assert found.kind == "error"
    assert found.reason == "the GPU has fallen off the bus\nstart the machine again"


def test_an_unknown_task_is_an_error() -> None:
    found = failure("ecko")
    assert found.kind == "error"
    assert found.reason.startswith("unknown task 'ecko'\ndid you mean: echo?\n")


@pytest.mark.parametrize(
    ("whose", "reason"),
    [
        ("host", "MemoryError"),
        ("numpy", "Unable to allocate 7.45 TiB"),
        ("torch", "Tried to allocate 2 GiB\nfrees\n?"),
        ("arena", "Failed to allocate memory for requested buffer of size 2830172160"),
    ],
)
def test_a_lack_of_memory_is_recognised(whose: str, reason: str) -> None:
    found = failure("lack_memory", whose=whose)
    assert (found.kind, found.reason) == ("out of memory", reason)


@pytest.mark.parametrize("translated", [True, False])
def test_a_lack_of_memory_behind_an_error_is_recognised(translated: bool) -> None:
    found = failure("lack_gpu_memory", translated=translated)
    assert (found.kind, found.reason) == ("out of memory", "the GPU has no 9.0 MiB left")


@pytest.mark.parametrize(
    "text",
    [
        "Error Code 1: Cuda Runtime (out of memory)",
        "Error Code 2: OutOfMemory (Requested size was 17920000000 bytes.)",
        "CUDA_ERROR_OUT_OF_MEMORY: The API call failed",
        "CUDNN_STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "[Errno 12] Cannot allocate memory",
    ],
)
def test_texts_of_a_lack_of_memory(text: str) -> None:
    assert says_out_of_memory(text)


def test_other_texts_are_no_lack_of_memory() -> None:
    assert not says_out_of_memory("[Errno 28] No space left on device")
    assert not says_out_of_memory("CUDA_ERROR_ILLEGAL_ADDRESS: while reading memory")


def test_a_bug_is_told_by_its_last_line_with_the_traceback_behind() -> None:
    found = failure("crash")
    assert found.kind == "error"
    assert found.reason == "ended with exit code 1: ZeroDivisionError: nothing to divide by"
    assert found.output.startswith("Traceback (most recent call last):\n")
    assert "in crash" in found.output


@pytest.mark.parametrize(
    ("code", "reason"),
    [(3, "ended with exit code 3: last words"), (0, "ended without an answer: last words")],
)
def test_a_child_that_just_ends(code: int, reason: str) -> None:
    found = failure("leave", code=code)
    assert (found.kind, found.reason, found.output) == ("error", reason, "last words")


def test_a_child_that_the_system_kills() -> None:
    found = failure("die", signal=signal.SIGKILL)
    assert found.kind == "out of memory"
    assert found.reason == "killed by signal 9, perhaps by the system for want of memory"


def test_a_child_that_crashes_in_native_code() -> None:
    found = failure("die", signal=signal.SIGSEGV)
    assert (found.kind, found.reason) == ("error", "killed by signal 11 (Segmentation fault)")
    words = "terminate called after throwing an instance of 'std::bad_alloc'\n"
    found = failure("die", signal=signal.SIGABRT, words=words)
    assert found.kind == "out of memory"
    assert found.reason == f"killed by signal 6 (Aborted): {words.strip()}"


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ChildFailure, match=r"the worker could not be started: .*No such file") as c:
        call("echo", {}, AMPLE, progress=Recorded(), python="/nowhere/python")
    assert c.value.kind == "error"


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ChildFailure, match=r"ended with exit code 1: .*No module named 'nowhere'"):
        call("echo", {}, AMPLE, progress=Recorded(), module="nowhere.worker")


def test_a_worker_that_speaks_otherwise() -> None:
    found = failure("not_json")
    assert (found.kind, found.reason) == ("error", "the worker wrote what is no answer: [1, 2]")
    with pytest.raises(ChildFailure, match="the worker wrote what is no answer: The Zen of Python"):
        call("echo", {}, AMPLE, progress=Recorded(), module="this")


@pytest.mark.parametrize(
    "line",
    [
        '{"answer": [1]}',
        '{"answer": null}',
        '{"colour": "blue"}',
        '{"error": "an array was expected"}',
        '{"error": {"kind": 3, "message": ""}}',
        '{"answer": {}, "answer": 3}',
        "[" * 4000,
        "9" * 4400,
        '{"answer": "\xff"}',
        "",
    ],
    ids=["list", "null", "field", "error", "kind", "twice", "nested", "huge", "utf-8", "empty"],
)
def test_a_malformed_answer_is_shown(line: str) -> None:
    found = failure("not_json", line=line)
    shown = line.encode("latin-1")[:100].decode(errors="replace")
    assert found.kind == "error"
    assert found.reason.startswith(f"the worker wrote what is no answer: {shown}")


def test_an_answer_may_have_fields_and_numbers_that_the_parent_does_not_know() -> None:
    answer = '{"answer": {"a": NaN, "b": 1, "b": 2, "colour": "blue"}, "later": 3}'
    found = ask("not_json", ProcessLimits(time_s=60, grace_s=0.1), line=answer)
    assert found == {"a": pytest.approx(math.nan, nan_ok=True), "b": 2, "colour": "blue"}


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"[]", "the request: expected an object, got list"),
        (b"null", "the request: expected an object, got NoneType"),
        (b"{", "the request is not JSON, perhaps cut off: Expecting property name"),
        (b"[" * 100_000, "the request is not JSON, perhaps cut off: maximum recursion depth"),
        (b"9" * 5000, "the request is not JSON, perhaps cut off: Exceeds the limit"),
        (b'"\xff"', "the request is not JSON, perhaps cut off: 'utf-8' codec can't decode"),
    ],
    ids=["array", "null", "torn", "nested", "huge", "utf-8"],
)
def test_a_malformed_request_is_told_to_the_parent(request_bytes: bytes, reason: str) -> None:
    command = [sys.executable, "-P", "-m", WORKER, "echo"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(request_bytes + b"\n")
        child.stdin.flush()
        error = json.loads(child.stdout.readline())["error"]
    assert error["kind"] == "DataError"
    assert error["message"].startswith(reason)
    assert error["message"].endswith(
        "\nparent and worker may be of different releases: install deploykit again"
    )


@pytest.mark.parametrize("task", ["hang", "close_and_hang"])
def test_a_child_that_hangs_is_ended_at_its_limit(task: str) -> None:
    found = failure(task, ProcessLimits(time_s=0.5))
    assert (found.kind, found.reason) == ("time limit", "took longer than its limit of 0.5 s")


def test_a_child_that_does_not_want_to_end_is_killed() -> None:
    task = Interrupting()
    limits = ProcessLimits(time_s=60, grace_s=0.1)
    with pytest.raises(KeyboardInterrupt):
        call("hang", {"stubborn": True}, limits, progress=task, module=WORKER)
    assert not is_running(int(task.updates[0][0]))


@pytest.mark.parametrize("task", ["fill_memory", "fill_memory_below"])
def test_a_child_that_takes_too_much_memory_is_killed(task: str) -> None:
    limits = ProcessLimits(time_s=60, memory_bytes=100 * MIB)
    found = failure(task, limits, bytes=200 * MIB)
    assert found.kind == "out of memory"
    used, limit = found.reason.split(" of memory, its limit is ")
    assert limit == "100 MiB"
    assert used.startswith("used ")
    assert 100 < int(used.removeprefix("used ").removesuffix(" MiB")) < 300


def test_resident_memory_is_what_the_system_says() -> None:
    status = Path("/proc/self/status").read_text("utf-8")
    [kib] = re.findall(r"VmRSS:\s+(\d+) kB", status)
    assert ProcessTree(os.getpid()).resident_bytes() == pytest.approx(int(kib) * 1024, rel=0.1)


def test_a_process_that_is_not_there_holds_no_memory() -> None:
    assert ProcessTree(2**22 + 1).resident_bytes() == 0


def test_a_child_that_fills_standard_error_does_not_block() -> None:
    assert ask("fill_error") == {"done": True}


@pytest.mark.parametrize("die", [False, True])
def test_a_process_that_keeps_the_pipes_open_is_not_waited_for(tmp_path: Path, die: bool) -> None:
    if die:
        assert "killed by signal 9" in failure("leave_process", die=True).reason
    else:
        wait_until_gone(ask("leave_process")["pid"])


def test_a_child_that_does_not_end_after_its_answer_is_killed() -> None:
    answer = ask("hang_at_exit", ProcessLimits(time_s=60, grace_s=0.1))
    assert not is_running(answer["pid"])


def test_an_interrupt_leaves_no_process() -> None:
    task = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        call("hang", {}, AMPLE, progress=task, module=WORKER)
    assert not is_running(int(task.updates[0][0]))


PARENT = f"""
from deploykit.benchmarking.matrix.processes import ProcessLimits, call
class Printing:
    def update(self, done, total=None, detail=""):
        print(done, flush=True)
call("hang", {{}}, ProcessLimits(60), progress=Printing(), module="{WORKER}")
"""


def test_a_child_does_not_outlive_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until_gone(pid)


def test_a_caller_that_ignores_its_children_is_no_problem() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert ask("echo", text="x") == {"text": "x"}
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_child_that_was_started_by_hand_ends_alone() -> None:
    """The group is that of this test: it would not get any further."""
    command = [sys.executable, "-P", "-m", WORKER, "hang"]
    done = subprocess.run(command, input=b"{}\n", capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_request_that_is_cut_off_ends_the_child() -> None:
    command = [sys.executable, "-P", "-m", WORKER, "echo"]
    done = subprocess.run(command, input=b'{"text": ', capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"the request ended before its end\n"


def test_a_request_is_plain_data() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        ask("echo", path=Path())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_pipe_stays_open() -> None:
    ask("echo")
    before = open_files()
    ask("echo")
    failure("leave", code=3)
    failure("hang", ProcessLimits(time_s=0.3))
    assert open_files() <= before


def test_lines_are_json() -> None:
    """The protocol itself, for whoever reads it without `call`."""
    command = [sys.executable, "-P", "-m", WORKER, "report"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        lines = [json.loads(line) for line in process.stdout]
    assert lines == [
        {"progress": [1, 4, "warm up"]},
        {"progress": [2.5, None, ""]},
        {"answer": {}},
    ]


def test_a_call_from_another_thread_can_be_stopped() -> None:
    stop, process = Event(), Recorded()
    Timer(0.3, stop.set).start()
    with pytest.raises(ChildFailure, match="stopped before its end"):
        call("hang", {}, AMPLE, progress=process, stop=stop, module=WORKER)


@pytest.mark.parametrize("visible", [None, "GPU-8f9a41c7"])
def test_a_child_sees_the_gpu_that_it_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    limits = ProcessLimits(60, visible_gpus=visible)
    assert ask("variable", limits, name="CUDA_VISIBLE_DEVICES") == {"value": visible or "3"}

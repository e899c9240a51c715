"""A child that behaves as it is told: ``python -m`` this module, with the TASK."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from deploykit.benchmarking.matrix.child import serve
from deploykit.core.errors import DeviceError

if TYPE_CHECKING:
    from deploykit.core.progress import ProgressTask

Request = dict[str, Any]

LONG_S = 60.0


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def echo(request: Request, task: ProgressTask) -> Request:
    return request


def variable(request: Request, task: ProgressTask) -> Request:
    return {"value": os.environ.get(request["name"])}


def report(request: Request, task: ProgressTask) -> Request:
    task.update(1, 4, "warm up")
    task.update(2.5)
    return {}


def print_junk(request: Request, task: ProgressTask) -> Request:
    os.write(1, b'{"answer": {"wrong": true}}\n')
    sys.stdout.write("from Python\n")
    subprocess.run([sys.executable, "-c", "print('from a program')"], check=True)
    return {"right": True}


def read_input(request: Request, task: ProgressTask) -> Request:
    return {"read": sys.stdin.read()}


def refuse(request: Request, task: ProgressTask) -> NoReturn:
    raise DeviceError("the GPU has fallen off the bus\nstart the machine again")


def crash(request: Request, task: ProgressTask) -> NoReturn:
    raise ZeroDivisionError("nothing to divide by")


def lack_memory(request: Request, task: ProgressTask) -> NoReturn:
    errors = {
        "host": MemoryError(),
        "numpy": MemoryError("Unable to allocate 7.45 TiB"),
        "torch": OutOfMemoryError("Tried to allocate 2 GiB\nfrees\n?\nframe #0"),
        "arena": RuntimeError("Failed to allocate memory for requested buffer of size 2830172160"),
    }
    raise errors[request["whose"]]


def lack_gpu_memory(request: Request, task: ProgressTask) -> NoReturn:
    try:
        cuda_call()
    except RuntimeError as exc:
        error = DeviceError("the GPU has no 9.0 MiB left")
        if request["translated"]:
            raise error from exc
        raise error  # noqa: B904  (as an error in a handler of another error comes about)


def cuda_call() -> NoReturn:
    raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: the API call failed")


def leave(request: Request, task: ProgressTask) -> NoReturn:
    sys.stderr.write("last words\n")
    sys.exit(request["code"])


def die(request: Request, task: ProgressTask) -> Request:
    os.write(2, request.get("words", "").encode())
    os.kill(os.getpid(), request["signal"])
    return {}


def fill_memory(request: Request, task: ProgressTask) -> Request:
    kept = bytearray(os.urandom(1)) * request["bytes"]
    time.sleep(LONG_S)
    return {"kept": len(kept)}


def fill_memory_below(request: Request, task: ProgressTask) -> Request:
    """The memory is that of a process below this one."""
    if os.fork() == 0:
        fill_memory(request, task)
    time.sleep(LONG_S)
    return {}


def fill_error(request: Request, task: ProgressTask) -> Request:
    for number in range(40_000):
        os.write(2, b"line %d of a library that talks\n" % number)
    return {"done": True}


def hang(request: Request, task: ProgressTask) -> Request:
    if request.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    task.update(os.getpid())
    time.sleep(LONG_S)
    return {}


def close_and_hang(request: Request, task: ProgressTask) -> Request:
    os.closerange(0, 1000)
    time.sleep(LONG_S)
    return {}


def leave_process(request: Request, task: ProgressTask) -> Request:
    """Answers, while a process that it forked keeps all pipes open."""
    if not (pid := os.fork()):
        time.sleep(LONG_S)
    if request.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": pid}


def hang_at_exit(request: Request, task: ProgressTask) -> Request:
    import atexit

    atexit.register(time.sleep, LONG_S)
    return {"pid": os.getpid()}


def not_json(request: Request, task: ProgressTask) -> Request:
    # Past `serve`, as a thread or a fork with a bug could.
    line = request.get("line", "[1, 2]").encode("latin-1") + b"\n"
    for number in range(3, 20):
        with suppress(OSError):
            os.write(number, line)
    time.sleep(LONG_S)
    return {}


if __name__ == "__main__":
    serve(
        {
            handler.__name__: handler
            for handler in (
                echo,
                variable,
                report,
                print_junk,
                read_input,
                refuse,
                crash,
                lack_memory,
                lack_gpu_memory,
                leave,
                die,
                fill_memory,
                fill_memory_below,
                fill_error,
                hang,
                close_and_hang,
                leave_process,
                hang_at_exit,
                not_json,
            )
        }
    )

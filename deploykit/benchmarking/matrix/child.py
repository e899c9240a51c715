"""The child's side of a cell that is measured in a process of its own (see ``processes``).

The request is one line of JSON on standard input. What goes back is one JSON object a line:
``{"progress": [done, total, detail]}`` any number of times, then ``{"answer": {...}}`` or
``{"error": {"kind": ..., "message": ...}}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.errors import DeploykitError, UnknownNameError
from deploykit.core.serialization import Source, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from deploykit.core.progress import ProgressTask

    Handler = Callable[[dict[str, Any], ProgressTask], dict[str, Any]]

_REMEDY: Final = "parent and worker may be of different releases: install deploykit again"
REQUEST: Final = Source("the request", remedy=_REMEDY)
ANSWER: Final = Source("the answer of a worker", remedy=_REMEDY)

OUT_OF_MEMORY: Final = "OutOfMemory"
"""Kind of the error line that says so, on the host or on the GPU."""

# In small letters: of Linux and glibc, CUDA and its libraries, TensorRT, onnxruntime's arenas,
# torch's allocators for the CPU, and C++.
_OUT_OF_MEMORY_TEXTS: Final = (
    "out of memory",
    "out_of_memory",
    "outofmemory",
    "cannot allocate memory",
    "cudaerrormemoryallocation",
    "status_alloc_failed",
    "failed to allocate memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)
_CHUNK: Final = 1 << 16
_LINES: Final = 3


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer the request on standard input with the handler that the command line names.

    From here on what anything prints, native libraries too, goes to standard error. The process
    kills itself with all that it started when its parent is gone. An error that is neither of
    deploykit's own nor a lack of memory is not caught.
    """
    lines = _Lines()
    received = _take_request()
    try:
        answer = _handler(handlers, sys.argv[1])(_request(received), lines)
    except Exception as error:
        known = _error_line(error)
        if known is None:
            raise
        lines.send({"error": known})
    else:
        lines.send({"answer": answer})


def says_out_of_memory(text: str) -> bool:
    """Whether an error's text is about memory that nobody had left.

    >>> says_out_of_memory("CUDA error 2: Out of memory"), says_out_of_memory("no space left")
    (True, False)
    """
    small = text.lower()
    return any(each in small for each in _OUT_OF_MEMORY_TEXTS)


class _Lines:
    """What was standard output, for lines to the parent alone; a progress task, too."""

    def __init__(self) -> None:
        # A duplicate is not inherited by programs that a handler starts.
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.send({"progress": [done, total, detail]})

    def send(self, line: Mapping[str, Any]) -> None:
        print(json.dumps(line), file=self._file, flush=True)


def _handler(handlers: Mapping[str, Handler], task: str) -> Handler:
    if task not in handlers:
        raise UnknownNameError("task", task, handlers, ", ".join(handlers))
    return handlers[task]


def _take_request() -> bytearray:
    """Read it, and watch over what was standard input from then on: its end is the parent's."""
    source = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    received = bytearray()
    while not received.endswith(b"\n"):
        if not (chunk := os.read(source, _CHUNK)):
            sys.exit("the request ended before its end")
        received += chunk
    Thread(target=_die_with_parent, args=(source,), daemon=True).start()
    return received


def _request(received: bytearray) -> dict[str, Any]:
    request = parse_json(bytes(received), REQUEST)
    if not isinstance(request, dict):
        raise REQUEST.refusal(f"expected an object, got {type(request).__name__}")
    return request


def _die_with_parent(source: int) -> None:
    # Not Linux' signal at the parent's death: that one comes when the thread that started this
    # process ends, and leaves alone what this process itself has started.
    while os.read(source, _CHUNK):
        pass
    with suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)
    # Somebody else's group was not asked to die: this child was started by hand.
    os.kill(os.getpid(), signal.SIGKILL)


def _error_line(error: Exception) -> dict[str, str] | None:
    # torch's go on with a native stack.
    message = "\n".join(str(error).splitlines()[:_LINES]) or type(error).__name__
    if any(_lacks_memory(each) for each in _chain(error)):
        return {"kind": OUT_OF_MEMORY, "message": message}
    if isinstance(error, DeploykitError):
        return {"kind": type(error).__name__, "message": message}
    return None


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or says_out_of_memory(f"{type(error).__name__} {error}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it, as a traceback shows them."""
    while error is not None:
        yield error
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)

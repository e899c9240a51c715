"""Work in child processes with limits on time and memory: what hangs or crashes ends alone."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Final

import psutil

from deploykit.benchmarking.matrix.child import OUT_OF_MEMORY, says_out_of_memory
from deploykit.benchmarking.results import FAILURES
from deploykit.core.errors import DataError
from deploykit.core.serialization import Source, parse_json
from deploykit.core.specs import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.core.progress import ProgressTask


_PIPE_BYTES: Final = 1 << 20  # the most that Linux lets a pipe hold: one read empties it
_KEPT_BYTES: Final = 1 << 16
_KEPT_LINES: Final = 20


class Pipes:
    """Sends a message, gathers the lines of standard output, keeps the end of standard error."""

    def __init__(self, process: subprocess.Popen[bytes], message: bytes) -> None:
        self._unsent = memoryview(message)
        self._received = bytearray()
        self._searched = 0
        self._said = bytearray()
        every = (process.stdin, process.stdout, process.stderr)
        self._pipes: list[IO[bytes]] = [pipe for pipe in every if pipe is not None]
        self._selector = selectors.DefaultSelector()
        acts = (self._send, self._receive, self._listen)
        for pipe, act in zip(self._pipes, acts, strict=True):
            event = selectors.EVENT_WRITE if pipe.writable() else selectors.EVENT_READ
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe.fileno(), event, act)

    def exchange(self, seconds: float) -> None:
        """Send and receive what goes without waiting, after ``seconds`` at most."""
        for key, _ in self._selector.select(seconds):
            key.data(key.fd)

    def lines(self) -> list[bytes]:
        """The whole lines that came since the last call."""
        end = self._received.rfind(b"\n", self._searched)
        if end < 0:
            # A long line is not searched again with each of its parts.
            self._searched = len(self._received)
            return []
        whole = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        return whole.split(b"\n")

    def said(self) -> str:
        """The last lines on standard error."""
        lines = self._said.decode(errors="replace").splitlines()
        return "\n".join(lines[-_KEPT_LINES:])

    def close(self) -> None:
        """Close this side."""
        self._selector.close()
        for pipe in self._pipes:
            pipe.close()

    def _send(self, pipe: int) -> None:
        try:
            self._unsent = self._unsent[os.write(pipe, self._unsent) :]
        except BrokenPipeError:  # it reads no more; why, will be seen
            self._unsent = self._unsent[:0]
        if not self._unsent:
            # Not closed: its end would tell the child that nobody waits for it any more.
            self._selector.unregister(pipe)

    def _receive(self, pipe: int) -> None:
        self._received += self._read(pipe)

    def _listen(self, pipe: int) -> None:
        self._said += self._read(pipe)
        del self._said[:-_KEPT_BYTES]

    def _read(self, pipe: int) -> bytes:
        data = os.read(pipe, _PIPE_BYTES)
        if not data:
            self._selector.unregister(pipe)
        return data


_SEARCH_SHARE: Final = 0.01  # of the time may go into looking for new processes


class ProcessTree:
    """A process and all below it, whose resident memory is asked while something is measured.

    Pages that several of them share are counted for each. A process whose parent has ended is
    nobody's child and is missed. Looking for new ones reads the list of all processes of the
    machine, for milliseconds where there are hundreds: it is done as often as `_SEARCH_SHARE`
    allows, and in between those known are asked, which takes microseconds.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members: list[psutil.Process] = []
        self._search_s = monotonic()

    def resident_bytes(self) -> int:
        """Of all together; 0 where the system does not tell."""
        begin_s = monotonic()
        if begin_s >= self._search_s:
            self._members = _family(self._pid)
            end_s = monotonic()
            self._search_s = end_s + (end_s - begin_s) / _SEARCH_SHARE
        return sum(map(_resident_bytes, self._members))


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _resident_bytes(process: psutil.Process) -> int:
    """Nothing for a process that has ended meanwhile, or that belongs to somebody else."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


WORKER: Final = "deploykit.benchmarking.matrix.worker"

_ERROR, _NO_MEMORY, _NO_TIME = FAILURES
_POLL_S: Final = 0.05
_END_POLL_S: Final = 0.01
_REAP_S: Final = 10.0
_SHOWN: Final = 200  # characters of a line in a reason


class ChildFailure(Exception):  # noqa: N818  (the cell failed, not the program)
    """No answer: ``kind`` is one of ``runs.FAILURES``, ``reason`` what a person should read.

    ``output`` is the end of what the child wrote to standard error.
    """

    def __init__(self, kind: str, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.output = output


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What a child may take.

    ``memory_bytes`` is of resident memory, of the child and the processes it started together;
    ``None`` is no limit. A child that is asked to end, or that
    has answered, gets ``grace_s`` to do so before it is killed. ``visible_gpus`` is its
    ``CUDA_VISIBLE_DEVICES``; ``None`` leaves it as it is here.
    """

    time_s: float
    memory_bytes: int | None = None
    grace_s: float = 2.0
    visible_gpus: str | None = None


def call(  # noqa: PLR0913 - how a process is run, each with a default
    task: str,
    request: Mapping[str, Any],
    limits: ProcessLimits,
    *,
    progress: ProgressTask,
    stop: Event | None = None,
    module: str = WORKER,
    python: str = sys.executable,
) -> dict[str, Any]:
    """What the handler ``task`` of ``module`` answers to ``request``, which is plain data.

    Whatever happens, no process is left: not when this one is interrupted, and not when it is
    killed, as the child then notices that its standard input has ended. ``stop`` is for calls from
    other threads than the main one, which no interrupt reaches.

    Raises:
        ChildFailure: the child took too long or too much memory, died, told of an error, or was
            stopped.
    """
    message = json.dumps(request).encode() + b"\n"
    # -P: a file in the current folder must not stand in for a package of the same name.
    command = [python, "-P", "-m", module, task]
    with _Child(command, message, limits.visible_gpus) as child:
        try:
            child.converse(limits, progress, stop or Event())
        finally:
            # Answered, it may still have something to put away; otherwise it is asked to end.
            if child.final is None:
                child.signal(signal.SIGTERM)
            child.wait(limits.grace_s)
    return child.answer()


class _Child(Closing):
    """A process and its group; ``final`` is the last line that it had to say, once it did."""

    def __init__(self, command: list[str], message: bytes, visible_gpus: str | None) -> None:
        self.final: dict[str, Any] | None = None
        self._checked_s = self._begin_s = monotonic()
        self._process = _start(command, visible_gpus)
        self._tree = ProcessTree(self._process.pid)
        self._pipes = Pipes(self._process, message)

    def close(self) -> None:
        """Kill what is left of the group, and forget it."""
        # Before the leader is reaped: only as long is its number nobody else's.
        self.signal(signal.SIGKILL)
        # A process that hangs in a driver does not even die; then it has to stay.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        self._pipes.close()

    def converse(self, limits: ProcessLimits, progress: ProgressTask, stop: Event) -> None:
        """Until there is an answer or the child has ended.

        Raises:
            ChildFailure: a limit was passed, or it is to stop.
        """
        while self.final is None and not self._has_ended():
            if stop.is_set():
                raise self._failure(_ERROR, "stopped before its end")
            self._check(limits)
            self._pipes.exchange(_POLL_S)
            self._understand(progress)
        self._pipes.exchange(0)  # what it wrote just before its end
        self._understand(progress)

    def wait(self, seconds: float) -> None:
        """Until the child has ended, for so long at most; what it says meanwhile is read."""
        end_s = monotonic() + seconds
        while not self._has_ended() and monotonic() < end_s:
            self._pipes.exchange(_END_POLL_S)

    def answer(self) -> dict[str, Any]:
        """What the child said in the end.

        Raises:
            ChildFailure: an error, or nothing.
        """
        if self.final is None:
            raise self._death()
        if "answer" in self.final:
            found: dict[str, Any] = self.final["answer"]
            return found
        error = self.final["error"]
        kind = _NO_MEMORY if error["kind"] == OUT_OF_MEMORY else _ERROR
        raise self._failure(kind, error["message"])

    def signal(self, number: signal.Signals) -> None:
        """To the child and what it started."""
        # No longer there, or, on macOS, only its remains.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _check(self, limits: ProcessLimits) -> None:
        now_s = monotonic()
        if now_s - self._begin_s >= limits.time_s:
            raise self._failure(_NO_TIME, f"took longer than its limit of {limits.time_s:g} s")
        if limits.memory_bytes is None or now_s - self._checked_s < _POLL_S:
            return
        self._checked_s = now_s
        used_bytes = self._tree.resident_bytes()
        if used_bytes > limits.memory_bytes:
            self.signal(signal.SIGKILL)  # not asked: it would go on growing
            raise self._failure(
                _NO_MEMORY,
                f"used {_mib(used_bytes)} of memory, its limit is {_mib(limits.memory_bytes)}",
            )

    def _understand(self, progress: ProgressTask) -> None:
        for line in self._pipes.lines():
            match _parsed(line):
                case {"progress": [done, total, detail]}:
                    progress.update(done, total, detail)
                case {"answer": {}} | {"error": {"kind": str(), "message": str()}} as final:
                    self.final = final
                case _:
                    shown = line[:_SHOWN].decode(errors="replace")
                    raise self._failure(_ERROR, f"the worker wrote what is no answer: {shown}")

    def _has_ended(self) -> bool:
        """Whether the child has; it is not reaped, so that its number stays its own."""
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:  # reaped by the system: our caller ignores SIGCHLD
            return True

    def _failure(self, kind: str, reason: str) -> ChildFailure:
        return ChildFailure(kind, reason, self._pipes.said())

    def _death(self) -> ChildFailure:
        """Why there is no answer from a child that has ended."""
        code, output = self._process.returncode, self._pipes.said()
        if code == -signal.SIGKILL:
            reason = "killed by signal 9, perhaps by the system for want of memory"
            return self._failure(_NO_MEMORY, reason)
        if code < 0:
            reason = f"killed by signal {-code} ({signal.strsignal(-code)})"
        else:
            reason = f"ended with exit code {code}" if code else "ended without an answer"
        last = output.strip().rpartition("\n")[2]
        kind = _NO_MEMORY if says_out_of_memory(output) else _ERROR
        return self._failure(kind, f"{reason}: {last[:_SHOWN]}" if last else reason)


def _start(command: list[str], visible_gpus: str | None) -> subprocess.Popen[bytes]:
    """A group of its own: it can be killed as a whole, and the terminal's Ctrl-C is not for it."""
    gpus = {} if visible_gpus is None else {"CUDA_VISIBLE_DEVICES": visible_gpus}
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **gpus},
        )
    except OSError as exc:
        raise ChildFailure(_ERROR, f"the worker could not be started: {exc}") from exc


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line, Source("a line"))
    except DataError:
        return None


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"

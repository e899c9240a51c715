"""The three pipes to a child process, none of which the parent ever waits for without a limit."""

from __future__ import annotations

import os
import selectors
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    import subprocess

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

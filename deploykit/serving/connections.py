"""HTTP connections that stalled clients cannot keep, for uvicorn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from deploykit.serving.limits import ServiceLimits

_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: 33\r\n\r\n"
    b'{"error": "too many connections"}'
)


class TimedConnection(H11Protocol):
    """A connection that is closed when the head of a request does not come in time.

    uvicorn itself waits for it for ever. The body has its own time, where it is read. One whose
    client does not take an answer is closed too, and one too many at once.
    """

    read_timeout_s: float
    max_connections: int
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_FULL)
            transport.close()
            return
        self._timer = self.loop.call_later(self.read_timeout_s, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        """Begin to wait for the rest of a head, or stop because it is complete."""
        if self.transport.is_closing():  # one too many
            return
        super().data_received(data)
        if self._timer is not None and self._is_answering():
            self._stop_waiting()
        elif self._timer is None and not self._is_answering():
            self._timer = self.loop.call_later(self.read_timeout_s, self._close_if_idle)

    def pause_writing(self) -> None:
        """Begin to wait for a client to take what it asked for."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It takes it."""
        super().resume_writing()
        self._stop_waiting_to_write()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        self._stop_waiting_to_write()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_waiting_to_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _close_if_idle(self) -> None:
        self._timer = None
        if not self._is_answering():
            self.transport.close()


def connection_within(limits: ServiceLimits) -> type[TimedConnection]:
    """The kind of connection that uvicorn makes for each client."""
    own = {"read_timeout_s": limits.read_timeout_s, "max_connections": limits.max_connections}
    return type("Connection", (TimedConnection,), own)

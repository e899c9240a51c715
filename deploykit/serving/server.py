"""The running service: ports, both protocols in one event loop, the end on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from deploykit.core.errors import UsageError, first_line
from deploykit.serving.connections import connection_within
from deploykit.serving.grpc_face import create_server
from deploykit.serving.rest import create_app
from deploykit.serving.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deploykit.runtime.classifier import Classifier
    from deploykit.serving.limits import ServiceLimits
    from deploykit.serving.service import UnfinishedError

    Loaded = Sequence[tuple[str, str, Classifier]]

COLLECT_AFTER: Final = (700, 10, 10)
"""Python's own: the command line collects rarely, and a request's cycles may hold its body."""

_BACKLOG: Final = 2048
_LEAST_GRACE_S: Final = 0.2
"""For answers that are being written when the graceful time is over."""

log = logging.getLogger("deploykit.serving")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 is any free one, ``None`` for gRPC is nowhere."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a service listens."""

    http: int
    grpc: int | None


def bind(address: Address) -> socket.socket:
    """The socket for HTTP, and the knowledge that gRPC's port is free; nothing listens yet.

    Raises:
        UsageError: a port or the host cannot be had, or both protocols are to have one port.
    """
    if address.grpc_port and address.grpc_port == address.http_port:
        raise UsageError(
            f"--http-port and --grpc-port are both {address.http_port}\n"
            "give each its own; 0 is any free port, and --no-grpc serves HTTP alone"
        )
    if address.grpc_port:
        _bound(address.host, address.grpc_port, "--grpc-port").close()
    return _bound(address.host, address.http_port, "--http-port")


def _bound(host: str, port: int, option: str) -> socket.socket:
    made: socket.socket | None = None
    try:
        family, kind, number, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except (OSError, OverflowError) as error:
        if made is not None:
            made.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {first_line(error)}\n"
            f"stop what listens there, or give another --host or {option}; 0 is any free port"
        ) from error
    return made


class _Server(uvicorn.Server):
    """uvicorn without signals of its own: after them it would end by the signal, not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    models: Loaded,
    limits: ServiceLimits,
    address: Address,
    http: socket.socket,
    started: Callable[[Service, Ports], None],
    give_up: Callable[[UnfinishedError], None],
) -> Service:
    """Serve until SIGTERM or SIGINT; then answer what was accepted, and give everything back.

    ``started`` is told when both protocols answer. The models are closed at the end. Where that
    has not come when ``graceful_timeout_s`` and ``end_timeout_s`` are over, ``give_up`` is called
    in a thread of its own, once.
    """
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT_AFTER)
    end = _LastResort(limits.graceful_timeout_s + limits.end_timeout_s, give_up)
    try:
        return asyncio.run(_run(models, limits, address, http, started, end))
    finally:
        end.cancel()
        gc.set_threshold(*before)


class _LastResort:
    """Calls ``give_up`` when the end of a service takes longer than it may.

    In a thread: closing a model waits for its computation, and Python itself waits for the threads
    that compute, at the event loop's end and at the interpreter's.
    """

    def __init__(self, within_s: float, give_up: Callable[[UnfinishedError], None]) -> None:
        self._within_s = within_s
        self._give_up = give_up
        self._timer: threading.Timer | None = None

    def begin(self, service: Service) -> None:
        """The service is to end from now on."""
        self._timer = threading.Timer(self._within_s, lambda: self._give_up(service.unfinished()))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """It has ended."""
        if self._timer is not None:
            self._timer.cancel()


async def _run(
    models: Loaded,
    limits: ServiceLimits,
    address: Address,
    http: socket.socket,
    started: Callable[[Service, Ports], None],
    end: _LastResort,
) -> Service:
    service = Service(models, limits)
    try:
        async with _grpc(service, address) as port:
            ports = Ports(_port(http), port)
            await _serve_http(service, http, lambda: started(service, ports), end)
    finally:
        await service.close()
    return service


@contextlib.asynccontextmanager
async def _grpc(service: Service, address: Address) -> Any:
    """A running server of gRPC; gives its port. At the end, calls get what is left of the time."""
    if address.grpc_port is None:
        yield None
        return
    server = create_server(service)
    try:
        port = server.add_insecure_port(_netloc(address.host, address.grpc_port))
    except RuntimeError as error:
        raise UsageError(
            f"gRPC cannot listen on {address.host}:{address.grpc_port}: {first_line(error)}\n"
            "give another --grpc-port; 0 is any free port"
        ) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(_LEAST_GRACE_S)


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


async def _serve_http(
    service: Service, bound: socket.socket, started: Callable[[], None], end: _LastResort
) -> None:
    limits = service.limits
    config = uvicorn.Config(
        create_app(service),
        http=connection_within(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.max_header_bytes,
    )
    server = _Server(config)
    ending = asyncio.Event()
    drained = asyncio.create_task(_drain(service, server, ending, end))
    with _signals(ending):
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.005)
        if server.started:
            started()
        await serving
        await asyncio.wait(server.server_state.tasks or {serving}, timeout=1)
    drained.cancel()


async def _drain(
    service: Service, server: uvicorn.Server, ending: asyncio.Event, end: _LastResort
) -> None:
    """On a signal: refuse what is new, wait for what is there, then stop listening."""
    await ending.wait()
    end.begin(service)
    start = time.monotonic()
    log.info("stopping: %d requests are in flight", service.in_flight)
    await service.drain()
    left_s = service.limits.graceful_timeout_s - (time.monotonic() - start)
    # What has not ended by then is cancelled, and answered 503.
    server.config.timeout_graceful_shutdown = max(_LEAST_GRACE_S, left_s)  # type: ignore[assignment]
    server.should_exit = True


@contextlib.contextmanager
def _signals(ending: asyncio.Event) -> Iterator[None]:
    """Set ``ending`` on SIGTERM and SIGINT; another one does nothing more."""
    loop = asyncio.get_running_loop()
    handled = []
    for each in (signal.SIGTERM, signal.SIGINT):
        # Only the main thread has signals; a service in another one is ended by its owner.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(each, ending.set)
            handled.append(each)
    try:
        yield
    finally:
        for each in handled:
            loop.remove_signal_handler(each)

"""Services for tests: as processes of their own, and in the test's own event loop."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from deploykit.serving.limits import ServiceLimits
from deploykit.serving.rest import create_app
from deploykit.serving.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from deploykit import Classifier


@dataclass(frozen=True)
class Served:
    """A running service: its process, where it answers, what it said until then."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    said: str

    @property
    def http_port(self) -> int:
        return int(self.http.rpartition(":")[2])


@contextmanager
def served(*arguments: object) -> Iterator[Served]:
    """``deploykit serve`` with free ports on the CPU, once it answers."""
    command: list[Any] = [sys.executable, "-W", "error", "-m", "deploykit", "serve"]
    command += ["--http-port", "0", "--grpc-port", "0", "--device", "cpu", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _once_it_answers(process)
        finally:
            process.kill()


def _once_it_answers(process: subprocess.Popen[str]) -> Served:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.search(r"listening on (http://\S+), gRPC on (\S+)", line)
        if found:
            return Served(process, found[1], found[2], "".join(said))
    raise AssertionError("".join(said))


@asynccontextmanager
async def client_of(
    model: Classifier, limits: ServiceLimits | None = None, name: str = "colours"
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a service in this event loop, which has ``model``."""
    service = Service([(name, "1", model)], limits or ServiceLimits())
    transport = httpx.ASGITransport(create_app(service))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client, service
    finally:
        await service.close()

"""ServiceLimits of a service: sizes, counts and times, with defaults for images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from deploykit.core.errors import UsageError

MIB: Final = 2**20
DEFAULT_MAX_BATCH: Final = 32
"""Images gathered where neither the engine's profile nor the graph says how many it takes."""


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Sizes in bytes, times in seconds; ``None`` is decided by the model.

    Raises:
        UsageError: a limit lets nothing through.
    """

    max_batch: int | None = None
    """Images of a batch, and of one request; the engine's largest, or 32, if not given."""
    max_wait_ms: float = 2.0
    """Time in milliseconds that the oldest request waits for others."""
    max_queue: int = 256
    """Images of one model that may wait; a request beyond is refused at once."""
    max_in_flight: int = 256
    """Requests that are read, decoded, waiting or computed."""
    max_request_bytes: int = 64 * MIB
    max_held_bytes: int = 512 * MIB
    """Of all requests that are in flight."""
    max_header_bytes: int = 64 * 1024
    max_pixels: int | None = None
    """Pixels of an encoded image; if not given, 256 for each that the model sees."""
    max_connections: int = 1024
    """Of HTTP, and of gRPC."""
    read_timeout_s: float = 10.0
    """For a whole request to come, and for an answer to be taken."""
    infer_timeout_s: float = 30.0
    """From a request's last byte to its answer."""
    graceful_timeout_s: float = 8.0
    """For accepted requests after SIGTERM. Docker kills after 10 s, Kubernetes after 30."""
    end_timeout_s: float = 1.5
    """For a computation that runs on after that; then the process ends without it."""
    self_test_every_s: float = 10.0
    """Age of the golden sample's last run from which a question about readiness runs it again."""

    def __post_init__(self) -> None:
        for each in fields(self):
            given = getattr(self, each.name)
            least = (
                0 if each.name in {"max_wait_ms", "self_test_every_s"} else _LEAST.get(each.name)
            )
            if given is not None and not given >= (1e-3 if least is None else least):
                raise UsageError(
                    f"{each.name}={given} lets nothing through\nexpected {least or 'more than 0'}"
                )


_LEAST: Final = {
    "max_batch": 1,
    "max_queue": 1,
    "max_in_flight": 1,
    "max_request_bytes": 1,
    "max_held_bytes": 1,
    "max_header_bytes": 256,
    "max_pixels": 1,
    "max_connections": 1,
}

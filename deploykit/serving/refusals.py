"""Why a request was not answered, in the status codes of HTTP and of gRPC.

Codes of gRPC by name: https://grpc.io/docs/guides/status-codes/. The protocol leaves the choice of
an error status to the server.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from deploykit.core.errors import (
    DataError,
    DeploykitError,
    DeviceError,
    ImageError,
    QueueFullError,
    UsageError,
    first_line,
)

RETRY_AFTER_S: Final = 1
"""When to come again, as Retry-After and grpc-retry-pushback-ms say it."""


class Reason(Enum):
    """What kind of refusal: the word in metrics, HTTP's status, gRPC's status."""

    INVALID = ("invalid", 400, "INVALID_ARGUMENT")
    UNKNOWN = ("unknown", 404, "NOT_FOUND")
    METHOD = ("invalid", 405, "UNIMPLEMENTED")
    NOT_READ = ("not_read", 408, "DEADLINE_EXCEEDED")
    TOO_LARGE = ("too_large", 413, "RESOURCE_EXHAUSTED")
    ENCODED = ("invalid", 415, "UNIMPLEMENTED")
    BUSY = ("busy", 429, "RESOURCE_EXHAUSTED")
    FAILED = ("failed", 500, "INTERNAL")
    STOPPING = ("stopping", 503, "UNAVAILABLE")
    DEVICE = ("failed", 503, "UNAVAILABLE")
    TOO_SLOW = ("too_slow", 504, "DEADLINE_EXCEEDED")

    def __init__(self, word: str, http: int, grpc: str) -> None:
        self.word = word
        self.http = http
        self.grpc = grpc

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may be answered later."""
        return self in (Reason.BUSY, Reason.STOPPING)


class RefusedError(DeploykitError):
    """A request that is not answered; its message is for whoever sent it."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def invalid(message: str) -> RefusedError:
    """A request that is wrong in itself."""
    return RefusedError(Reason.INVALID, message)


def refusal_of(error: Exception) -> RefusedError:
    """What a sender is told of an error; what only the operator can change stays in the log."""
    match error:
        case RefusedError():
            return error
        case ImageError():
            return invalid(error.for_sender)
        case QueueFullError():
            return RefusedError(Reason.BUSY, f"{first_line(error)}: try again later")
        case UsageError() | DataError():
            return invalid(first_line(error))
        case DeviceError():
            return RefusedError(Reason.DEVICE, "the GPU failed")
        case _:
            return RefusedError(Reason.FAILED, "the model failed")

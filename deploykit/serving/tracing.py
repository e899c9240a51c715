"""Spans of OpenTelemetry, where it is installed; nothing where it is not.

The program that starts the service sets up where spans go (``opentelemetry-instrument``, or an SDK
in Python): without that OpenTelemetry's own tracer does nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME: Final = "deploykit.serving"


def opentelemetry() -> Any:
    """The package's tracing interface, or ``None``."""
    try:
        from opentelemetry import propagate, trace
    except ModuleNotFoundError:
        return None
    return propagate, trace


class Tracer:
    """Makes a span for each request, as a part of the sender's trace."""

    def __init__(self) -> None:
        self._packages = opentelemetry()

    @contextmanager
    def request(self, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[None]:
        """A span around the block; ``headers`` may carry the sender's traceparent."""
        if self._packages is None:
            yield
            return
        propagate, trace = self._packages
        tracer = trace.get_tracer(_NAME)
        with tracer.start_as_current_span(
            "infer",
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
        ):
            yield

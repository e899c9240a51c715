"""Streams, events and captured graphs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.backends._cuda.memory import Memory


class Stream:
    """A queue of work that does not wait for the default stream, nor that for it.

    ``handle`` is what TensorRT takes. Each method raises ``cuda.core``'s own error; `failures`
    tells what it was.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.handle = int(stream.handle)

    @property
    def core(self) -> Any:
        """The ``cuda.core.Stream``."""
        return self._stream

    def copy(self, target: Memory, source: Memory) -> None:
        """Queue a copy of all of ``source``; host memory has to be page-locked."""
        target.buffer.copy_from(source.buffer, stream=self._stream)

    def synchronise(self) -> None:
        """Wait until all queued work is done; raises what went wrong in any of it."""
        self._stream.sync()

    def is_usable(self) -> bool:
        """Whether the stream still works: after a fault on the GPU, nothing does."""
        try:
            self._stream.sync()
        except Exception:  # whatever it is, nothing can be done with the stream
            return False
        return True

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` queues on this stream instead of doing it.

        Of this thread only (mode "thread_local"): other threads may reserve memory meanwhile,
        while a call that would break the graph is noticed. An error of any kind leaves the stream
        as it was, unless the GPU itself failed.
        """
        builder = self._stream.create_graph_builder()
        try:
            builder.begin_building(mode="thread_local")
            enqueue()
            builder.end_building()
            return Graph(builder.complete())
        finally:
            # Ends a capture that is still open, and says again why it is not valid.
            with suppress(Exception):
                builder.close()

    def close(self) -> None:
        """Destroy the stream; a second call does nothing."""
        self._stream.close()


class Graph:
    """Captured work, launched in one call; shapes and addresses are fixed in it."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def launch(self, stream: Stream) -> None:
        """Queue the whole graph."""
        self._graph.launch(stream.core)

    def close(self) -> None:
        """Destroy the graph; a second call does nothing."""
        self._graph.close()


class StepClock:
    """Moments of one call, taken by the GPU itself: ``count`` events on one stream."""

    def __init__(self, device: Any, options: Any, count: int) -> None:
        self._events = [device.create_event(options) for _ in range(count)]

    def mark(self, index: int, stream: Stream) -> None:
        """Queue the taking of the time after all that is queued already."""
        stream.core.record(self._events[index])

    def between_ms(self, first: int, second: int) -> float:
        """Milliseconds from one moment to a later one; the stream has been synchronised."""
        return float(self._events[second] - self._events[first])

    def close(self) -> None:
        """Destroy the events."""
        for event in self._events:
            event.close()

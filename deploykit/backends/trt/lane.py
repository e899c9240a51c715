"""What one call at a time needs: a stream, buffers, and an execution context per shape."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._cuda.arrays import DeviceArray
from deploykit.backends.trt.batch_context import BatchContext, Slot
from deploykit.backends.trt.inputs import read_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.backends._cuda.device import Device
    from deploykit.backends._cuda.memory import Memory
    from deploykit.backends._cuda.stream import StepClock
    from deploykit.backends.trt.batch_context import Binding
    from deploykit.backends.trt.engine import Engine
    from deploykit.specs import ShapeProfile, TensorSpec

    Shapes = tuple[tuple[int, ...], ...]

SIZES_KEPT: Final = 16
"""Shapes of one lane that have a context at the same time; the one unused longest goes."""

_START, _COPIED_IN, _COMPUTED, _COPIED_OUT = range(4)


class Lane:
    """A stream with all that its calls use, reserved at once for the largest batch and image.

    No shape, and no number of calls, makes it grow after that but for its contexts, of which
    there are `SIZES_KEPT` at most. They share the buffers and the scratch memory, which is right
    because the calls of a lane follow one another.

    Raises:
        DeviceError: there is not enough memory.
    """

    def __init__(self, device: Device, engine: Engine, profile: ShapeProfile) -> None:
        self._device = device
        self._engine = engine
        self._profile = profile
        self._stream = device.new_stream()
        self._contexts: dict[Shapes, BatchContext] = {}
        self._slots: list[Slot] = []
        self._scratch: Memory | None = None
        self._clock: StepClock | None = None
        try:
            largest = profile.largest
            for spec in engine.inputs:
                self._slots.append(self._slot(spec, spec.with_sizes(largest)))
            for spec, shape in zip(engine.outputs, engine.output_shapes(largest), strict=True):
                self._slots.append(self._slot(spec, shape))
            if engine.scratch_bytes:
                self._scratch = device.reserve(engine.scratch_bytes, self._stream)
            self._stream.synchronise()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs on the host."""
        context, sources = self._prepare(feeds)
        context.launch(context.copy_in(sources))
        context.copy_out()
        self._stream.synchronise()
        return context.results()

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Outputs on the GPU, complete, each in memory of its own."""
        context, sources = self._prepare(feeds)
        context.launch(context.copy_in(sources))
        # The graphs write where they were captured to write; a small copy keeps them valid.
        return self._copies(context.outputs)

    def run_timed(
        self, feeds: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, float | None]]:
        """Outputs on the host, and the fields of a `StepTimes` but for its wall time."""
        context, sources = self._prepare(feeds)
        clock = self._step_clock()
        clock.mark(_START, self._stream)
        addresses = context.copy_in(sources)
        clock.mark(_COPIED_IN, self._stream)
        begun = time.perf_counter()
        context.launch(addresses)
        enqueued = time.perf_counter() - begun
        clock.mark(_COMPUTED, self._stream)
        context.copy_out()
        clock.mark(_COPIED_OUT, self._stream)
        self._stream.synchronise()
        copied = any(isinstance(source, np.ndarray) for source in sources)
        return context.results(), {
            "h2d_ms": clock.between_ms(_START, _COPIED_IN) if copied else None,
            "compute_ms": clock.between_ms(_COPIED_IN, _COMPUTED),
            "d2h_ms": clock.between_ms(_COMPUTED, _COPIED_OUT),
            "enqueue_ms": enqueued * 1e3,
        }

    def time_on_device(self, feeds: Mapping[str, Any]) -> dict[str, float | None]:
        """The fields of a `StepTimes` but for its wall time; the outputs are not fetched."""
        context, sources = self._prepare(feeds)
        clock = self._step_clock()
        addresses = context.copy_in(sources)
        clock.mark(_COPIED_IN, self._stream)
        begun = time.perf_counter()
        context.launch(addresses)
        enqueued = time.perf_counter() - begun
        clock.mark(_COMPUTED, self._stream)
        self._stream.synchronise()
        return {
            "compute_ms": clock.between_ms(_COPIED_IN, _COMPUTED),
            "enqueue_ms": enqueued * 1e3,
        }

    def upload(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Copies of host arrays on the GPU, each in memory of its own, complete."""
        context, sources = self._prepare(feeds)
        context.copy_in(sources)
        return self._copies(context.inputs)

    def is_usable(self) -> bool:
        """Whether its stream still works; waits for what is queued there."""
        return self._stream.is_usable()

    def close(self) -> None:
        """Wait for the stream, then give everything back; a second call does nothing."""
        if self._stream.is_usable():
            self._close()
            return
        # After a fault on the GPU the driver refuses to take anything back.
        with suppress(Exception):
            self._close()

    def _close(self) -> None:
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()
        if self._clock is not None:
            self._clock.close()
        if self._scratch is not None:
            self._scratch.close()
        for slot in self._slots:
            slot.device.close()
            slot.host.close()
        self._slots.clear()
        self._stream.close()
        self._clock = self._scratch = None

    def _slot(self, spec: TensorSpec, shape: tuple[int, ...]) -> Slot:
        size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
        host = self._device.reserve_pinned(size)
        try:
            return Slot(spec, host, self._device.reserve(size, self._stream))
        except BaseException:
            host.close()
            raise

    def _prepare(self, feeds: Mapping[str, Any]) -> tuple[BatchContext, list[Any]]:
        engine = self._engine
        sources = read_feeds(engine.name, engine.inputs, self._profile, feeds, self._stream)
        return self._context(tuple([source.shape for source in sources])), sources

    def _copies(self, bindings: Sequence[Binding]) -> dict[str, DeviceArray]:
        copies = {}
        for binding in bindings:
            memory = self._device.reserve(binding.device.size, self._stream)
            self._stream.copy(memory, binding.device)
            copies[binding.name] = DeviceArray(self._device, memory, binding.shape, binding.dtype)
        self._stream.synchronise()
        return copies

    def _step_clock(self) -> StepClock:
        if self._clock is None:
            self._clock = self._device.new_clock(4)
        return self._clock

    def _context(self, shapes: Shapes) -> BatchContext:
        context = self._contexts.pop(shapes, None)
        if context is None:
            if len(self._contexts) == SIZES_KEPT:
                self._contexts.pop(next(iter(self._contexts))).close()
            context = BatchContext(self._engine, self._stream, self._scratch, self._slots, shapes)
        self._contexts[shapes] = context  # now the newest
        return context

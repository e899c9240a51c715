"""Resources of one call at a time: a stream, buffers, and an execution context per shape."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from deploykit.backends._cuda.arrays import DeviceArray, as_source
from deploykit.backends._cuda.device import cuda_failure
from deploykit.backends._cuda.forks import keep_in_children
from deploykit.backends._feeds import check_feeds
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.sizes import AXIS_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.backends._cuda.arrays import GpuView
    from deploykit.backends._cuda.device import (
        CapturedGraph,
        Device,
        Memory,
        PinnedMemory,
        StepClock,
        Stream,
    )
    from deploykit.backends.trt.engine import Engine
    from deploykit.core.sizes import ShapeProfile
    from deploykit.core.specs import Array, TensorSpec

    Shapes = tuple[tuple[int, ...], ...]


def read_feeds(
    name: str,
    inputs: tuple[TensorSpec, ...],
    profile: ShapeProfile,
    feeds: Mapping[str, Any],
    stream: Stream,
) -> list[NDArray[Any] | GpuView]:
    """The sources of the inputs in their order; all have the same batch, one of the profile.

    Raises:
        UsageError: names, types, shapes or places are not the engine's, or the batch, the height
            or the width is outside the profile.
    """
    sources = {
        # The exact type first: it is the usual case, and the cheapest test in every call.
        key: value if type(value) is np.ndarray else as_source(key, value, stream)
        for key, value in feeds.items()
    }
    # It reads their dtype and shape only, which both kinds have.
    check_feeds(name, cast("Mapping[str, Array]", sources), inputs)
    ordered = [sources[spec.name] for spec in inputs]
    batch = ordered[0].shape[0]
    if len(ordered) > 1 and any(source.shape[0] != batch for source in ordered):
        batches = sorted(source.shape[0] for source in ordered)
        raise UsageError(f"the inputs of {name} have different batches: {batches}")
    if not profile.min_batch <= batch <= profile.max_batch:
        raise UsageError(
            f"{name} was fed a batch of {batch}, its profile is {profile.min_batch} to "
            f"{profile.max_batch}\nsplit or fill up the batch, or compile the engine with another "
            "--batch MIN,OPT,MAX"
        )
    if profile.height is not None or profile.width is not None:
        for spec, source in zip(inputs, ordered, strict=True):
            _check_image(name, spec, source.shape, profile)
    return ordered


def _check_image(
    name: str, spec: TensorSpec, shape: tuple[int, ...], profile: ShapeProfile
) -> None:
    ranges = profile.ranges
    for axis, dim in enumerate(spec.shape):
        sizes = ranges.get(axis)
        if isinstance(dim, str) and sizes is not None and shape[axis] not in sizes:
            label = AXIS_NAMES[axis]
            raise UsageError(
                f"{name} was fed images of {label} {shape[axis]}, its profile is {sizes.min} to "
                f"{sizes.max}\nresize or pad them, or compile the engine with another "
                f"--{label} MIN,OPT,MAX"
            )


_log = logging.getLogger("deploykit")

_ALIGNMENT: Final = 256
"""Alignment of addresses in bytes, as the runtime's ``setTensorAddress`` requires."""

GRAPHS_KEPT: Final = 4
"""Most graphs of one shape on one stream: inputs on the GPU come at the caller's own addresses,
and PyTorch's allocator gives out the same few again and again."""

_ATTEMPTS: Final = 3
"""Captures that may fail, for a passing reason; after three the model runs without graphs."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Buffers of one tensor for the largest shape: on the host, page-locked, and on the GPU."""

    spec: TensorSpec
    host: PinnedMemory
    device: Memory


class Binding:
    """A tensor of one shape: the parts of its buffers that the batch fills."""

    def __init__(self, slot: Slot, shape: tuple[int, ...]) -> None:
        self.name = slot.spec.name
        self.shape = shape
        self.dtype = np.dtype(slot.spec.dtype)
        size = int(np.prod(shape)) * self.dtype.itemsize
        self.array = slot.host.array(shape, self.dtype)
        self.host = slot.host.part(size)
        self.device = slot.device.part(size)


class BatchContext:
    """Runs batches of one shape on one stream; the vendor advises one context per captured graph.

    A graph is captured when the same addresses come for the second time: the first run warms up,
    and an address that never comes again is not worth a capture.
    """

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        scratch: Memory | None,
        slots: Sequence[Slot],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._context = engine.new_context()
        if scratch is not None:
            self._context.set_device_memory(scratch.address, scratch.size)
        computed = engine.set_shapes(self._context, shapes)
        self.inputs = list(map(Binding, slots, shapes))
        self.outputs = list(map(Binding, slots[len(shapes) :], computed))
        for binding in (*self.inputs, *self.outputs):
            self._set_address(binding.name, binding.device.address)
        self._own = tuple(binding.device.address for binding in self.inputs)
        self._bound = self._own
        self._graphs: dict[tuple[int, ...], CapturedGraph | None] = {}
        self._attempts = _ATTEMPTS if engine.captures else 0

    def copy_in(self, sources: Sequence[NDArray[Any] | GpuView]) -> tuple[int, ...]:
        """Queue the copies of inputs on the host; return the address of each input.

        An input on the GPU is used where it is, unless its address is not aligned: then it is
        copied, on the GPU.
        """
        # The usual case without the generator below, in every call.
        if len(sources) == 1 and isinstance(sources[0], np.ndarray):
            self._copy_from_host(self.inputs[0], sources[0])
            return self._own
        pairs = zip(self.inputs, sources, strict=True)
        return tuple(self._place(binding, source) for binding, source in pairs)

    def launch(self, addresses: tuple[int, ...]) -> None:
        """Queue the computation, as a graph where there is one for these addresses.

        Raises:
            DeviceError: the runtime refuses.
        """
        known = addresses in self._graphs
        graph = self._graphs.pop(addresses, None)
        self._graphs[addresses] = graph  # now the newest
        if graph is not None:
            graph.launch(self._stream)
            return
        self._bind(addresses)
        if known and self._attempts:
            self._capture(addresses)
        else:
            self._forget_the_oldest()
            self._enqueue()

    def copy_out(self) -> None:
        """Queue the copies of the outputs to the host."""
        for binding in self.outputs:
            self._stream.copy(binding.host, binding.device)

    def results(self) -> dict[str, NDArray[Any]]:
        """The outputs on the host as arrays of the caller's own; the stream is synchronised."""
        # Copies: the next call of this lane overwrites the page-locked buffers.
        return {binding.name: binding.array.copy() for binding in self.outputs}

    def close(self) -> None:
        """Release graphs and context; the buffers belong to the lane."""
        for graph in self._graphs.values():
            if graph is not None:
                graph.close()
        self._graphs.clear()
        del self._context

    def _copy_from_host(self, binding: Binding, source: NDArray[Any]) -> None:
        np.copyto(binding.array, source)
        self._stream.copy(binding.device, binding.host)

    def _place(self, binding: Binding, source: NDArray[Any] | GpuView) -> int:
        if isinstance(source, np.ndarray):
            self._copy_from_host(binding, source)
        elif source.memory.address % _ALIGNMENT:
            self._stream.copy(binding.device, source.memory)
        else:
            return source.memory.address
        return binding.device.address

    def _bind(self, addresses: tuple[int, ...]) -> None:
        if addresses != self._bound:
            for binding, address in zip(self.inputs, addresses, strict=True):
                self._set_address(binding.name, address)
            self._bound = addresses

    def _forget_the_oldest(self) -> None:
        if len(self._graphs) > GRAPHS_KEPT:
            oldest = self._graphs.pop(next(iter(self._graphs)))
            if oldest is not None:
                oldest.close()

    def _capture(self, addresses: tuple[int, ...]) -> None:
        try:
            graph = self._stream.capture(self._enqueue)
        except Exception as error:
            said = cuda_failure(error)
            if said is None and not isinstance(error, (DeviceError, RuntimeError)):
                raise
            self._attempts -= 1
            _log.warning("%s: no CUDA graph could be captured: %s", self._engine.name, error)
            self._enqueue()
            return
        self._graphs[addresses] = graph
        graph.launch(self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._engine.failure("does not run it")

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._engine.failure(f"refuses the address of {name!r}")


def _give_back(close: Callable[[], None]) -> None:
    """Close something; after a fault on the GPU the driver refuses to take anything back."""
    try:
        close()
    except Exception as error:
        if cuda_failure(error) is None:
            raise


SIZES_KEPT: Final = 16
"""Most shapes of a lane with a context at the same time; the least recently used one goes."""

_START, _COPIED_IN, _COMPUTED, _COPIED_OUT = range(4)


class Lane:
    """A stream with the resources of its calls, reserved at once for the largest batch and image.

    After that it grows by contexts only, at most `SIZES_KEPT` of them. They share the buffers and
    the scratch memory, which is safe because the calls of a lane follow one another.

    Raises:
        DeviceError: there is not enough memory.
    """

    def __init__(self, device: Device, engine: Engine, profile: ShapeProfile) -> None:
        keep_in_children(self)
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
        # Without a copy from the host the events enclose no transfer: no time, rather than zero.
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
        return {"compute_ms": clock.between_ms(_COPIED_IN, _COMPUTED), "enqueue_ms": enqueued * 1e3}

    def upload(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Copies of host arrays on the GPU, each in memory of its own, complete."""
        context, sources = self._prepare(feeds)
        context.copy_in(sources)
        return self._copies(context.inputs)

    def failure(self) -> str | None:
        """Wait for the queued work; say why the stream does not work any more, or ``None``."""
        return self._stream.failure()

    def close(self) -> None:
        """Wait for the stream, then free everything; a second call does nothing."""
        self._stream.failure()
        # Contexts first: they hold the addresses of the buffers and of the scratch memory.
        owned: list[Any] = [*self._contexts.values(), self._clock, self._scratch]
        owned += [memory for slot in self._slots for memory in (slot.device, slot.host)]
        for each in owned:
            if each is not None:
                _give_back(each.close)
        self._contexts.clear()
        self._slots.clear()
        self._clock = self._scratch = None
        # Memory is freed in the order of the stream, and the pool can be trimmed only then.
        self._stream.failure()
        _give_back(self._stream.close)

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

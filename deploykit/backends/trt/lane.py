"""Resources of one call at a time: a stream, buffers, and an execution context per shape."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._cuda.arrays import DeviceArray
from deploykit.backends._cuda.device import cuda_failure
from deploykit.backends._cuda.forks import keep_in_children
from deploykit.backends.trt.feeds import read_feeds
from deploykit.core.errors import DeviceError

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
    from deploykit.core.specs import TensorSpec

    Shapes = tuple[tuple[int, ...], ...]
    Addresses = tuple[int, ...]


_log = logging.getLogger("deploykit")

_ALIGNMENT: Final = 256
"""Alignment of addresses in bytes, as the runtime's ``setTensorAddress`` requires."""

GRAPHS_KEPT: Final = 4
"""Most graphs of one shape in a lane: inputs on the GPU come at the caller's own addresses,
and PyTorch's allocator gives out the same few again and again."""

SIZES_KEPT: Final = 16
"""Most shapes that a lane knows at the same time; the least recently used one goes."""

CONTEXTS_KEPT: Final = SIZES_KEPT
"""Most execution contexts of a lane, over all its shapes and graphs: each keeps memory of the
host, and some of the GPU beside the scratch memory that they share."""

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


class BoundContext:
    """An execution context of one shape, and the graph that was captured from it, if any.

    Its scratch memory is the lane's: contexts of a lane follow one another on its stream. Of
    several optimisation profiles it has the narrowest that fits the shape.
    """

    def __init__(
        self, engine: Engine, stream: Stream, scratch: Memory | None, shapes: Shapes
    ) -> None:
        self.graph: CapturedGraph | None = None
        self.has_run = False
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._context = engine.new_context(engine.place_of(shapes), stream.handle)
        if scratch is not None:
            self._context.set_device_memory(scratch.address, scratch.size)
        self.output_shapes = engine.set_shapes(self._context, shapes)

    def bind(self, name: str, address: int) -> None:
        """Let the tensor ``name`` lie at ``address``."""
        if self._addresses.get(name) == address:
            return
        if not self._context.set_tensor_address(name, address):
            raise self._engine.failure(f"refuses the address of {name!r}")
        self._addresses[name] = address

    def enqueue(self, stream: Stream) -> None:
        """Queue the computation."""
        if not self._context.execute_async_v3(stream.handle):
            raise self._engine.failure("does not run it")
        self.has_run = True

    def information(self) -> str:
        """As `Engine.information`, for its shape."""
        return self._engine.information(self._context)

    def close(self) -> None:
        """Release the graph, then the context that it was captured from."""
        if self.graph is not None:
            self.graph.close()
        del self._context


class ContextPool:
    """The execution contexts of a lane, `CONTEXTS_KEPT` at most; the least recently used one goes.

    Each graph has one to itself, as the vendor advises, and each shape one that runs plainly.
    """

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream
        self.scratch: Memory | None = None  # of all its contexts
        # By shapes, and by the addresses of a graph; None for the one that runs plainly.
        self._kept: dict[tuple[Shapes, Addresses | None], BoundContext] = {}

    def captured(self, shapes: Shapes, addresses: Addresses) -> CapturedGraph | None:
        """The graph of these addresses."""
        found = self._used((shapes, addresses))
        return None if found is None else found.graph

    def plain(self, shapes: Shapes) -> BoundContext:
        """The context that runs plainly; a new one where there is none."""
        found = self._used((shapes, None))
        if found is None:
            if len(self._kept) == CONTEXTS_KEPT:
                self._close(next(iter(self._kept)))
            found = BoundContext(self._engine, self._stream, self.scratch, shapes)
            self._kept[shapes, None] = found
        return found

    def keep_graph(self, shapes: Shapes, addresses: Addresses, graph: CapturedGraph) -> None:
        """Let the context that ran plainly, of which ``graph`` was captured, serve it alone."""
        others = [key for key in self._kept if key[0] == shapes and key[1] is not None]
        if len(others) == GRAPHS_KEPT:
            self._close(others[0])
        context = self._kept.pop((shapes, None))
        context.graph = graph
        self._kept[shapes, addresses] = context

    def drop(self, shapes: Shapes) -> None:
        """Close all contexts of a shape."""
        for key in [key for key in self._kept if key[0] == shapes]:
            self._close(key)

    def close(self) -> None:
        """Close all; a second call does nothing."""
        for key in list(self._kept):
            self._close(key)

    def _used(self, key: tuple[Shapes, Addresses | None]) -> BoundContext | None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._kept[key] = found  # now the newest
        return found

    def _close(self, key: tuple[Shapes, Addresses | None]) -> None:
        _give_back(self._kept.pop(key).close)


class BatchContext:
    """Runs batches of one shape on one stream.

    A graph is captured when the same addresses come for the second time: the first run warms up,
    and an address that never comes again is not worth a capture.
    """

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        contexts: ContextPool,
        slots: Sequence[Slot],
        shapes: Shapes,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._contexts = contexts
        self.shapes = shapes
        computed = contexts.plain(shapes).output_shapes
        self.inputs = list(map(Binding, slots, shapes))
        self.outputs = list(map(Binding, slots[len(shapes) :], computed))
        self._own = tuple(binding.device.address for binding in self.inputs)
        self._seen: dict[Addresses, None] = {}
        self._attempts = _ATTEMPTS if engine.captures else 0
        self.was_computed = False

    def stage(self, sources: Sequence[NDArray[Any] | GpuView]) -> None:
        """Copy inputs of the host into page-locked memory, from where the GPU fetches them."""
        for binding, source in zip(self.inputs, sources, strict=True):
            if isinstance(source, np.ndarray):
                np.copyto(binding.array, source)

    def copy_in(self, sources: Sequence[NDArray[Any] | GpuView]) -> Addresses:
        """Queue the copies of staged inputs; return the address of each input.

        An input on the GPU is used where it is, unless its address is not aligned: then it is
        copied, on the GPU.
        """
        # The usual case without the generator below, in every call.
        if len(sources) == 1 and isinstance(sources[0], np.ndarray):
            self._stream.copy(self.inputs[0].device, self.inputs[0].host)
            return self._own
        pairs = zip(self.inputs, sources, strict=True)
        return tuple(self._place(binding, source) for binding, source in pairs)

    def launch(self, addresses: Addresses) -> None:
        """Queue the computation, as a graph where there is one for these addresses.

        Raises:
            DeviceError: the runtime refuses.
        """
        graph = self._contexts.captured(self.shapes, addresses)
        if graph is not None:
            graph.launch(self._stream)
            return
        context = self._contexts.plain(self.shapes)
        self._bind(context, addresses)
        # A context that was made meanwhile, in the place of one that serves a graph, warms up too.
        if self._comes_again(addresses) and context.has_run and self._attempts:
            self._capture(context, addresses)
        else:
            context.enqueue(self._stream)

    def copy_out(self) -> None:
        """Queue the copies of the outputs to the host."""
        for binding in self.outputs:
            self._stream.copy(binding.host, binding.device)

    def information(self) -> str:
        """As `Engine.information`, for its shape."""
        return self._contexts.plain(self.shapes).information()

    def results(self) -> dict[str, NDArray[Any]]:
        """The outputs on the host as arrays of the caller's own; the stream is synchronised."""
        # Copies: the next call of this lane overwrites the page-locked buffers.
        return {binding.name: binding.array.copy() for binding in self.outputs}

    def _place(self, binding: Binding, source: NDArray[Any] | GpuView) -> int:
        if isinstance(source, np.ndarray):
            self._stream.copy(binding.device, binding.host)
        elif source.memory.address % _ALIGNMENT:
            self._stream.copy(binding.device, source.memory)
        else:
            return source.memory.address
        return binding.device.address

    def _bind(self, context: BoundContext, addresses: Addresses) -> None:
        for binding, address in zip(self.inputs, addresses, strict=True):
            context.bind(binding.name, address)
        for binding in self.outputs:
            context.bind(binding.name, binding.device.address)

    def _comes_again(self, addresses: Addresses) -> bool:
        """True if these addresses are among the last ones; they are now the newest."""
        known = addresses in self._seen
        self._seen.pop(addresses, None)
        self._seen[addresses] = None
        if len(self._seen) > GRAPHS_KEPT:
            del self._seen[next(iter(self._seen))]
        return known

    def _capture(self, context: BoundContext, addresses: Addresses) -> None:
        try:
            graph = self._stream.capture(lambda: context.enqueue(self._stream))
        except Exception as error:
            said = cuda_failure(error)
            if said is None and not isinstance(error, (DeviceError, RuntimeError)):
                raise
            self._attempts -= 1
            _log.warning("%s: no CUDA graph could be captured: %s", self._engine.name, error)
            context.enqueue(self._stream)
            return
        self._contexts.keep_graph(self.shapes, addresses, graph)
        graph.launch(self._stream)


def _give_back(close: Callable[[], None]) -> None:
    """Close something; after a fault on the GPU the driver refuses to take anything back."""
    try:
        close()
    except Exception as error:
        if cuda_failure(error) is None:
            raise


_START, _COPIED_IN, _COMPUTED, _COPIED_OUT = range(4)


class Lane:
    """A stream with the resources of its calls, reserved at once for the largest batch and image.

    After that it grows by contexts only, at most `CONTEXTS_KEPT` of them. They share the buffers
    and the scratch memory, which is safe because the calls of a lane follow one another.

    Raises:
        DeviceError: there is not enough memory.
    """

    def __init__(self, device: Device, engine: Engine, profile: ShapeProfile) -> None:
        keep_in_children(self)
        self._device = device
        self._engine = engine
        self._profile = profile
        self._stream = device.new_stream()
        self._batches: dict[Shapes, BatchContext] = {}
        self._contexts = ContextPool(engine, self._stream)
        self._slots: list[Slot] = []
        self._scratch: Memory | None = None
        self._clock: StepClock | None = None
        self._clocks: list[StepClock] = []
        try:
            specs = (*engine.inputs, *engine.outputs)
            largest = engine.largest_shapes(self._stream.handle)
            for spec, shape in zip(specs, largest, strict=True):
                self._slots.append(self._slot(spec, shape))
            if engine.scratch_bytes:
                self._scratch = device.reserve(engine.scratch_bytes, self._stream)
            self._contexts.scratch = self._scratch
            self._stream.synchronise()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs on the host."""
        batch, sources = self._prepare(feeds)
        batch.stage(sources)
        batch.launch(batch.copy_in(sources))
        batch.copy_out()
        self._finish(batch)
        return batch.results()

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Outputs on the GPU, complete, each in memory of its own."""
        batch, sources = self._prepare(feeds)
        batch.stage(sources)
        batch.launch(batch.copy_in(sources))
        # The graphs write where they were captured to write; a small copy keeps them valid.
        copies = self._copies(batch.outputs)
        self._finish(batch)
        return copies

    def run_timed(
        self, feeds: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, float | None]]:
        """Outputs on the host, and the fields of a `StepTimes` but for its wall time."""
        batch, sources = self._prepare(feeds)
        clock = self._step_clock()
        # Before the first event: what the host does is no part of the transfer.
        batch.stage(sources)
        clock.mark(_START, self._stream)
        addresses = batch.copy_in(sources)
        clock.mark(_COPIED_IN, self._stream)
        begun = time.perf_counter()
        batch.launch(addresses)
        enqueued = time.perf_counter() - begun
        clock.mark(_COMPUTED, self._stream)
        batch.copy_out()
        clock.mark(_COPIED_OUT, self._stream)
        self._finish(batch)
        # Without a copy from the host the events enclose no transfer: no time, rather than zero.
        copied = any(isinstance(source, np.ndarray) for source in sources)
        return batch.results(), {
            "h2d_ms": clock.between_ms(_START, _COPIED_IN) if copied else None,
            "compute_ms": clock.between_ms(_COPIED_IN, _COMPUTED),
            "d2h_ms": clock.between_ms(_COMPUTED, _COPIED_OUT),
            "enqueue_ms": enqueued * 1e3,
        }

    def time_on_device(self, feeds: Mapping[str, Any]) -> dict[str, float | None]:
        """The fields of a `StepTimes` but for its wall time; the outputs are not fetched."""
        batch, sources = self._prepare(feeds)
        clock = self._step_clock()
        batch.stage(sources)
        addresses = batch.copy_in(sources)
        clock.mark(_COPIED_IN, self._stream)
        begun = time.perf_counter()
        batch.launch(addresses)
        enqueued = time.perf_counter() - begun
        clock.mark(_COMPUTED, self._stream)
        self._finish(batch)
        return {"compute_ms": clock.between_ms(_COPIED_IN, _COMPUTED), "enqueue_ms": enqueued * 1e3}

    def upload(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Copies of host arrays on the GPU, each in memory of its own, complete."""
        batch, sources = self._prepare(feeds)
        batch.stage(sources)
        batch.copy_in(sources)
        copies = self._copies(batch.inputs)
        self._stream.synchronise()
        return copies

    def failure(self) -> str | None:
        """Wait for the queued work; say why the stream does not work any more, or ``None``."""
        return self._stream.failure()

    @property
    def stream(self) -> Stream:
        """The stream of its calls."""
        return self._stream

    def prepare(self, feeds: Mapping[str, Any]) -> tuple[BatchContext, list[Any]]:
        """The context of the feeds' shapes, and what it is to be fed; raises what ``run`` does."""
        return self._prepare(feeds)

    def new_clock(self, count: int) -> StepClock:
        """Events that are destroyed with the lane."""
        self._clocks.append(self._device.new_clock(count))
        return self._clocks[-1]

    def close(self) -> None:
        """Wait for the stream, then free everything; a second call does nothing."""
        self._stream.failure()
        # Contexts first: they hold the addresses of the buffers and of the scratch memory.
        owned: list[Any] = [self._contexts, *self._clocks, self._scratch]
        owned += [memory for slot in self._slots for memory in (slot.device, slot.host)]
        for each in owned:
            if each is not None:
                _give_back(each.close)
        self._batches.clear()
        self._slots.clear()
        self._clocks.clear()
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
        return copies

    def _finish(self, batch: BatchContext) -> None:
        """Wait for the queued work; what was compiled for a new shape is kept for the next time."""
        self._stream.synchronise()
        if not batch.was_computed:
            batch.was_computed = True
            self._engine.keep_kernels(batch.shapes)

    def _step_clock(self) -> StepClock:
        if self._clock is None:
            self._clock = self.new_clock(4)
        return self._clock

    def _context(self, shapes: Shapes) -> BatchContext:
        batch = self._batches.pop(shapes, None)
        if batch is None:
            self._engine.place_of(shapes)  # before anything gives way to what no profile has
            if len(self._batches) == SIZES_KEPT:
                oldest = next(iter(self._batches))
                del self._batches[oldest]
                self._contexts.drop(oldest)
            batch = BatchContext(self._engine, self._stream, self._contexts, self._slots, shapes)
        self._batches[shapes] = batch  # now the newest
        return batch

"""One execution context for one shape of the batch, with its buffers and its CUDA graphs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._cuda.failures import cuda_failure
from deploykit.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.backends._cuda.arrays import GpuView
    from deploykit.backends._cuda.memory import Memory, PinnedMemory
    from deploykit.backends._cuda.stream import Graph, Stream
    from deploykit.backends.trt.engine import Engine
    from deploykit.specs import TensorSpec

_log = logging.getLogger("deploykit")

_ALIGNMENT: Final = 256
"""``setTensorAddress`` of the runtime: addresses have to be multiples of it."""

GRAPHS_KEPT: Final = 4
"""Of one shape on one stream: inputs on the GPU come at the caller's own addresses, and
PyTorch's allocator hands out the same few again and again."""

_ATTEMPTS: Final = 3
"""A capture can fail for a passing reason; after three, the model is one that cannot be."""


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
        self._graphs: dict[tuple[int, ...], Graph | None] = {}
        self._attempts = _ATTEMPTS if engine.captures else 0

    def copy_in(self, sources: Sequence[NDArray[Any] | GpuView]) -> tuple[int, ...]:
        """Queue the copies of what lies on the host; the address of each input.

        What lies on the GPU is used where it is, unless its address is not aligned: then it is
        copied, on the GPU.
        """
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
        return {binding.name: binding.array.copy() for binding in self.outputs}

    def close(self) -> None:
        """Let go of graphs and context; the buffers belong to the lane."""
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

"""The GPU that engines run on: its memory, streams, events and captured graphs."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._cuda.forks import keep_in_children, note_use, require_own_gpu
from deploykit.core.environment import require
from deploykit.core.errors import DeviceError, EngineIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


_OUT_OF_MEMORY: Final = "CUDA_ERROR_OUT_OF_MEMORY"


def cuda_failure(error: BaseException) -> str | None:
    """The driver's name for a failed call with its explanation; ``None`` for another exception.

    The class has no public place in ``cuda.core`` 1.2, so it is known by its name; the message
    begins with the driver's own constant.

    >>> cuda_failure(ValueError("x")) is None
    True
    """
    # Base classes too: what is raised may be a subclass.
    if any(kind.__name__ == "CUDAError" for kind in type(error).__mro__):
        return " ".join(str(error).split())
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """True if the driver had no memory left, on the GPU or page-locked."""
    return (cuda_failure(error) or "").startswith(_OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class Memory:
    """A range of memory; ``buffer`` is the ``cuda.core.Buffer`` that owns it, or a part of one."""

    buffer: Any = field(repr=False)
    address: int
    size: int

    @classmethod
    def of(cls, buffer: Any) -> Memory:
        """The memory of a whole buffer."""
        return cls(buffer, int(buffer.handle), int(buffer.size))

    def part(self, size: int) -> Memory:
        """The first ``size`` bytes; it is valid for as long as the whole is."""
        part = type(self.buffer).from_handle(self.address, size, owner=self.buffer)
        return Memory(part, self.address, size)

    def close(self) -> None:
        """Give the memory back, in the order of the stream that it was reserved on."""
        self.buffer.close()


@dataclass(frozen=True, slots=True)
class PinnedMemory(Memory):
    """Page-locked memory of the host; ``bytes`` is numpy's view of it."""

    bytes: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def of(cls, buffer: Any) -> PinnedMemory:
        """The memory of a whole buffer that the host can read and write."""
        view = np.from_dlpack(buffer).view(np.uint8)
        return cls(buffer, int(buffer.handle), int(buffer.size), view)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array over the first bytes, as many as it needs."""
        count = dtype.itemsize * int(np.prod(shape))
        return self.bytes[:count].view(dtype).reshape(shape)


class Stream:
    """A CUDA stream that is not synchronised with the default stream.

    ``handle`` is what TensorRT takes, ``gpu_index`` the GPU that it belongs to. Each method raises
    ``cuda.core``'s own error; `cuda_failure` explains it.
    """

    def __init__(self, stream: Any, gpu_index: int = 0) -> None:
        self._stream = stream
        self.gpu_index = gpu_index
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

    def failure(self) -> str | None:
        """Wait for the queued work; say why the stream does not work any more, ``None`` if it does.

        After a fault on the GPU no stream works.
        """
        try:
            self._stream.sync()
        except Exception as error:  # whatever it is, nothing can be done with the stream
            return cuda_failure(error) or " ".join(str(error).split())
        return None

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Capture the work that ``enqueue`` queues on this stream, without running it.

        The capture is of this thread only (mode "thread_local"): other threads may reserve memory
        meanwhile, while a call that would break the graph is noticed. An error of any kind leaves
        the stream as it was, unless the GPU itself failed.
        """
        builder = self._stream.create_graph_builder()
        try:
            builder.begin_building(mode="thread_local")
            enqueue()
            builder.end_building()
            return CapturedGraph(keep_in_children(builder.complete()))
        finally:
            # Ends a capture that is still open, and says again why it is not valid.
            with suppress(Exception):
                builder.close()

    def close(self) -> None:
        """Destroy the stream; a second call does nothing."""
        self._stream.close()


class CapturedGraph:
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
    """CUDA events that time the steps of one call: ``count`` of them on one stream."""

    def __init__(self, device: Any, options: Any, count: int) -> None:
        self._events = [keep_in_children(device.create_event(options)) for _ in range(count)]

    def mark(self, index: int, stream: Stream) -> None:
        """Record event ``index`` behind the work that is queued already."""
        stream.core.record(self._events[index])

    def hold(self, index: int, stream: Stream) -> None:
        """Let what is queued on ``stream`` from now on wait for event ``index``."""
        stream.core.wait(self._events[index])

    def synchronise(self, index: int) -> None:
        """Wait until event ``index`` has come; raises what went wrong before it."""
        self._events[index].sync()

    def between_ms(self, first: int, second: int) -> float:
        """Milliseconds from one event to a later one; the stream must be synchronised before."""
        return float(self._events[second] - self._events[first])

    def close(self) -> None:
        """Destroy the events."""
        for event in self._events:
            event.close()


class Device:
    """A GPU by the driver's ``index``; one object serves all threads.

    ``spin`` sets whether this process waits by spinning or blocking; ``None`` leaves that to the
    driver.

    Raises:
        MissingDependencyError: ``cuda.core`` is not installed or does not load.
        EngineIncompatibleError: there is no CUDA driver, or it shows no GPU.
        UsageError: the GPU was used before this process was forked.
    """

    def __init__(self, index: int = 0, *, spin: bool | None = None) -> None:
        require_own_gpu()
        self.index = index
        self._sleeps = spin is False
        self._core = require("cuda.core")
        self._driver = require("cuda.bindings.driver")
        self._context = 0  # the handle of this GPU's context, the same in all threads
        self._thread = threading.local()  # which threads `cuda.core` has chosen this GPU in
        try:
            if spin is not None:
                self._choose_waiting(spin=spin)
            with self.current():
                self._context = int(self._driver.cuCtxGetCurrent()[1])
        except Exception as error:
            said = " ".join(str(error).split())
            raise EngineIncompatibleError(
                "engines run on an NVIDIA GPU, and no CUDA driver with a GPU answers here\n"
                f"it says: {said}\n"
                "deploykit doctor says what works on this machine"
            ) from error
        note_use()
        self._pinned = self._core.LegacyPinnedMemoryResource()

    def make_current(self) -> None:
        """Make this GPU current for the calling thread; CUDA keeps one for each thread."""
        keep_in_children(self._core.Device(self.index)).set_current()
        self._thread.has_chosen = True

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU current for the calling thread, and the caller's own again at the end.

        A thread that had none keeps this one: to it, CUDA's first GPU is the usual one anyway, and
        what is freed later in that thread needs one. Raises ``cuda.core``'s own error.
        """
        status, before = self._driver.cuCtxGetCurrent()
        handle = int(before) if int(status) == 0 else 0
        # The usual case, tested in every call: nobody has chosen another GPU since the last one.
        if handle == self._context and hasattr(self._thread, "has_chosen"):
            yield
            return
        self.make_current()
        try:
            yield
        finally:
            if handle:
                self._driver.cuCtxSetCurrent(before)

    def _choose_waiting(self, *, spin: bool) -> None:
        flags = self._driver.CUctx_flags
        flag = flags.CU_CTX_SCHED_SPIN if spin else flags.CU_CTX_SCHED_BLOCKING_SYNC
        self._driver.cuInit(0)  # a driver that does not start says so when it is used
        # Flags of a context that exists already may be changed, too (CUDA 11 and later).
        self._driver.cuDevicePrimaryCtxSetFlags(self.index, flag)

    def new_stream(self) -> Stream:
        """A stream of its own, never the default one."""
        stream = keep_in_children(self._core.Device(self.index).create_stream())
        return Stream(stream, self.index)

    def new_clock(self, count: int) -> StepClock:
        """``count`` events that record the time."""
        # An event records no time unless asked; the difference of two would raise. Nor does it know
        # how its context waits: without a flag of its own the host spins until it has come.
        options = self._core.EventOptions(timing_enabled=True, blocking_sync=self._sleeps)
        return StepClock(self._core.Device(self.index), options, count)

    def reserve(self, size: int, stream: Stream) -> Memory:
        """Memory of the GPU, aligned to 256 bytes or more as all of the driver's is.

        Raises:
            DeviceError: there is not enough.
        """
        try:
            buffer = self._core.Device(self.index).allocate(size, stream=stream.core)
            return Memory.of(keep_in_children(buffer))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # What is free is asked after the failure, for the message alone.
            free, total = self.memory_bytes()
            raise DeviceError(
                f"the GPU has no {_mib(size)} left: {_mib(free)} of {_mib(total)} are free\n"
                "stop what else uses the GPU, or compile the engine for smaller batches or images"
            ) from error

    def reserve_pinned(self, size: int) -> PinnedMemory:
        """Page-locked memory of the host.

        Raises:
            DeviceError: the system does not give it.
        """
        try:
            return PinnedMemory.of(keep_in_children(self._pinned.allocate(size)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"the system gives no {_mib(size)} of page-locked memory\n"
                "raise the limit of the process or container, or compile for smaller batches"
            ) from error

    def trim(self) -> None:
        """Give back to the system what the pool of this GPU keeps for later and nobody uses."""
        resource = self._core.Device(self.index).memory_resource
        # A GPU without pools, as a virtual one may be, has another resource, which keeps nothing.
        pool = getattr(resource, "handle", None)
        if pool is not None:
            # What it answers is of no use: a driver that refuses keeps the memory, as before.
            self._driver.cuMemPoolTrimTo(pool, 0)

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory of the GPU."""
        status, free, total = self._driver.cuMemGetInfo()
        return (int(free), int(total)) if int(status) == 0 else (0, 0)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

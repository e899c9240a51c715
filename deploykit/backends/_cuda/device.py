"""The GPU that engines run on."""

from __future__ import annotations

from typing import Final

from deploykit.backends._cuda.failures import is_out_of_memory
from deploykit.backends._cuda.memory import Memory, PinnedMemory
from deploykit.backends._cuda.stream import StepClock, Stream
from deploykit.environment import require
from deploykit.errors import DeviceError, EngineIncompatibleError

INDEX: Final = 0
"""The first device is the one that the compilers and the runtimes use, too;
``CUDA_VISIBLE_DEVICES`` is the driver's own way to choose another."""


class Device:
    """The first GPU of the driver; one object serves all threads.

    ``spin`` sets how this process waits for it, ``None`` leaves that to the driver.

    Raises:
        MissingDependencyError: ``cuda.core`` is not installed or does not load.
        EngineIncompatibleError: there is no CUDA driver, or it shows no GPU.
    """

    def __init__(self, *, spin: bool | None = None) -> None:
        self._core = require("cuda.core")
        self._driver = require("cuda.bindings.driver")
        try:
            if spin is not None:
                self._choose_waiting(spin=spin)
            self.make_current()
        except Exception as error:
            said = " ".join(str(error).split())
            raise EngineIncompatibleError(
                "engines run on an NVIDIA GPU, and no CUDA driver with a GPU answers here\n"
                f"it says: {said}\n"
                "deploykit doctor says what works on this machine"
            ) from error
        self._pinned = self._core.LegacyPinnedMemoryResource()

    def make_current(self) -> None:
        """Work of the calling thread goes to this GPU; CUDA keeps that for each thread apart."""
        self._core.Device(INDEX).set_current()

    def _choose_waiting(self, *, spin: bool) -> None:
        flags = self._driver.CUctx_flags
        flag = flags.CU_CTX_SCHED_SPIN if spin else flags.CU_CTX_SCHED_BLOCKING_SYNC
        self._driver.cuInit(0)  # a driver that does not start says so when it is used
        # Flags of a context that exists already may be changed, too (CUDA 11 and later).
        self._driver.cuDevicePrimaryCtxSetFlags(INDEX, flag)

    def new_stream(self) -> Stream:
        """A stream of its own, never the default one."""
        return Stream(self._core.Device(INDEX).create_stream())

    def new_clock(self, count: int) -> StepClock:
        """Events that take the time."""
        options = self._core.EventOptions(timing_enabled=True)
        return StepClock(self._core.Device(INDEX), options, count)

    def reserve(self, size: int, stream: Stream) -> Memory:
        """Memory of the GPU, aligned to 256 bytes or more as all of the driver's is.

        Raises:
            DeviceError: there is not enough.
        """
        try:
            return Memory.of(self._core.Device(INDEX).allocate(size, stream=stream.core))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
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
            return PinnedMemory.of(self._pinned.allocate(size))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"the system gives no {_mib(size)} of page-locked memory\n"
                "raise the limit of the process or container, or compile for smaller batches"
            ) from error

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory of the GPU."""
        status, free, total = self._driver.cuMemGetInfo()
        return (int(free), int(total)) if int(status) == 0 else (0, 0)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

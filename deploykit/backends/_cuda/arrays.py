"""Arrays that lie on the GPU: the ones we give out, and views of the ones we are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends._cuda.device import Memory, cuda_failure
from deploykit.backends._cuda.forks import require_own_gpu
from deploykit.core.environment import require
from deploykit.core.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.backends._cuda.device import Device, Stream

# DLDeviceType of dlpack.h.
_DLPACK_HOST: Final = frozenset({1, 3})  # kDLCPU, kDLCUDAHost
_DLPACK_GPU: Final = frozenset({2, 13})  # kDLCUDA, kDLCUDAManaged

_OF_THE_ARRAY: Final = (
    "CUDA_ERROR_INVALID_VALUE",
    "CUDA_ERROR_INVALID_HANDLE",
    "CUDA_ERROR_INVALID_CONTEXT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
)
"""What the driver says of an address, or of a producer's stream, that is none."""


class DeviceArray:
    """A C-contiguous array in memory of its own on the GPU, complete when it is handed out.

    Others read it without a copy by DLPack (``torch.from_dlpack(array)``) or by the CUDA array
    interface (``cupy.asarray(array)``). Its memory is given back after the last reader is gone, in
    the order of the default stream: a reader on another stream has to keep the array, or what it
    made of it, until its work is done.
    """

    def __init__(
        self, device: Device, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        core = require("cuda.core")
        # Not on the stream of a runner: its graphs would record the giving back of this memory.
        memory.buffer.set_deallocation_stream(core.LEGACY_DEFAULT_STREAM)
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._memory = memory
        view = require("cuda.core.utils").StridedMemoryView
        self._view = view.from_buffer(memory.buffer, shape, dtype=dtype)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A DLPack capsule; no stream has to wait, as the array is complete.

        Raises:
            UsageError: this process was forked from the one that the array belongs to.
        """
        require_own_gpu()
        return self._view.__dlpack__(
            stream=stream, max_version=max_version, dl_device=dl_device, copy=copy
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._view.__dlpack_device__()
        return int(kind), int(index)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The array by version 3 of the protocol; no stream to wait for, as it is complete."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def numpy(self) -> NDArray[Any]:
        """Copy the array to the host.

        Raises:
            UsageError: this process was forked from the one that the array belongs to.
            DeviceError: the GPU failed.
        """
        require_own_gpu()
        target = np.empty(self.shape, self.dtype)
        try:
            with self._device.current():
                self._fetch(target)
        except Exception as error:
            said = cuda_failure(error)
            if said is None:
                raise
            raise DeviceError(
                f"an array on the GPU cannot be copied from there\nit says: {said}\n"
                "after a fault of the GPU start the process again"
            ) from error
        return target

    def _fetch(self, target: NDArray[Any]) -> None:
        stream = self._device.new_stream()
        try:
            # The buffer is a view of numpy's memory, so that the copy needs no staging of ours.
            whole = type(self._memory.buffer).from_handle(
                target.ctypes.data, target.nbytes, owner=target
            )
            self._memory.buffer.copy_to(whole, stream=stream.core)
            stream.synchronise()
        finally:
            stream.close()

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"


@dataclass(frozen=True, slots=True)
class GpuView:
    """View of a caller's C-contiguous array on the GPU; ``memory`` keeps that array alive."""

    memory: Memory
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def as_source(name: str, value: object, stream: Stream) -> NDArray[Any] | GpuView:
    """The value of an input as an array of the host, or as a view of one on the GPU.

    Accepted are numpy arrays, objects with ``__dlpack__`` and objects with
    ``__cuda_array_interface__`` (version 3). Nothing is copied; ``stream`` waits for the work that
    the producer has queued on its own stream.

    Raises:
        UsageError: it is something else, on another device, or not C-contiguous on the GPU.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if _is_on_gpu(value, stream.gpu_index):
            return _gpu_view(name, value, stream)
        return np.from_dlpack(value)  # type: ignore[arg-type]  # it has __dlpack__: _is_on_gpu looked
    except UsageError:
        raise
    except Exception as error:
        # Errors that producers raise when they cannot hand out their array; all others are bugs,
        # or faults of the GPU, which the driver gives as its answer to this question too.
        said = cuda_failure(error)
        if said is None and not isinstance(
            error, (BufferError, RuntimeError, TypeError, NotImplementedError, AttributeError)
        ):
            raise
        if said is not None and not said.startswith(_OF_THE_ARRAY):
            raise
        said = " ".join(str(error).split())
        raise UsageError(
            f"input {name!r} was fed a {type(value).__name__} that cannot be read\nit says: {said}"
        ) from error


def _is_on_gpu(value: object, gpu_index: int) -> bool:
    ask = getattr(value, "__dlpack_device__", None)
    if ask is None:
        if hasattr(value, "__cuda_array_interface__"):
            return True
        raise UsageError(
            f"an input was fed a {type(value).__name__}\n"
            "it takes a numpy array, or one with __dlpack__ or __cuda_array_interface__"
        )
    kind = int(ask()[0])
    if kind not in _DLPACK_HOST | _DLPACK_GPU:
        raise UsageError(
            f"an input lies on a device of DLPack's type {kind}\n"
            f"possible are the host and GPU {gpu_index} of CUDA"
        )
    return kind in _DLPACK_GPU


def _gpu_view(name: str, value: object, stream: Stream) -> GpuView:
    view = require("cuda.core.utils").StridedMemoryView.from_any_interface(
        value, stream_ptr=stream.handle
    )
    if view.device_id != stream.gpu_index:
        raise UsageError(
            f"input {name!r} lies on GPU {view.device_id}, the engine runs on GPU "
            f"{stream.gpu_index}\n"
            f'copy it there, or load the engine with device="cuda:{view.device_id}"'
        )
    shape = tuple(view.shape)
    if not _is_contiguous(shape, view.strides) or not view.dtype.isnative:
        raise UsageError(
            f"input {name!r} on the GPU has strides {view.strides} and type {view.dtype.str}\n"
            "it has to be C-contiguous and in the machine's byte order: make a contiguous copy"
        )
    size = int(np.prod(shape)) * view.dtype.itemsize
    # owner: without a reference to the view the producer may free the memory during the run.
    buffer = require("cuda.core").Buffer.from_handle(view.ptr, size, owner=view)
    return GpuView(Memory(buffer, view.ptr, size), shape, view.dtype)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """True if strides, in elements, are C-contiguous; ``None`` stands for such strides."""
    if strides is None:
        return True
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        # The stride of an axis of length 1 is never used, and libraries put anything there.
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True

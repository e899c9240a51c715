"""Arrays on the GPU made without deploykit, as other libraries hand them over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

core = pytest.importorskip("cuda.core", reason="the package cuda-core is not installed")
if TYPE_CHECKING:
    from collections.abc import Callable

StridedMemoryView = pytest.importorskip("cuda.core.utils").StridedMemoryView


class ByDlpack:
    """An array on GPU 0 that others read by DLPack; ``offset`` bytes into its memory.

    It counts how often it was asked for, and remembers the stream that was to wait.
    """

    def __init__(self, array: np.ndarray[Any, Any], offset: int = 0) -> None:
        device = core.Device(0)
        device.set_current()
        stream = device.create_stream()
        self.shape, self.dtype = array.shape, array.dtype
        self.buffer = device.allocate(array.nbytes + offset, stream=stream)
        self.address = int(self.buffer.handle) + offset
        self.streams: list[int | None] = []
        self._part = core.Buffer.from_handle(self.address, array.nbytes, owner=self.buffer)
        self._stream = stream
        self.write(array)

    def write(self, array: np.ndarray[Any, Any]) -> None:
        """Put other values into the same memory."""
        flat = np.ascontiguousarray(array)
        source = core.Buffer.from_handle(flat.ctypes.data, flat.nbytes, owner=flat)
        self._part.copy_from(source, stream=self._stream)
        self._stream.sync()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        self.streams.append(stream)
        view = StridedMemoryView.from_buffer(self._part, self.shape, dtype=self.dtype)
        return view.__dlpack__(stream=stream, **options)


class Busy(ByDlpack):
    """Its values are still on their way when it is handed out, as PyTorch's may be.

    The stream that it is asked for on waits for them. ``delay`` queues work in front of them.
    """

    def __init__(
        self, array: np.ndarray[Any, Any], delay: Callable[[Any], None] | None = None
    ) -> None:
        self._pinned = core.LegacyPinnedMemoryResource().allocate(array.nbytes)
        self._delay = delay
        super().__init__(array)

    def write(self, array: np.ndarray[Any, Any]) -> None:
        self._stream.sync()  # of the values before, which may still be on their way
        values = np.from_dlpack(self._pinned).view(np.uint8)
        values[:] = np.ascontiguousarray(array).view(np.uint8).ravel()
        if self._delay is not None:
            self._delay(self._stream)
        self._part.copy_from(self._pinned, stream=self._stream)

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        if stream is not None and stream > 0:
            core.Stream.from_handle(stream).wait(self._stream)
        return super().__dlpack__(stream=-1, **options)


class ByInterface:
    """The same by ``__cuda_array_interface__``; ``changes`` replace its entries."""

    def __init__(self, array: np.ndarray[Any, Any], **changes: Any) -> None:
        self.held = ByDlpack(array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.held.address, False),
            "version": 3,
            "stream": 1,
            **changes,
        }

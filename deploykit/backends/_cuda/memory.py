"""Memory on the GPU and page-locked memory of the host, which the GPU copies to and from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Memory:
    """A range of memory; ``buffer`` is the ``cuda.core.Buffer`` that owns it, or a part of one."""

    buffer: Any = field(repr=False)
    address: int
    size: int

    @classmethod
    def of(cls, buffer: Any) -> Memory:
        """The whole of a buffer."""
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
        """The whole of a buffer that the host can read and write."""
        view = np.from_dlpack(buffer).view(np.uint8)
        return cls(buffer, int(buffer.handle), int(buffer.size), view)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array over the first bytes, as many as it needs."""
        count = dtype.itemsize * int(np.prod(shape))
        return self.bytes[:count].view(dtype).reshape(shape)

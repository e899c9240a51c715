"""Requests that wait to be run together: which go next, and when. No threads, no clock."""

from __future__ import annotations

from collections import Counter, OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Answer = Future[NDArray[Any]]
    Key = tuple[tuple[int, ...], str]


@dataclass(frozen=True, eq=False)
class Request:
    """Images (n, C, H, W) of one caller; one that gave (C, H, W) gets (classes,) back."""

    images: NDArray[Any]
    is_single: bool
    arrived_s: float
    future: Answer = field(default_factory=Future)

    @property
    def key(self) -> Key:
        """Shape (C, H, W) and type, which all images of one batch share."""
        return self.images.shape[1:], self.images.dtype.str


class WaitingLine:
    """A queue of requests, first come, first served, in batches of one shape and type."""

    def __init__(self, max_batch: int, max_wait_s: float) -> None:
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        # By future, so that a cancelled request leaves the middle of the queue in constant time.
        self._requests: OrderedDict[Answer, Request] = OrderedDict()
        self._images_of: Counter[Key] = Counter()

    def __len__(self) -> int:
        """Number of requests that wait."""
        return len(self._requests)

    @property
    def images(self) -> int:
        """Number of images that wait."""
        return self._images_of.total()

    @property
    def has_full_batch(self) -> bool:
        """True if enough images of one shape and type wait to fill a batch."""
        return any(images >= self._max_batch for images in self._images_of.values())

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        self._requests[request.future] = request
        self._images_of[request.key] += len(request.images)

    def discard(self, future: Answer) -> None:
        """Forget the request of ``future``, if it waits here."""
        request = self._requests.pop(future, None)
        if request is None:
            return
        self._images_of[request.key] -= len(request.images)
        # Otherwise shapes that never come again would stay here for ever.
        if not self._images_of[request.key]:
            del self._images_of[request.key]

    def due_in_s(self, now_s: float) -> float | None:
        """Seconds until ``take`` should be called; ``None`` while nothing waits.

        The oldest request sets the time. A full batch ends all waiting, whatever its shape:
        there is work for the model, so that waiting for more requests would only cost time.
        """
        if not self._requests:
            return None
        if self.has_full_batch:
            return 0.0
        oldest = next(iter(self._requests.values()))
        return max(0.0, oldest.arrived_s + self._max_wait_s - now_s)

    def take(self) -> list[Request]:
        """Remove the oldest request and those that fit into its batch, in their order.

        A request is never overtaken by a younger one of its shape and type, even where only the
        younger would have filled the batch up.
        """
        taken: list[Request] = []
        free = self._max_batch
        for request in self._requests.values():
            if taken and request.key != taken[0].key:
                continue
            free -= len(request.images)
            if free < 0:
                break
            taken.append(request)
        for request in taken:
            self.discard(request.future)
        return taken

    def clear(self) -> list[Request]:
        """Remove all."""
        requests = list(self._requests.values())
        self._requests.clear()
        self._images_of.clear()
        return requests

"""Requests of many callers, run as few batches."""

from __future__ import annotations

import atexit
import os
import threading
import time
import traceback
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from deploykit.core.errors import QueueFullError, UsageError
from deploykit.core.sizes import ShapeProfile
from deploykit.runtime.inputs import Input
from deploykit.serving.waiting_line import Request, WaitingLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from deploykit.core.specs import TensorSpec
    from deploykit.serving.waiting_line import Answer

    Images = NDArray[Any]


_IMAGE_DIMS: Final = 3
_NUMBERS: Final = "fiub"
"""numpy's kinds of type that hold plain numbers: float, signed, unsigned, boolean."""


def as_images(
    images: ArrayLike, expected: Input | None, max_batch: int
) -> tuple[NDArray[Any], bool]:
    """Images (n, C, H, W), without a copy where possible, and whether one (C, H, W) was given.

    Raises:
        UsageError: no array of numbers in host memory, not such a shape, more than ``max_batch``
            images, or not what the model takes (see `Input.host_array`).
    """
    array = _as_array(images)
    is_single = array.ndim == _IMAGE_DIMS
    batch = array[None] if is_single else array
    got = f"a request of {array.dtype} {array.shape}"
    if batch.ndim != _IMAGE_DIMS + 1 or not batch.size:
        raise UsageError(f"{got}\nexpected one image (C, H, W) or some (n, C, H, W)")
    if len(batch) > max_batch:
        raise UsageError(
            f"{got} is larger than max_batch={max_batch}\nsplit it, or give it to the model itself"
        )
    return (batch if expected is None else expected.host_array(batch)), is_single


def _as_array(images: ArrayLike) -> NDArray[Any]:
    import numpy as np

    try:
        array = np.asarray(images)
    # What an array of another package raises is its own: a CUDA tensor of torch a TypeError ...
    except Exception as error:
        raise UsageError(
            f"a request of {type(images).__name__} is not an array in host memory\n{error}"
        ) from error
    if array.dtype.kind not in _NUMBERS:
        raise UsageError(
            f"a request of {type(images).__name__} with elements of type {array.dtype}\n"
            "expected numbers, as the model takes them"
        )
    return array


class BatchModel(Protocol):
    """Takes images (N, C, H, W) and returns logits (N, classes); a `Classifier` is one.

    Where it has ``inputs`` as well (a tuple with one `TensorSpec`), they are compared with every
    request, and so is an engine's ``profile``.
    """

    def run(self, batch: NDArray[Any], /) -> Any:
        """Logits (N, classes) for images (N, C, H, W)."""


def run_as_batch(model: BatchModel, requests: Sequence[Images]) -> Iterator[Images | BaseException]:
    """Yield for each request (n, C, H, W) its logits or its error, from one run of all of them.

    When the batch fails, one blank image is tried. If that fails too the model itself is broken:
    every request gets the error of the batch, and the model is not asked again. Otherwise one
    request is to blame, or the size of the batch (memory), and each runs once more, alone.
    """
    together = _attempt(model, requests)
    if not isinstance(together, BaseException):
        yield from together
    elif len(requests) > 1 and isinstance(together, Exception) and _works(model, requests[0]):
        for number in range(len(requests)):
            alone = _attempt(model, requests[number : number + 1])
            yield alone if isinstance(alone, BaseException) else alone[0]
    else:
        yield from [together] * len(requests)


def _attempt(model: BatchModel, requests: Sequence[Images]) -> list[Images] | BaseException:
    try:
        return _run(model, requests)
    # SystemExit too: a thread that ended here would leave its callers waiting for ever.
    except BaseException as error:
        _forget_locals(error)
        return error


def _forget_locals(error: BaseException) -> None:
    """Clear the frames of the error, through which a caller that keeps it would keep the batch."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _run(model: BatchModel, requests: Sequence[Images]) -> list[Images]:
    import numpy as np

    batch = requests[0] if len(requests) == 1 else np.concatenate(requests)
    logits = np.asarray(model.run(batch))
    if logits.shape[:1] != batch.shape[:1]:
        raise UsageError(
            f"the model returned {logits.shape} for a batch of {len(batch)} images\n"
            "expected one row for each image"
        )
    ends = np.cumsum([len(images) for images in requests])[:-1]
    # Copies: a view would keep the logits of the whole batch, and let callers write to them.
    return [part.copy() for part in np.split(logits, ends)]


def _works(model: BatchModel, like: Images) -> bool:
    import numpy as np

    try:
        model.run(np.zeros_like(like[:1]))
    except BaseException:  # as in _attempt
        return False
    return True


MAX_WAIT_MS: Final = 3_600_000
"""Longest wait, an hour: more is a mistake in the unit."""


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """Counters of a `MicroBatcher` since it was made, in requests unless said otherwise.

    Every accepted request is ``answered``, ``failed``, ``cancelled``, or not done yet.
    """

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    """Not accepted, because the queue was full."""
    batches: int = 0
    images: int = 0
    """Images in those batches."""
    queued_images: int = 0
    """Images that wait now."""

    @property
    def mean_batch(self) -> float:
        """Images per batch; 0 before the first."""
        return self.images / self.batches if self.batches else 0.0


class MicroBatcher:
    """Gathers requests from threads and asyncio into batches for one model.

    A batch is run as soon as it is full (``max_batch`` images), or ``max_wait_ms`` after its
    oldest request came; while the model is busy, what comes meanwhile is the next batch. Requests
    are served in their order, and different shapes or types never share a batch.

    ``max_queue`` images may wait. When they do, a request is refused with `QueueFullError` at
    once (a service answers 503), or after the time that the caller is willing to wait. Those who
    wait for a place get it in their order. ``workers`` threads run the model: with two, one batch
    is copied to a GPU while another is computed, which needs a model that is thread safe.

    An answer is the caller's own array. An error reaches the request that caused it: see
    `run_as_batch`. A cancelled request is not computed, or its answer is dropped. The model stays
    the caller's, to be closed after the batcher.

    ``on_batch`` is called before each batch, in the thread that runs it, with the seconds that each
    of its requests has waited.

    A model of a fixed batch is run twice here, to see that no image changes another's answer; with
    ``is_per_image`` the caller knows that none does.

    Raises:
        UsageError: a limit makes no sense; or the model takes several inputs, or a fixed batch
            whose images change one another's answers.
    """

    def __init__(  # noqa: PLR0913 - options, by keyword
        self,
        model: BatchModel,
        *,
        max_batch: int = 8,
        max_wait_ms: float = 2.0,
        max_queue: int = 256,
        workers: int = 1,
        on_batch: Callable[[Sequence[float]], None] | None = None,
        is_per_image: bool = False,
    ) -> None:
        _check_limits(max_batch, max_wait_ms, max_queue, workers)
        self._model = model
        self._input = _input_of(model)
        if self._input is not None and not is_per_image:
            _require_per_image(model)
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._pid = os.getpid()
        # One lock with two conditions: workers wait for work, callers for room in the queue.
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._line = WaitingLine(max_batch, max_wait_ms / 1e3)
        self._tickets: deque[object] = deque()
        self._counts: Counter[str] = Counter()  # by the names of `BatcherStats`
        self._closing = False
        self._threads = [self._start_worker(number) for number in range(workers)]
        # Daemons, so that one that was never closed cannot keep the interpreter from ending.
        atexit.register(self.close, drain=False)

    def submit(self, images: ArrayLike, *, queue_timeout_s: float | None = 0.0) -> Answer:
        """Queue one image (C, H, W) for logits (classes,), or a few (n, C, H, W) for (n, classes).

        The array is not copied before its batch is run: leave it alone until the future is done.
        Where the queue is full, wait for ``queue_timeout_s``; ``None`` is as long as it takes.

        Raises:
            UsageError: not images of a shape and type that the model takes, more than
                ``max_batch`` of them, the batcher is closed, or it was made in another process.
            QueueFullError: no place in the queue was found in time.
        """
        self._check_process()
        array, is_single = as_images(images, self._input, self._max_batch)
        with self._room:
            self._wait_for_place(len(array), queue_timeout_s)
            request = Request(array, is_single, time.monotonic())
            self._line.add(request)
            self._counts["accepted"] += 1
            if len(self._line) == 1 or self._line.has_full_batch:
                self._work.notify()  # otherwise the time of the oldest request has not changed
        # After the lock is released: a future that is done calls back at once, and that takes the
        # lock.
        request.future.add_done_callback(self._when_done)
        return request.future

    def run(self, images: ArrayLike, *, queue_timeout_s: float | None = 0.0) -> NDArray[Any]:
        """Submit and wait for the answer; raises what the model raised for this request."""
        future = self.submit(images, queue_timeout_s=queue_timeout_s)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted caller; does nothing to one that is done
            raise
        finally:
            del future  # it holds its error, whose frames hold it

    async def run_async(self, images: ArrayLike) -> NDArray[Any]:
        """As ``run`` for asyncio: never blocks, so that a full queue is an error at once."""
        import asyncio

        return await asyncio.wrap_future(self.submit(images))

    def stats(self) -> BatcherStats:
        """The counters so far, and the number of images that wait."""
        self._check_process()
        with self._work:
            return BatcherStats(**self._counts, queued_images=self._line.images)

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, run those that wait (or cancel them), and end the threads.

        A second call does nothing, and so does one in a forked process, which has no threads.
        """
        if os.getpid() != self._pid:
            return
        with self._work:
            self._closing = True
            left = [] if drain else self._line.clear()
            self._work.notify_all()
            self._room.notify_all()
        # After the lock is released: cancel() calls back, and that takes the lock.
        for request in left:
            request.future.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a callback may close
                thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"this batcher was made in process {self._pid}, its threads are not in this one\n"
                "load the model and make the batcher after the fork"
            )

    def _wait_for_place(self, images: int, timeout_s: float | None) -> None:
        """Wait, with the lock held, for room in the queue: first come, first served."""
        ticket = object()
        self._tickets.append(ticket)
        try:
            found = self._room.wait_for(partial(self._may_enter, ticket, images), timeout_s)
            if self._closing:
                raise UsageError("the batcher is closed; make a new one")
            if not found:
                self._counts["refused"] += 1
                raise QueueFullError(
                    f"a request of {images} images found {self._line.images} waiting, "
                    f"max_queue is {self._max_queue}\n"
                    "try again later; a service answers 503"
                )
        finally:
            # Also when this one gave up: the next in line may fit in.
            self._tickets.remove(ticket)
            self._room.notify_all()

    def _may_enter(self, ticket: object, images: int) -> bool:
        # Without tickets small requests would overtake a large one for as long as they come.
        is_next = self._tickets[0] is ticket
        return self._closing or (is_next and self._line.images + images <= self._max_queue)

    def _when_done(self, future: Answer) -> None:
        if future.cancelled():
            with self._room:
                self._line.discard(future)
                self._counts["cancelled"] += 1
                self._room.notify_all()

    def _start_worker(self, number: int) -> threading.Thread:
        name = f"deploykit-batcher-{number}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        thread.start()
        return thread

    def _serve(self) -> None:
        while self._serve_batch():
            pass

    def _serve_batch(self) -> bool:
        """Wait for one batch and run it; ``False`` at the end."""
        requests = self._next_batch()
        if requests is None:
            return False
        images = [request.images for request in requests]
        if self._on_batch is not None and requests:
            now_s = time.monotonic()
            self._on_batch([now_s - request.arrived_s for request in requests])
        outcomes = run_as_batch(self._model, images) if images else iter(())
        for number, outcome in enumerate(outcomes):
            self._deliver(requests[number], outcome)
        # A caller that keeps its error keeps this frame too, and must not hold everybody's images.
        requests.clear()
        images.clear()
        return True

    def _next_batch(self) -> list[Request] | None:
        """The next batch when it is due, without what was cancelled; ``None`` at the end."""
        with self._work:
            while (due_in_s := self._line.due_in_s(time.monotonic())) != 0 and not self._closing:
                self._work.wait(due_in_s)
            if due_in_s is None:
                return None
            taken = self._line.take()
            # From here on a future cannot be cancelled any more.
            requests = [one for one in taken if one.future.set_running_or_notify_cancel()]
            self._counts["batches"] += bool(requests)
            self._counts["images"] += sum(len(request.images) for request in requests)
            self._room.notify_all()
            # What is left may be a batch for another worker.
            if len(self._line):
                self._work.notify()
            return requests

    def _deliver(self, request: Request, outcome: NDArray[Any] | BaseException) -> None:
        failed = isinstance(outcome, BaseException)
        with self._work:
            # Before the future is done, so that a caller with its answer finds it counted.
            self._counts["failed" if failed else "answered"] += 1
        if isinstance(outcome, BaseException):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome[0] if request.is_single else outcome)


def _check_limits(max_batch: int, max_wait_ms: float, max_queue: int, workers: int) -> None:
    if max_batch < 1 or workers < 1:
        raise UsageError(f"max_batch={max_batch}, workers={workers}: expected at least 1 of each")
    if not 0 <= max_wait_ms <= MAX_WAIT_MS:
        raise UsageError(f"max_wait_ms={max_wait_ms}: expected 0 to {MAX_WAIT_MS}")
    if max_queue < max_batch:
        raise UsageError(
            f"max_queue={max_queue} is less than max_batch={max_batch}\n"
            "expected room for at least one full batch"
        )


def _input_of(model: BatchModel) -> Input | None:
    specs: tuple[TensorSpec, ...] = getattr(model, "inputs", ())
    if len(specs) > 1:
        raise UsageError(
            f"the model takes {', '.join(spec.name for spec in specs)}\n"
            "a batcher gathers images for models of one input"
        )
    profile = getattr(model, "profile", None)
    known = profile if isinstance(profile, ShapeProfile) else None
    return Input(specs[0], known) if specs else None


def _require_per_image(model: BatchModel) -> None:
    import numpy as np

    from deploykit.serving.dependence import images_depend

    if images_depend(model, lambda batch: {"": np.asarray(model.run(batch))}):
        count = getattr(model, "inputs")[0].shape[0]  # noqa: B009 - `BatchModel` may have none
        raise UsageError(
            f"the model takes {count} images at once, and in a trial with noise they "
            "changed one another's answers\n"
            "a batcher would mix those of several callers: give whole batches to the model itself, "
            "or is_per_image=True where you know better"
        )

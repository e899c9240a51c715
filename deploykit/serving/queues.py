"""The way of a request's arrays through a model: gathered into batches, or one by one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deploykit.core.errors import QueueFullError
from deploykit.serving.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.runtime.classifier import Classifier
    from deploykit.serving.limits import ServiceLimits
    from deploykit.serving.metrics import ModelMetrics

    Arrays = Mapping[str, NDArray[Any]]


class Queue(Protocol):
    """Requests that wait for one model."""

    def submit(self, feeds: Arrays) -> Future[Any]:
        """Queue arrays by input; `result_of` reads the result.

        Raises:
            QueueFullError: no room.
            UsageError: not what the model takes.
        """

    def result_of(self, found: Any) -> Arrays:
        """Outputs by name."""

    @property
    def waiting(self) -> int:
        """Images that wait."""

    def close(self) -> None:
        """Run what waits, take no more."""


class _Rows:
    """A model as a batcher runs it: of several outputs, all of an image are one record."""

    def __init__(self, model: Classifier, metrics: ModelMetrics) -> None:
        self.inputs = model.inputs
        self.profile = model.profile
        self._model = model
        self._metrics = metrics

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Rows (N, ...) of the only output, or records (N,) of all."""
        self._metrics.batch(len(batch))
        with self._metrics.timed("compute"):
            found = self._model.run_all(batch)
        if len(found) == 1:
            return next(iter(found.values()))
        kinds = [(name, each.dtype, each.shape[1:]) for name, each in found.items()]
        records = np.empty(len(batch), np.dtype(kinds))
        for name, each in found.items():
            records[name] = each
        return records


class Gathered:
    """Requests of images gathered into batches."""

    def __init__(
        self, model: Classifier, max_batch: int, limits: ServiceLimits, metrics: ModelMetrics
    ) -> None:
        self._names = tuple(spec.name for spec in model.outputs)
        self._batcher = MicroBatcher(
            _Rows(model, metrics),
            max_batch=max_batch,
            max_wait_ms=limits.max_wait_ms,
            max_queue=max(limits.max_queue, max_batch),
            on_batch=metrics.waited,
            is_per_image=True,  # `ServingModel` has tried it
        )

    def submit(self, feeds: Arrays) -> Future[Any]:
        """As `Queue.submit`."""
        return self._batcher.submit(next(iter(feeds.values())))

    def result_of(self, found: Any) -> Arrays:
        """As `Queue.result_of`."""
        if len(self._names) == 1:
            return {self._names[0]: found}
        return {name: found[name] for name in self._names}

    @property
    def waiting(self) -> int:
        """As `Queue.waiting`."""
        return self._batcher.stats().queued_images

    def close(self) -> None:
        """As `Queue.close`."""
        self._batcher.close()


class OneByOne:
    """Requests of a model whose requests cannot share a batch: each is a run of its own."""

    def __init__(self, model: Classifier, limits: ServiceLimits, metrics: ModelMetrics) -> None:
        self._model = model
        self._metrics = metrics
        self._max_queue = limits.max_queue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deploykit-one-by-one")
        self._lock = threading.Lock()
        self._waiting = 0

    def submit(self, feeds: Arrays) -> Future[Any]:
        """As `Queue.submit`."""
        images = len(next(iter(feeds.values())))
        with self._lock:
            if self._waiting + images > self._max_queue:
                raise QueueFullError(
                    f"a request of {images} images found {self._waiting} waiting, "
                    f"max_queue is {self._max_queue}"
                )
            self._waiting += images
        future = self._thread.submit(self._run, feeds, images, time.monotonic())
        future.add_done_callback(lambda done: self._left(images) if done.cancelled() else None)
        return future

    def _left(self, images: int) -> None:
        with self._lock:
            self._waiting -= images

    def _run(self, feeds: Arrays, images: int, arrived_s: float) -> Arrays:
        self._left(images)
        self._metrics.waited([time.monotonic() - arrived_s])
        self._metrics.batch(images)
        with self._metrics.timed("compute"):
            return self._model.run_all(dict(feeds))

    def result_of(self, found: Any) -> Arrays:
        """As `Queue.result_of`."""
        outputs: Arrays = found
        return outputs

    @property
    def waiting(self) -> int:
        """As `Queue.waiting`."""
        return self._waiting

    def close(self) -> None:
        """As `Queue.close`."""
        self._thread.shutdown()

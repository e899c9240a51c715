"""Prometheus metrics of a service, in a registry of their own.

Names end in their unit; a label ``step`` is queue, decode, preprocess or compute.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STEPS: Final = ("queue", "decode", "preprocess", "compute")
_MODEL: Final = ("model", "version")
_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ModelMetrics:
    """What is measured of one version of a model."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._steps = {step: metrics.steps.labels(model, version, step) for step in STEPS}
        self._batches = metrics.batches.labels(model, version)
        self._queue = metrics.queue.labels(model, version)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure the block as ``step``, however it ends."""
        start = perf_counter()
        try:
            yield
        finally:
            self._steps[step].observe(perf_counter() - start)

    def waited(self, seconds: Sequence[float]) -> None:
        """A batch begins, whose requests waited so long."""
        for each in seconds:
            self._steps["queue"].observe(each)

    def batch(self, images: int) -> None:
        """A batch of so many images is run."""
        self._batches.observe(images)

    def watch_queue(self, images: Callable[[], int]) -> None:
        """Ask ``images`` how many wait whenever the metrics are read."""
        self._queue.set_function(images)


class Metrics:
    """All metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "deploykit_requests",
            "Inference requests by how they ended.",
            (*_MODEL, "protocol", "outcome"),
            **own,
        )
        self.seconds = Histogram(
            "deploykit_request_seconds",
            "Time from a request's last byte to its answer.",
            (*_MODEL, "protocol"),
            buckets=_SECONDS,
            **own,
        )
        self.steps = Histogram(
            "deploykit_step_seconds",
            "Time of each step: queue per request, decode and preprocess per image, compute per "
            "batch.",
            (*_MODEL, "step"),
            buckets=_SECONDS,
            **own,
        )
        self.batches = Histogram(
            "deploykit_batch_images", "Images per batch.", _MODEL, buckets=_IMAGES, **own
        )
        self.queue = Gauge("deploykit_queue_images", "Images that wait.", _MODEL, **own)
        self.rejected = Counter(
            "deploykit_rejected", "Requests refused for want of room.", ("why",), **own
        )
        self.in_flight = Gauge("deploykit_in_flight_requests", "Requests being worked on.", **own)
        self.held = Gauge("deploykit_held_bytes", "Bytes of requests being worked on.", **own)
        self.ready = Gauge("deploykit_ready", "1 where the golden sample agreed.", _MODEL, **own)
        ProcessCollector(registry=self.registry)
        self.registry.register(GpuMemory())

    def outcomes(self) -> dict[str, int]:
        """How many requests ended in which way."""
        found: dict[str, int] = {}
        for family in self.requests.collect():
            for sample in family.samples:
                if sample.name == "deploykit_requests_total":
                    outcome = sample.labels["outcome"]
                    found[outcome] = found.get(outcome, 0) + int(sample.value)
        return found

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)


class GpuMemory:
    """Memory of each NVIDIA GPU, where there is one and nvidia-ml-py is installed."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        if nvml is None:
            with suppress(Exception):  # not installed, or no driver: NVML has errors of its own
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Used and total bytes by the driver's number of the GPU."""
        if self._nvml is not None:
            with suppress(Exception):  # of NVML, as "GPU is lost": the other metrics are still read
                yield self._read()

    def _read(self) -> GaugeMetricFamily:
        text = "Memory of the GPU, of all processes."
        family = GaugeMetricFamily("deploykit_gpu_memory_bytes", text, labels=("gpu", "kind"))
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            family.add_metric((str(index), "used"), memory.used)
            family.add_metric((str(index), "total"), memory.total)
        return family

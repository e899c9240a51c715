"""A service without its protocols: models, places for requests, the end."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from deploykit._version import __version__
from deploykit.core.errors import DeploykitError, one_line
from deploykit.serving.decoder import Decoder
from deploykit.serving.metrics import Metrics
from deploykit.serving.refusals import Reason, RefusedError, refusal_of
from deploykit.serving.repository import BundleRepository
from deploykit.serving.served_model import ServingModel
from deploykit.serving.tracing import Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deploykit.runtime.classifier import Classifier
    from deploykit.serving.decoder import IsGone
    from deploykit.serving.limits import ServiceLimits
    from deploykit.serving.requests import InferAnswer, InferRequest

NAME: Final = "deploykit"
VERSION: Final = __version__
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "encoded_images",
)
"""Triton's names for its extensions that are spoken, and our own.

Of its ``model_repository`` the index alone is: the extension requires load and unload too.
"""

UNKNOWN_MODEL: Final = "(unknown)"
"""A model's name in metrics where there is none: names that clients invent would never end."""

log = logging.getLogger("deploykit.serving")


class UnfinishedError(DeploykitError):
    """The service should have ended, and something in it runs on."""


class Held:
    """The place of one request that is in flight, and the bytes that it holds."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.bytes = 0

    def grow(self, count: int) -> None:
        """Hold so many more bytes.

        Raises:
            RefusedError: the request, or all together, would hold too many.
        """
        limits, service = self._service.limits, self._service
        if self.bytes + count > limits.max_request_bytes:
            raise RefusedError(
                Reason.TOO_LARGE, f"a request may have {limits.max_request_bytes} bytes"
            )
        if service.held_bytes + count > limits.max_held_bytes:
            service.metrics.rejected.labels("bytes").inc()
            raise RefusedError(
                Reason.BUSY,
                f"requests in flight hold {service.held_bytes} bytes, try again later",
            )
        self.bytes += count
        service.hold(count)


class Service:
    """Loaded models, and the requests in flight; used in the event loop's thread alone."""

    def __init__(
        self, models: Sequence[tuple[str, str, Classifier]], limits: ServiceLimits
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.tracer = Tracer()
        self.models = BundleRepository(
            ServingModel(name, version, model, limits, self.metrics)
            for name, version, model in models
        )
        self._decoder = Decoder(max(each.max_pixels for each in self.models.in_order))
        self.in_flight = 0
        self.held_bytes = 0
        self.is_draining = False
        self.given_up = 0
        """Requests that were accepted and not done within the graceful time."""
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    # --- room

    @contextmanager
    def place(self) -> Iterator[Held]:
        """Hold one of ``max_in_flight`` places.

        Raises:
            RefusedError: all are taken, or the service is stopping.
        """
        if self.is_draining:
            self.metrics.rejected.labels("stopping").inc()
            raise RefusedError(Reason.STOPPING, "the service is stopping")
        if self.in_flight >= self.limits.max_in_flight:
            self.metrics.rejected.labels("in_flight").inc()
            raise RefusedError(
                Reason.BUSY, f"{self.in_flight} requests are in flight, try again later"
            )
        held = Held(self)
        self._count(1)
        try:
            yield held
        finally:
            self._count(-1)
            self.hold(-held.bytes)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.metrics.in_flight.set(self.in_flight)
        if self.in_flight:
            self._is_empty.clear()
        else:
            self._is_empty.set()

    def hold(self, change: int) -> None:
        """Count bytes that requests in flight hold."""
        self.held_bytes += change
        self.metrics.held.set(self.held_bytes)

    # --- requests

    async def infer(
        self,
        name: str,
        version: str,
        request: InferRequest,
        *,
        protocol: str,
        headers: Mapping[str, str],
        is_gone: IsGone,
    ) -> InferAnswer:
        """The answer of a model to a request that has been read.

        Raises:
            RefusedError: why there is none.
        """
        model = self.models.find(name, version)
        attributes = {"model": name, "version": model.version, "protocol": protocol}
        start = time.perf_counter()
        try:
            with self.tracer.request(headers, attributes):
                answer = await self._within_time(model, request, is_gone)
        finally:
            seconds = self.metrics.seconds.labels(name, model.version, protocol)
            seconds.observe(time.perf_counter() - start)
        return answer

    async def _within_time(
        self, model: ServingModel, request: InferRequest, is_gone: IsGone
    ) -> InferAnswer:
        limit_s = min(self.limits.infer_timeout_s, request.timeout_s or self.limits.infer_timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                return await model.infer(request, self._decoder, is_gone)
        except TimeoutError:
            raise RefusedError(Reason.TOO_SLOW, f"no answer within {limit_s:g} s") from None

    @contextmanager
    def counted(self, name: str, version: str, protocol: str) -> Iterator[None]:
        """Count an inference request by its end, and turn every error into a refusal.

        Raises:
            RefusedError: the request is not answered.
        """
        outcome = "answered"
        try:
            yield
        except asyncio.CancelledError:  # by the protocol's server, when the graceful time is over
            outcome = Reason.STOPPING.word
            raise
        except Exception as error:
            refusal = refusal_of(error)
            outcome = refusal.reason.word
            if refusal.reason in (Reason.FAILED, Reason.DEVICE):
                log.exception("a request failed")
            if refusal is error:
                raise
            raise refusal from error
        finally:
            labels = self._labels(name, version)
            self.metrics.requests.labels(*labels, protocol, outcome).inc()

    def _labels(self, name: str, version: str) -> tuple[str, str]:
        with suppress(RefusedError):
            return name, self.models.find(name, version).version
        return UNKNOWN_MODEL, ""

    # --- state

    async def problem(self, name: str | None = None, version: str = "") -> str | None:
        """Why a model, or all of them, cannot answer; ``None`` where they can.

        Raises:
            RefusedError: there is no such model.
        """
        asked = list(self.models.in_order) if name is None else [self.models.find(name, version)]
        if self.is_draining:
            return "the service is stopping"
        for each in asked:
            problem = await each.problem()
            if problem is not None:
                return f"{each.name}, version {each.version}: {problem}"
        return None

    async def drain(self) -> bool:
        """Take no more requests; whether all that there are ended within the graceful time."""
        self.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.graceful_timeout_s):
                await self._is_empty.wait()
        self.given_up = self.in_flight
        return self.given_up == 0

    def unfinished(self) -> UnfinishedError:
        """What runs on, for whoever waited for the end; may be asked from any thread."""
        computing = [
            f"{one_line(each.name)}, version {each.version}, is still computing"
            for each in self.models.in_order
            if each.is_computing
        ]
        what = "; ".join(computing) or "an image is still being decoded, or an answer written"
        requests = "1 request was" if self.given_up == 1 else f"{self.given_up} requests were"
        return UnfinishedError(
            f"{what}; {requests} given up\nthe process ends all the same: a model that hangs needs "
            "it, for a slow one raise --graceful-timeout-s or --end-timeout-s"
        )

    async def close(self) -> None:
        """Give everything back, once the models have answered what waits for them."""
        self.is_draining = True
        await asyncio.to_thread(self._decoder.close)
        for each in self.models.in_order:
            await asyncio.to_thread(each.close)

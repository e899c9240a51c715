"""A small HTTP service for one bundle: ``python docs/serving/app.py engines/resnet50-fp16``.

One process, one loaded model, its requests gathered into batches. README.md beside this file says
what each part is for.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

import deploykit
from deploykit import images
from deploykit.core.errors import (
    DataError,
    DeploykitError,
    DeviceError,
    ImageError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from deploykit import Classifier, Prediction

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Limits:
    """What the service takes on at once."""

    max_batch: int = 8
    max_wait_ms: float = 2.0
    max_in_flight: int = 256
    """Requests that are read, decoded, waiting or computed; one more is answered 503."""
    max_upload_bytes: int = 10 * 2**20
    max_pixels: int | None = None
    """Pixels of an image, and of all that are decoded at once; ``None``: by the model's input."""
    read_timeout_s: float = 10.0
    """Time for a whole request to come, from its connection or the last answer on it to the end of
    its body."""
    graceful_timeout_s: int = 8
    """Time for accepted requests after SIGTERM. Docker kills after 10 s, Kubernetes after 30."""


LARGE = 4
"""An image is large from this part of the pixel limit on: those of most telephones are not."""


class Service:
    """A loaded model with the threads that decode for it and the batcher that feeds it."""

    def __init__(self, model: Classifier, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.in_flight = 0
        self.is_closing = False
        self.max_pixels = limits.max_pixels or images.default_max_pixels(model.preprocessing)
        self._budget = images.PixelBudget(self.max_pixels)
        # Large images wait for one another, so that whoever sends many holds up nobody else.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        self._large_turn = asyncio.Lock()
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self.batcher = deploykit.MicroBatcher(
            model,
            max_batch=limits.max_batch,
            max_wait_ms=limits.max_wait_ms,
            max_queue=max(limits.max_in_flight, limits.max_batch),
        )

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of ``max_in_flight`` places; the event loop's thread only."""
        if self.in_flight >= self.limits.max_in_flight:
            raise QueueFullError(f"{self.in_flight} requests are in flight, try again later")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def classify(
        self, encoded: bytes, top_k: int, is_gone: Callable[[], Awaitable[bool]]
    ) -> list[Prediction]:
        """The likeliest classes of one encoded image; ``is_gone`` is asked after a wait."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._pixels_of, encoded)
        if pixels > self.max_pixels:  # its header refuses it: it waits for nobody
            image = await loop.run_in_executor(self._decoders, self._prepare, encoded)
        elif pixels > self.max_pixels // LARGE:
            async with self._large_turn:
                if await is_gone():  # nobody waits for what a client left behind
                    raise ClientDisconnect
                image = await loop.run_in_executor(self._large, self._prepare, encoded)
        else:
            image = await loop.run_in_executor(
                self._decoders, self._prepare_beside, encoded, pixels
            )
        outputs = await self.batcher.run_async(image)
        return self.model.head.answers(outputs[None], self.model.labels, top_k)[0]

    def close(self) -> None:
        """Answer what waits for the model, then give everything back."""
        self.is_closing = True
        for pool in (self._decoders, self._large):
            pool.shutdown(cancel_futures=True)
        self.batcher.close()
        self.model.close()

    def _pixels_of(self, encoded: bytes) -> int:
        return images.pixels_of(encoded, self.max_pixels, reduce_for=self.model.preprocessing)

    def _prepare(self, encoded: bytes) -> NDArray[np.float32]:
        if self.is_closing:
            raise QueueFullError("the service is stopping")
        steps = self.model.preprocessing
        image = images.decode(encoded, self.max_pixels, reduce_for=steps)
        return images.preprocess(image, steps)

    def _prepare_beside(self, encoded: bytes, pixels: int) -> NDArray[np.float32]:
        # Held until the pixels are gone: only what the model takes, which is small, goes on.
        with self._budget.hold(pixels):
            return self._prepare(encoded)


router = APIRouter()

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/predict", openapi_extra=IMAGE_BODY)
async def predict(
    request: Request, top_k: Annotated[int, Query(ge=1, le=100)] = 5
) -> dict[str, Any]:
    """The likeliest classes of the image in the request's body."""
    service: Service = request.app.state.service
    try:
        with service.place():
            encoded = await _read_body(request, service.limits)
            predictions = await service.classify(encoded, top_k, request.is_disconnected)
    except asyncio.CancelledError:  # by uvicorn, when the graceful time is over
        raise HTTPException(503, "the service is stopping", {"Connection": "close"}) from None
    return {"predictions": [asdict(prediction) for prediction in predictions]}


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Whether the model still gives the logits of its golden sample; 503 when it does not."""
    service: Service = request.app.state.service
    try:
        await asyncio.to_thread(service.model.self_test)
    except DeploykitError as error:
        log.exception("the golden sample failed")
        return JSONResponse({"status": "failing", "reason": str(error)}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/stats")
async def stats(request: Request) -> dict[str, Any]:
    """What runs here, and what it has done so far."""
    service: Service = request.app.state.service
    model, done = service.model, service.batcher.stats()
    return {
        "model": model.name,
        "device": model.device,
        "choice": model.choice,
        "in_flight": service.in_flight,
        "mean_batch": done.mean_batch,
        **asdict(done),
    }


async def _read_body(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_upload_bytes:
                    raise HTTPException(413, f"an image may have {limits.max_upload_bytes} bytes")
    except TimeoutError:
        detail = f"the image did not come within {limits.read_timeout_s:g} s"
        # Closed, because the rest of the body may still come and is no next request.
        raise HTTPException(408, detail, {"Connection": "close"}) from None
    return bytes(body)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    """What the caller can do something about, in words; the rest is a 500 and stays in the log."""
    if isinstance(error, DataError):
        # Options and packages of this service are nothing that its clients could change.
        detail = error.for_sender if isinstance(error, ImageError) else str(error)
        return JSONResponse({"detail": detail}, status_code=400)
    if isinstance(error, QueueFullError):
        return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})
    log.error("a request failed", exc_info=error)
    if isinstance(error, DeviceError):
        return JSONResponse({"detail": "the GPU failed"}, status_code=503)
    return JSONResponse({"detail": "the model failed"}, status_code=500)


async def _gone(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the client went away"}, status_code=400)


def create_app(load: Callable[[], Classifier], limits: Limits) -> FastAPI:
    """The application; ``load`` is called when it starts, so that it fails there if it must."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = await asyncio.to_thread(load)
        await asyncio.to_thread(model.self_test)
        log.info("%s on %s: %s", model.name, model.device, model.choice)
        app.state.service = service = Service(model, limits)
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(title="deploykit", lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(DeploykitError, _refuse)
    app.add_exception_handler(ClientDisconnect, _gone)
    return app


class TimedConnection(H11Protocol):
    """A connection that is closed when the head of a request does not come in time.

    uvicorn itself waits for it for ever. The body has its own time, in `_read_body`.
    """

    read_timeout_s = Limits.read_timeout_s
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.read_timeout_s, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        """Begin to wait for the rest of a head, or stop because it is complete."""
        super().data_received(data)
        if self._timer is not None and self._is_answering():
            self._stop_waiting()
        elif self._timer is None and not self._is_answering():
            self._timer = self.loop.call_later(self.read_timeout_s, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_idle(self) -> None:
        self._timer = None
        if not self._is_answering():
            self.transport.close()


def connection_within(read_timeout_s: float) -> type[TimedConnection]:
    """The kind of connection that uvicorn makes for each client."""
    return type("Connection", (TimedConnection,), {"read_timeout_s": read_timeout_s})


def main() -> None:
    """Read the command line and serve until interrupted."""
    defaults = Limits()
    parser = argparse.ArgumentParser(description="Serve one bundle over HTTP.")
    parser.add_argument("bundle", help="a folder that deploykit export made, or an .engine in one")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument(
        "--trust", metavar="FILE.pem", help="public key or certificates that must have signed it"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--max-batch", type=int, default=defaults.max_batch)
    parser.add_argument("--max-wait-ms", type=float, default=defaults.max_wait_ms)
    parser.add_argument("--max-in-flight", type=int, default=defaults.max_in_flight)
    parser.add_argument("--max-upload-bytes", type=int, default=defaults.max_upload_bytes)
    parser.add_argument("--max-pixels", type=int, help="default: 256 for each of the model's input")
    parser.add_argument("--read-timeout-s", type=float, default=defaults.read_timeout_s)
    parser.add_argument("--graceful-timeout-s", type=int, default=defaults.graceful_timeout_s)
    given = vars(parser.parse_args())
    limits = Limits(**{field.name: given[field.name] for field in fields(Limits)})
    images.require_max_pixels(limits.max_pixels)
    load = partial(deploykit.load, given["bundle"], device=given["device"], trust=given["trust"])
    uvicorn.run(
        create_app(load, limits),
        host=given["host"],
        port=given["port"],
        http=connection_within(limits.read_timeout_s),
        timeout_graceful_shutdown=limits.graceful_timeout_s,
    )


if __name__ == "__main__":
    main()

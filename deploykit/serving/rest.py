"""The Open Inference Protocol over HTTP: paths, bodies, status codes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploykit.serving import metrics
from deploykit.serving.refusals import RETRY_AFTER_S, Reason, RefusedError, invalid
from deploykit.serving.requests import InferRequest, Wanted, from_http, to_http
from deploykit.serving.service import EXTENSIONS, NAME, VERSION
from deploykit.serving.tensors import BYTES, Tensor

if TYPE_CHECKING:
    from starlette.requests import Request

    from deploykit.core.specs import TensorSpec
    from deploykit.serving.served_model import ServingModel
    from deploykit.serving.service import Held, Service

PROTOCOL: Final = "http"
JSON_LENGTH: Final = "Inference-Header-Content-Length"
_CLASSIFICATION: Final = "classification"
"""Of a query and of an output's parameters: how many classes."""

_IN_THREAD_BYTES: Final = 256 * 1024
"""Bodies from this size on are parsed beside the event loop."""


def create_app(service: Service) -> Starlette:
    """The application over a service, which stays the caller's to close."""
    faces = _Faces(service)
    model = "/v2/models/{model}"
    version = f"{model}/versions/{{version}}"
    routes = [
        Route("/v2", faces.server),
        Route("/v2/health/live", faces.live),
        Route("/v2/health/ready", faces.ready),
        Route("/v2/repository/index", faces.index, methods=["GET", "POST"]),
        Route("/v2/repository/models/{model}/{action:path}", _no_control, methods=["POST"]),
        Route("/metrics", faces.metrics),
        *(Route(path, faces.model) for path in (model, version)),
        *(Route(f"{path}/ready", faces.model_ready) for path in (model, version)),
        *(Route(f"{path}/infer", faces.infer, methods=["POST"]) for path in (model, version)),
    ]
    handlers: Any = {
        RefusedError: _refused,
        HTTPException: _no_such_path,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Faces:
    """What each path answers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def server(self, _: Request) -> Response:
        return JSONResponse({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})

    async def live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        problem = await self._service.problem()
        state: dict[str, Any] = {"live": True, "ready": problem is None}
        return _state(state, problem)

    async def index(self, _: Request) -> Response:
        entries = []
        for each in self._service.models.in_order:
            problem = await self._service.problem(each.name, each.version)
            state = {"state": "READY" if problem is None else "UNAVAILABLE"}
            entries.append(
                {"name": each.name, "version": each.version, **state, "reason": problem or ""}
            )
        return JSONResponse(entries)

    async def metrics(self, _: Request) -> Response:
        text = self._service.metrics.text()
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def model(self, request: Request) -> Response:
        model = self._service.models.find(*_named(request))
        found = described(model, self._service.models.versions_of(model.name))
        if model.pixels:  # gRPC's message has no field for it
            found["inputs"][0]["parameters"] = model.pixels
        return JSONResponse(found)

    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        problem = await self._service.problem(name, version)
        return _state({"name": name, "ready": problem is None}, problem)

    async def infer(self, request: Request) -> Response:
        name, version = _named(request)
        try:
            with self._service.counted(name, version, PROTOCOL):
                return await self._answered(request, name, version)
        except asyncio.CancelledError:  # by uvicorn, when the graceful time is over
            stopping = RefusedError(Reason.STOPPING, "the service is stopping")
            return _refused(request, stopping)

    async def _answered(self, request: Request, name: str, version: str) -> Response:
        service = self._service
        with service.place() as held:
            service.models.find(name, version)
            _require_known_query(request)
            body = await _read(request, held, service)
            asked = await self._parsed(request, body, name, version)
            del body  # an array of it may live on
            answer = await service.infer(
                name,
                version,
                asked,
                protocol=PROTOCOL,
                headers=dict(request.headers),
                is_gone=request.is_disconnected,
            )
            content, json_length = to_http(answer)
        if json_length is None:
            return Response(content, media_type="application/json")
        headers = {JSON_LENGTH: str(json_length)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    async def _parsed(
        self, request: Request, body: memoryview, name: str, version: str
    ) -> InferRequest:
        if _is_image(request):
            model = self._service.models.find(name, version)
            return _image_request(bytes(body), request, model)
        length = request.headers.get(JSON_LENGTH)
        if len(body) < _IN_THREAD_BYTES:
            return from_http(body, length)
        return await asyncio.to_thread(from_http, body, length)


async def _no_control(request: Request) -> Response:
    """Triton's load and unload."""
    action = request.path_params["action"]
    if action not in ("load", "unload"):
        raise HTTPException(404)
    raise invalid(
        f"a model cannot be {action}ed while the service runs: start it again with the bundles "
        "that it shall serve"
    )


def described(model: ServingModel, versions: list[str]) -> dict[str, Any]:
    """A model's metadata."""
    return {
        "name": model.name,
        "versions": versions,
        "platform": model.platform,
        "inputs": [_tensor(*each) for each in model.inputs.values()],
        "outputs": [_tensor(*each) for each in model.outputs.values()],
    }


def sizes_of(spec: TensorSpec) -> list[int]:
    """A shape as the protocol has it: -1 is an open dimension."""
    return [-1 if isinstance(dim, str) else dim for dim in spec.shape]


def _tensor(datatype: str, spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype, "shape": sizes_of(spec)}


def _named(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _word(request: Request, header: str) -> str:
    """A header whose words are the same in capitals (RFC 9110, 8.3.1 and 8.4.1)."""
    return request.headers.get(header, "").strip().lower()


def _is_image(request: Request) -> bool:
    """Whether the body is one encoded image."""
    return _word(request, "content-type").startswith("image/")


def _require_known_query(request: Request) -> None:
    """Refuse words behind the ``?`` of a path that would be ignored.

    Raises:
        RefusedError: a word is unknown, or is not for this kind of body.
    """
    unknown = [word for word in request.query_params if word != _CLASSIFICATION]
    if unknown:
        raise invalid(
            f"the query has {unknown[0]!r:.40}, possible: {_CLASSIFICATION}=N, for an image as "
            "the body"
        )
    if _CLASSIFICATION in request.query_params and not _is_image(request):
        raise invalid(
            f"?{_CLASSIFICATION}=N is for an image as the body, with its Content-Type: image/...; "
            f'in JSON it is a parameter of an output: {{"{_CLASSIFICATION}": N}}'
        )


def _image_request(encoded: bytes, request: Request, model: ServingModel) -> InferRequest:
    """A body that is one encoded image: every output, or the ``?classification=N`` best classes.

    Raises:
        RefusedError: no such number.
    """
    text = request.query_params.get(_CLASSIFICATION, "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):  # noqa: PLR2004
        raise invalid(f"classification is {text!r:.40}, expected a number of classes")
    name = model.model.inputs[0].name
    first = model.model.outputs[0].name
    wanted = (Wanted(first, classes=int(text)),) if int(text) else ()
    return InferRequest((Tensor(name, BYTES, (1,), [encoded]),), wanted)


async def _read(request: Request, held: Held, service: Service) -> memoryview:
    """The body, within the limits of size and time."""
    if _word(request, "content-encoding") not in ("", "identity"):
        raise RefusedError(Reason.ENCODED, "a compressed body is not taken: send it as it is")
    limits = service.limits
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and len(said) < 20 and int(said) > limits.max_request_bytes:  # noqa: PLR2004
        raise RefusedError(Reason.TOO_LARGE, f"a request may have {limits.max_request_bytes} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_timeout_s):
            async for chunk in request.stream():
                held.grow(len(chunk))
                body += chunk
    except TimeoutError:
        text = f"the request did not come within {limits.read_timeout_s:g} s"
        raise RefusedError(Reason.NOT_READ, text) from None
    except ClientDisconnect:
        raise invalid("the client went away") from None
    return memoryview(body).toreadonly()


def _state(state: dict[str, Any], problem: str | None) -> Response:
    if problem is None:
        return JSONResponse(state)
    return JSONResponse(state | {"reason": problem}, status_code=503)


def _refused(_: Request, error: RefusedError) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.reason.is_retryable else {}
    if error.reason in (Reason.NOT_READ, Reason.STOPPING):
        # Of the former the rest may still come, and is no next request.
        headers["Connection"] = "close"
    return JSONResponse({"error": str(error)}, status_code=error.reason.http, headers=headers)


async def _no_such_path(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path:.200}"
    text = {404: f"there is no {what}", 405: f"no method {what}"}.get(
        error.status_code, error.detail
    )
    return JSONResponse({"error": text}, status_code=error.status_code, headers=error.headers)

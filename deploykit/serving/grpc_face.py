"""The Open Inference Protocol over gRPC: messages, status codes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

from deploykit.serving.compiled import SERVICE, message
from deploykit.serving.refusals import RETRY_AFTER_S, Reason, RefusedError, invalid
from deploykit.serving.requests import (
    InferRequest,
    Wanted,
    checked_id,
    classes_of,
    refuse_shared_memory,
    timeout_of,
)
from deploykit.serving.rest import described
from deploykit.serving.service import EXTENSIONS, NAME, VERSION
from deploykit.serving.tensors import BYTES, Tensor, from_list, from_raw, to_raw

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
    )

    from deploykit.serving.limits import ServiceLimits
    from deploykit.serving.requests import InferAnswer
    from deploykit.serving.service import Service

PROTOCOL: Final = "grpc"
_FIELD_OF: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where a tensor's values are that did not come as bytes; FP16 comes as bytes alone."""

_OVERHEAD_BYTES: Final = 64 * 1024
"""Of a message beside its tensors."""

_HURRIED_S: Final = 1.0
"""Time for a message while other calls wait to be read."""


def create_server(service: Service) -> Any:
    """A server of ``grpc.aio`` over a service, without a port; made in the event loop's thread."""
    faces = _Faces(service)
    server = grpc.aio.server(options=_options(service.limits))
    unary = {
        "ServerLive": faces.live,
        "ServerReady": faces.ready,
        "ModelReady": faces.model_ready,
        "ServerMetadata": faces.server,
        "ModelMetadata": faces.model,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(answer, **_codecs(name))
        for name, answer in unary.items()
    }
    # As a stream, which is the same on the wire: so its place is taken, and the time for it to
    # come begins, before its message is there.
    handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
        faces.infer, **_codecs("ModelInfer")
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return server


def _codecs(name: str) -> dict[str, Any]:
    return {
        "request_deserializer": message(f"{name}Request").FromString,
        "response_serializer": message(f"{name}Response").SerializeToString,
    }


def _options(limits: ServiceLimits) -> list[tuple[str, int]]:
    """Channel arguments of https://grpc.github.io/grpc/core/group__grpc__arg__keys.html."""
    return [
        ("grpc.so_reuseport", 0),  # otherwise two services would share a port without a word
        ("grpc.max_receive_message_length", limits.max_request_bytes + _OVERHEAD_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.max_concurrent_streams", limits.max_in_flight),
        # What a call may send before its message is read; the first grows with a fast line.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _OVERHEAD_BYTES),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.server_handshake_timeout_ms", round(limits.read_timeout_s * 1e3)),
    ]


class _Turns:
    """Who reads a message: as many at once as messages of the largest size may be held.

    gRPC reads a message whole and says its size afterwards, so that it cannot be refused before.
    Whoever keeps others waiting, as by a call without a message, has a second for it.
    """

    def __init__(self, limits: ServiceLimits) -> None:
        self._limit_s = limits.read_timeout_s
        self._free = asyncio.Semaphore(max(1, limits.max_held_bytes // limits.max_request_bytes))
        self._readers: dict[asyncio.Timeout, float] = {}
        """The end of each one's time, and when it began."""
        self._waiting = 0

    async def read(self, requests: AsyncIterator[Any]) -> Any:
        """The message of a call; ``None`` where grpc itself has refused it, as for its size.

        Raises:
            RefusedError: it did not come in time, or others were not read in time.
        """
        await self._turn()
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._limit_s) as end:
                self._readers[end] = now_s
                if self._waiting:
                    self._hurry()
                return await _only_one(requests)
        except TimeoutError:
            raise self._refusal(asyncio.get_running_loop().time() - now_s) from None
        finally:
            self._readers.pop(end, None)
            self._free.release()

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            if self._free.locked():
                self._hurry()
            async with asyncio.timeout(self._limit_s):
                await self._free.acquire()
        except TimeoutError:
            raise RefusedError(
                Reason.BUSY, f"other requests were read for {self._limit_s:g} s, try again later"
            ) from None
        finally:
            self._waiting -= 1

    def _hurry(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for end, start_s in self._readers.items():
            due_s = max(now_s, start_s + min(_HURRIED_S, self._limit_s))
            if not end.expired() and due_s < (end.when() or due_s):
                end.reschedule(due_s)

    def _refusal(self, after_s: float) -> RefusedError:
        if after_s < self._limit_s:
            text = f"the request did not come within {_HURRIED_S:g} s, and others waited for it"
            return RefusedError(Reason.BUSY, text)
        text = f"the request did not come within {self._limit_s:g} s"
        return RefusedError(Reason.NOT_READ, text)


class _Faces:
    """What each call answers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turns = _Turns(service.limits)

    async def live(self, _request: Any, _context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def ready(self, _request: Any, _context: Any) -> Any:
        problem = await self._service.problem()
        return message("ServerReadyResponse")(ready=problem is None)

    async def server(self, _request: Any, _context: Any) -> Any:
        return message("ServerMetadataResponse")(name=NAME, version=VERSION, extensions=EXTENSIONS)

    async def model_ready(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            problem = await self._service.problem(request.name, request.version)
            return message("ModelReadyResponse")(ready=problem is None)

        return await _or_abort(answer, context)

    async def model(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            models = self._service.models
            model = models.find(request.name, request.version)
            return message("ModelMetadataResponse")(
                **described(model, models.versions_of(model.name))
            )

        return await _or_abort(answer, context)

    async def infer(self, requests: AsyncIterator[Any], context: Any) -> Any:
        return await _or_abort(lambda: self._infer(requests, context), context)

    async def _infer(self, requests: AsyncIterator[Any], context: Any) -> Any:
        service = self._service
        with service.place() as held:
            request = await self._turns.read(requests)
            if request is None:
                return message("ModelInferResponse")()
            name, version = request.model_name, request.model_version
            with service.counted(name, version, PROTOCOL):
                held.grow(request.ByteSize())
                asked = from_message(request)
                del request  # its bytes are in the arrays once more
                answer = await service.infer(
                    name,
                    version,
                    asked,
                    protocol=PROTOCOL,
                    headers=_headers(context),
                    is_gone=lambda: _is_done(context),
                )
        return to_message(answer)


async def _only_one(requests: AsyncIterator[Any]) -> Any:
    # Closed, because the iterator keeps the bytes of what it gave last as long as its call lives.
    async with aclosing(cast("AsyncGenerator[Any]", aiter(requests))) as one:
        return await anext(one, None)


async def _or_abort(answer: Callable[[], Awaitable[Any]], context: Any) -> Any:
    """The answer, or the call's end with the status of its refusal."""
    try:
        return await answer()
    except RefusedError as error:
        # Not the error itself: a frame that holds it would be held by it, and with it the message.
        reason, text = error.reason, str(error)
    if reason.is_retryable:
        # https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(RETRY_AFTER_S * 1000)),))
    return await context.abort(getattr(grpc.StatusCode, reason.grpc), text)


async def _is_done(context: Any) -> bool:
    return bool(context.cancelled())


def _headers(context: Any) -> dict[str, str]:
    found: Iterable[tuple[str, str | bytes]] = context.invocation_metadata() or ()
    return {key: value for key, value in found if isinstance(value, str)}


def from_message(given: Any) -> InferRequest:
    """The request in a ModelInferRequest.

    Raises:
        RefusedError: it is not whole.
    """
    raw = given.raw_input_contents
    if raw and len(raw) != len(given.inputs):
        raise invalid(f"{len(raw)} raw_input_contents came for {len(given.inputs)} inputs")
    inputs = tuple(
        _tensor(each, raw[index] if raw else None) for index, each in enumerate(given.inputs)
    )
    wanted = tuple(map(_wanted, given.outputs))
    timeout_s = timeout_of(_plain(given.parameters))
    return InferRequest(inputs, wanted, id=checked_id(given.id), timeout_s=timeout_s)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in chosen.items() if kind}


def _wanted(given: Any) -> Wanted:
    parameters = _plain(given.parameters)
    refuse_shared_memory(f"output {given.name!r:.80}", parameters)
    return Wanted(given.name, classes=classes_of(given.name, parameters))


def _tensor(given: Any, raw: bytes | None) -> Tensor:
    refuse_shared_memory(f"input {given.name!r:.80}", _plain(given.parameters))
    shape = tuple(given.shape)
    if raw is not None:
        if given.HasField("contents"):
            raise invalid(f"input {given.name!r:.80} has contents beside raw_input_contents")
        return from_raw(given.name, given.datatype, shape, memoryview(raw))
    field = _FIELD_OF.get(given.datatype)
    # An unknown type is refused by its name there.
    values = () if field is None else getattr(given.contents, field)
    others = [one.name for one, _ in given.contents.ListFields() if one.name != field]
    if others:
        expected = field or "raw_input_contents"
        raise invalid(
            f"input {given.name!r:.80} is {given.datatype!r:.40} and has {others[0]}, expected "
            f"{expected}"
        )
    return from_list(given.name, given.datatype, shape, values)


def to_message(answer: InferAnswer) -> Any:
    """A ModelInferResponse with its tensors as bytes, which gRPC carries fastest."""
    made = message("ModelInferResponse")(
        model_name=answer.model, model_version=answer.version, id=answer.id
    )
    for tensor, _ in answer.outputs:
        made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        made.raw_output_contents.append(to_raw(tensor))
    return made

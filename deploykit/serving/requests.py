"""Requests of the Open Inference Protocol, and what HTTP makes of them.

JSON by https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md,
tensors behind it by Triton's binary tensor extension, classes in place of values by its
classification extension.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from deploykit.core.errors import first_line
from deploykit.core.sizes import shape_text
from deploykit.serving.refusals import Reason, RefusedError, invalid
from deploykit.serving.tensors import BYTES, Tensor, from_list, from_raw, to_list, to_raw

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_ID: Final = 1024
"""Characters of an id, which is sent back."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for; with ``classes`` its so many largest values in words."""

    name: str
    is_binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a model is asked; no ``wanted`` are all outputs, binary if ``is_binary``."""

    inputs: tuple[Tensor, ...]
    wanted: tuple[Wanted, ...] = ()
    is_binary: bool = False
    id: str = ""
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """What a model answered, in the order of what was asked for."""

    model: str
    version: str
    id: str
    outputs: tuple[tuple[Tensor, Wanted], ...]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class _Body(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] = msgspec.field(default_factory=list)
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    id: str = ""


def from_http(body: memoryview, json_length: str | None) -> InferRequest:
    """The request in an HTTP body; ``json_length`` is Inference-Header-Content-Length.

    Raises:
        RefusedError: it is not one, or not whole.
    """
    split = _json_bytes(len(body), json_length)
    parsed = _decode(body[:split], _Body, "the request")
    rest = _Rest(body[split:])
    inputs = tuple(_tensor(each, rest) for each in parsed.inputs)
    rest.require_empty()
    is_binary = _flag(parsed.parameters, "binary_data_output", default=False)
    wanted = tuple(_wanted(each, is_binary=is_binary) for each in parsed.outputs)
    return InferRequest(
        inputs, wanted, is_binary, checked_id(parsed.id), timeout_of(parsed.parameters)
    )


def checked_id(text: str) -> str:
    """An id that can be sent back.

    Raises:
        RefusedError: it is too long.
    """
    if len(text) > MAX_ID:
        raise invalid(f"the id has {len(text)} characters, at most {MAX_ID}")
    return text


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Triton's ``timeout``, microseconds, in seconds.

    Raises:
        RefusedError: it is no time.
    """
    given = parameters.get("timeout")
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise invalid(f"timeout is {given!r:.40}, expected microseconds, 1 or more")
    return given / 1e6


def classes_of(name: str, parameters: Mapping[str, Any]) -> int:
    """``classification`` of a requested output: how many classes, 0 for its values.

    Raises:
        RefusedError: it is no such number.
    """
    given = parameters.get("classification", 0)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise invalid(f"output {name!r:.80}: classification is {given!r:.40}, expected 0 or more")
    return given


def refuse_shared_memory(what: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a tensor that Triton's shared memory extension moves beside the request.

    Left alone, an output would be answered elsewhere than where its client reads it.

    Raises:
        RefusedError: its parameters name a region.
    """
    if "shared_memory_region" in parameters:
        raise invalid(
            f"{what} names a region of shared memory, which is not taken: values come and go in "
            "the request and its answer"
        )


def to_http(answer: InferAnswer) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where tensors follow it as bytes.

    Raises:
        RefusedError: an output cannot be said in JSON.
    """
    described, tails = [], []
    for tensor, wanted in answer.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if wanted.is_binary:
            tails.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = _json_values(tensor)
        described.append(entry)
    head = {"model_name": answer.model, "model_version": answer.version}
    head |= {"id": answer.id} if answer.id else {}
    text = msgspec.json.encode(head | {"outputs": described})
    return b"".join((text, *tails)), len(text) if tails else None


def _json_values(tensor: Tensor) -> list[Any]:
    try:
        return to_list(tensor)
    except ValueError as error:
        raise RefusedError(
            Reason.FAILED, f"output {error}, which JSON does not have: ask for binary_data"
        ) from error


def _json_bytes(length: int, given: str | None) -> int:
    """Bytes of the JSON at the beginning of a body of ``length``."""
    if given is None:
        return length
    # isdecimal() alone knows digits of other scripts, and int() reads as many as there are.
    if not (given.isascii() and given.isdecimal() and len(given) < 20):  # noqa: PLR2004
        raise invalid(f"Inference-Header-Content-Length is {given!r:.40}, expected a number")
    if int(given) > length:
        raise invalid(f"Inference-Header-Content-Length is {given}, the body has {length} bytes")
    return int(given)


def _decode(text: memoryview, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError as error:
        raise invalid(f"{what} is nested too deeply") from error
    # UnicodeDecodeError of text that is no UTF-8 is a ValueError, as are msgspec's own.
    except ValueError as error:
        raise invalid(f"{what} is no JSON of the protocol: {first_line(error)}") from error


class _Rest:
    """The bytes after the JSON, handed out in the order of the inputs."""

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self._at = 0

    def take(self, name: str, size: Any) -> memoryview:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise invalid(f"input {name!r:.80}: binary_data_size is {size!r:.40}, expected bytes")
        left = len(self._raw) - self._at
        if size > left:
            raise invalid(
                f"input {name!r:.80}: binary_data_size is {size}, {left} bytes are left of the body"
            )
        self._at += size
        return self._raw[self._at - size : self._at]

    def require_empty(self) -> None:
        left = len(self._raw) - self._at
        if left:
            raise invalid(f"{left} bytes follow the inputs, which no binary_data_size names")


def _tensor(given: _Input, rest: _Rest) -> Tensor:
    refuse_shared_memory(f"input {given.name!r:.80}", given.parameters)
    size = given.parameters.get("binary_data_size")
    if (memoryview(given.data).nbytes > 0) == (size is not None):
        raise invalid(f"input {given.name!r:.80}: expected either data or binary_data_size")
    if size is not None:
        return from_raw(given.name, given.datatype, given.shape, rest.take(given.name, size))
    return from_list(given.name, given.datatype, given.shape, _values(given))


def _values(given: _Input) -> Sequence[Any]:
    """The flat values of JSON data, which may also be nested in its shape."""
    what, raw = f"data of input {given.name!r:.80}", memoryview(given.data)
    kind = _json_kind(given.datatype)
    try:
        flat = msgspec.json.decode(raw, type=list[kind])  # type: ignore[valid-type]
    except (RecursionError, ValueError):
        flat = _flattened(_decode(raw, list[Any], what), kind, what, given.shape)
    if given.datatype != BYTES:
        return flat
    return [_element(text, given, what) for text in flat]


def _json_kind(datatype: str) -> Any:
    """Python's type of a JSON value; an unknown type is refused where the tensor is made."""
    if datatype in ("BOOL", BYTES):
        return bool if datatype == "BOOL" else str
    if datatype.startswith("FP"):
        return float
    return int if datatype.startswith(("INT", "UINT")) else Any


def _flattened(values: list[Any], kind: Any, what: str, shape: list[int]) -> list[Any]:
    """Values of nested lists, level by level; their depth is limited by the decoder.

    Lists nested otherwise than the shape are refused: (1, H, W, 3) has as many values as
    (1, 3, H, W). Axes of one may be left out or added, which moves no value.
    """
    sizes = [len(values)]
    while any(isinstance(each, list) for each in values):
        if not all(isinstance(each, list) for each in values):
            raise invalid(f"{what} mixes values and lists")
        if len({len(each) for each in values}) > 1:
            raise invalid(f"{what} has lists of different lengths")
        sizes.append(len(values[0]))
        values = [value for each in values for value in each]
    if len(sizes) > 1 and [size for size in sizes if size != 1] != [n for n in shape if n != 1]:
        raise invalid(
            f"{what} is nested as {shape_text(tuple(sizes)):.80}, its shape is "
            f"{shape_text(tuple(shape)):.80}: expected lists of this shape, or one flat list"
        )
    try:
        return msgspec.convert(values, list[kind])
    except ValueError as error:
        raise invalid(f"{what}: {first_line(error)}") from error


def _element(text: str, given: _Input, what: str) -> bytes:
    if given.parameters.get("content_type") != "base64":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{what} is no base64: {error}") from error


def _wanted(given: _Output, *, is_binary: bool) -> Wanted:
    refuse_shared_memory(f"output {given.name!r:.80}", given.parameters)
    binary = _flag(given.parameters, "binary_data", default=is_binary)
    return Wanted(given.name, binary, classes_of(given.name, given.parameters))


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    given = parameters.get(name, default)
    if not isinstance(given, bool):
        raise invalid(f"{name} is {given!r:.40}, expected true or false")
    return given

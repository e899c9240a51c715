"""Tensors of the Open Inference Protocol: names of types, sizes, values as bytes and as lists.

Types: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
(Tensor Data Types). Bytes are Triton's binary tensor extension, which gRPC's raw contents share:
little-endian, row-major, an element of BYTES after its length as uint32.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import UsageError
from deploykit.core.sizes import shape_text
from deploykit.serving.refusals import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.core.specs import TensorSpec

BYTES: Final = "BYTES"
_NUMPY_OF: Final = {
    "BOOL": "bool",
    **{
        f"{kind}{bits}": f"{kind.lower()}{bits}"
        for kind in ("UINT", "INT")
        for bits in (8, 16, 32, 64)
    },
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_DATATYPE_OF: Final = {numpy: datatype for datatype, numpy in _NUMPY_OF.items()}
_LENGTH_BYTES: Final = 4
_MOST_DIMENSIONS: Final = 16
"""More than any model has; numpy itself stops at 64."""


def datatype_of(spec: TensorSpec) -> str:
    """The protocol's name of a tensor's type.

    Raises:
        UsageError: it has none, as bfloat16.
    """
    if spec.dtype not in _DATATYPE_OF:
        raise UsageError(
            f"{spec.name!r} is of type {spec.dtype}, which the protocol has no name for\n"
            f"expected one of: {', '.join(_DATATYPE_OF)}"
        )
    return _DATATYPE_OF[spec.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor in a request or an answer: an array, or the elements of a BYTES tensor in order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]

    @property
    def array(self) -> NDArray[Any]:
        """The values of any type but BYTES, in their shape."""
        assert isinstance(self.values, np.ndarray)  # noqa: S101 - by its datatype
        return self.values

    @property
    def elements(self) -> list[bytes]:
        """The elements of a BYTES tensor."""
        assert isinstance(self.values, list)  # noqa: S101 - by its datatype
        return self.values


def output_tensor(name: str, array: NDArray[Any]) -> Tensor:
    """An output of a model."""
    return Tensor(name, _DATATYPE_OF[array.dtype.name], array.shape, array)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> Tensor:
    """A tensor whose values came as bytes, without a copy where they lie aligned.

    Raises:
        RefusedError: an unknown type, a size below zero, or another number of bytes than type and
            shape have.
    """
    count = _count(name, datatype, shape)
    if datatype == BYTES:
        return Tensor(name, datatype, tuple(shape), _split(name, raw, count))
    dtype = np.dtype(_NUMPY_OF[datatype]).newbyteorder("<")
    expected = count * dtype.itemsize
    if len(raw) != expected:
        raise invalid(
            f"input {name!r} came as {len(raw)} bytes, {datatype} {_text(shape)} has {expected}"
        )
    array = np.frombuffer(raw, dtype).reshape(tuple(shape))
    # onnxruntime takes an array's address as it is, and a body's JSON ends anywhere.
    return Tensor(name, datatype, tuple(shape), array if array.flags.aligned else array.copy())


def from_list(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """A tensor whose values came as a flat list of the type that the protocol gives it.

    Raises:
        RefusedError: an unknown type, a size below zero, another number of values than the shape
            has, or one outside the type's range.
    """
    count = _count(name, datatype, shape)
    if len(values) != count:
        raise invalid(f"input {name!r} has {len(values)} values, {_text(shape)} has {count}")
    if datatype == BYTES:
        return Tensor(name, datatype, tuple(shape), list(values))
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, _NUMPY_OF[datatype]).reshape(tuple(shape))
    except (OverflowError, ValueError, TypeError) as error:
        raise invalid(f"input {name!r} has a value that is no {datatype}: {error}") from error
    return Tensor(name, datatype, tuple(shape), array)


def to_raw(tensor: Tensor) -> bytes:
    """The values of a tensor as bytes."""
    if tensor.datatype != BYTES:
        array = tensor.array
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = (len(each).to_bytes(_LENGTH_BYTES, "little") + each for each in tensor.elements)
    return b"".join(parts)


def to_list(tensor: Tensor) -> list[Any]:
    """The values of a tensor as a flat list; elements of BYTES as text.

    Raises:
        ValueError: NaN or infinite values, or bytes that are no UTF-8, none of which JSON has.
    """
    if tensor.datatype == BYTES:
        return [each.decode() for each in tensor.elements]
    array = tensor.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{tensor.name!r} has NaN or infinite values")
    flat: list[Any] = array.reshape(-1).tolist()
    return flat


def _count(name: str, datatype: str, shape: Sequence[int]) -> int:
    if datatype != BYTES and datatype not in _NUMPY_OF:
        known = ", ".join((*_NUMPY_OF, BYTES))
        raise invalid(f"input {name!r:.80} is of type {datatype!r:.40}; possible: {known}")
    if len(shape) > _MOST_DIMENSIONS:
        raise invalid(f"input {name!r:.80} has {len(shape)} dimensions, at most {_MOST_DIMENSIONS}")
    if any(size < 0 for size in shape):
        raise invalid(f"input {name!r:.80} has the shape {_text(shape)}: a size is below zero")
    return prod(shape)


def _split(name: str, raw: memoryview, count: int) -> list[bytes]:
    elements, at = [], 0
    if count * _LENGTH_BYTES > len(raw):
        raise invalid(f"input {name!r} ends before its {count} elements: {len(raw)} bytes")
    for index in range(count):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or at > len(raw):
            raise invalid(f"input {name!r} ends in the middle of element {index}")
        elements.append(bytes(raw[start:at]))
    if at != len(raw):
        raise invalid(f"input {name!r} has {len(raw) - at} bytes after its {count} elements")
    return elements


def _text(shape: Sequence[int]) -> str:
    return f"{shape_text(shape):.80}"

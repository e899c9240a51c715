"""Weights that an ``.onnx`` file keeps in other files: checked first, then taken in.

An external tensor is a file name that a stranger wrote. Whoever opens the model opens that file,
so this stands before the checker and onnxruntime.
"""

from __future__ import annotations

from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from deploykit.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator


def embed_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Read every external tensor of the model at ``path`` into ``proto``.

    Raises:
        ModelFileError: the data lies outside the model's own folder, is missing or too short.
    """
    tensors = (item for item in messages_of(proto) if isinstance(item, onnx.TensorProto))
    external = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
    sources = [(tensor, _locate(tensor, path)) for tensor in external]
    for tensor, source in sources:
        tensor.raw_data = _read(tensor, source, path)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def messages_of(message: Message) -> Iterator[Message]:
    """``message`` and everything below it: nodes, subgraphs, functions, tensors, entries."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in (value,) if isinstance(value, Message) else value:
                yield from messages_of(child)


def _locate(tensor: onnx.TensorProto, path: Path) -> Path:
    folder = path.parent.resolve()
    # A key may stand there twice, and readers differ in which one they follow.
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    outside = next((name for name in locations if not _is_within(folder, name)), None)
    if outside is not None or not locations:
        raise ModelFileError(
            f"{path.name} keeps {tensor.name!r} in {outside or ''!r}, outside its own folder\n"
            "this is refused; put the external data beside the .onnx file"
        )
    missing = next((name for name in locations if not (folder / name).is_file()), None)
    if missing is not None:
        raise ModelFileError(f"{path.name} needs {missing!r} beside it, which is missing")
    return folder / str(locations[-1])


def _is_within(folder: Path, name: str) -> bool:
    if not name or "\0" in name or Path(name).is_absolute():
        return False
    return (folder / name).resolve().is_relative_to(folder)  # follows symbolic links


def _read(tensor: onnx.TensorProto, source: Path, path: Path) -> bytes:
    try:
        size, offset, length = _extent(tensor)
    except (TypeError, ValueError) as exc:
        raise ModelFileError(
            f"{path.name} does not say where {tensor.name!r} lies in {source.name!r}: {exc}"
        ) from exc
    try:
        present = max(min(length, source.stat().st_size - offset), 0)
        if present != size or offset < 0:
            raise ModelFileError(
                f"{path.name} needs {size:,} bytes of {source.name!r} for {tensor.name!r}, "
                f"there are {present:,}\ncopy both files again"
            )
        with source.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as exc:
        raise ModelFileError(f"cannot read {source}: {exc.strerror}") from exc


def _extent(tensor: onnx.TensorProto) -> tuple[int, int, int]:
    """Bytes that the shape and type ask for; offset and length that the model gives."""
    keys = {entry.key: entry.value for entry in tensor.external_data}
    size = ceil(prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
    return size, int(keys.get("offset", 0)), int(keys.get("length", size))

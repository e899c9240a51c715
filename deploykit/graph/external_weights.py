"""Weights apart from their graph: handed to a runner, or in files beside an ``.onnx``."""

from __future__ import annotations

import hashlib
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from deploykit.core.errors import ModelFileError
from deploykit.core.specs import SplitGraph

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.core.specs import Array


PROTOBUF_LIMIT_BYTES: Final = 2**31 - 1
"""Longest protobuf message."""

SMALLEST_WEIGHT_BYTES: Final = 1024
"""Smaller constants stay in the graph, as shape inference and folding read them."""

ALIGNMENT_BYTES: Final = 4096
"""Alignment of weights in a file: a memory page, so that each can be mapped by itself."""

WEIGHT_TYPES: Final = frozenset(
    {
        ir.DataType.BFLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.INT8,
        ir.DataType.UINT8,
    }
)
"""Element types of weights; integers of other types may be shapes, which inference reads."""

_MEMORY: Final = "memory"
"""A file name that is never opened: the runner is given the data."""


def weights_of(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The initializers of the main graph that need not be in its message, in graph order."""
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and _is_weight(value.const_value)
    }


def data_of(weight: ir.TensorProtocol) -> Array:
    """The numbers of a weight, without a copy wherever they lie as a runner can read them."""
    array: Array = np.require(weight.numpy(), requirements=["ALIGNED", "C_CONTIGUOUS"])
    return array


def offsets_of(weights: Mapping[str, ir.TensorProtocol]) -> dict[str, int]:
    """Offset in bytes of each weight in a file that holds them one after another."""
    offsets, end = {}, 0
    for name, weight in weights.items():
        offsets[name] = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        end = offsets[name] + weight.nbytes
    return offsets


def length_of(weights: Mapping[str, ir.TensorProtocol]) -> int:
    """Bytes of the file that `offsets_of` describes."""
    offsets = offsets_of(weights)
    return max((offsets[name] + weight.nbytes for name, weight in weights.items()), default=0)


def without_weights(model: ir.Model, location: str = _MEMORY) -> onnx.ModelProto:
    """The message of a graph whose weights are external data in the file ``location``."""
    # A clone shares the tensors: what it refers to is changed, and no weight is copied.
    return _without_own_weights(model.clone(), location)


def _without_own_weights(marked: ir.Model, location: str) -> onnx.ModelProto:
    """Same as `without_weights`, of a graph that loses them."""
    weights = weights_of(marked)
    offsets = offsets_of(weights)
    for name, weight in weights.items():
        marked.graph.initializers[name].const_value = ir.ExternalTensor(
            location,
            offsets[name],
            weight.nbytes,
            weight.dtype,
            shape=ir.Shape(weight.shape.numpy()),
            name=name,
        )
    return ir.to_proto(marked)


def put_back(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """The same graph, with ``weights`` as its initializers again."""
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = weight
    return model


def split(model: ir.Model, what: str) -> SplitGraph:
    """The graph for a runner; its weights are those of ``model`` itself, not copies.

    Raises:
        ModelFileError: ``what`` is larger than a message can be, even without its weights.
    """
    return split_own(model.clone(), what)


def split_own(model: ir.Model, what: str) -> SplitGraph:
    """Same as `split`, of a graph that nobody else has: it loses its weights, and is not cloned.

    Raises:
        ModelFileError: as `split`.
    """
    weights = {name: data_of(weight) for name, weight in weights_of(model).items()}
    return SplitGraph(serialise(_without_own_weights(model, _MEMORY), what), weights)


def serialise(proto: onnx.ModelProto, what: str, limit: int = PROTOBUF_LIMIT_BYTES) -> bytes:
    """The bytes of a message, the same ones for the same message.

    Raises:
        ModelFileError: ``what`` is longer than ``limit`` bytes.
    """
    size = proto.ByteSize()
    if not 0 < size <= limit:
        raise ModelFileError(
            f"{what} would have {size / 2**30:.1f} GiB beside its weights, "
            f"an ONNX file holds {limit / 2**30:.0f} GiB at most\n"
            "only initializers can lie in a file of their own: make its constants initializers"
        )
    # Deterministic: the order of map entries is otherwise free, and with it the file's hash.
    return bytes(proto.SerializeToString(deterministic=True))


def pieces_of(apart: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol]) -> Iterator[bytes]:
    """The bytes of a message with its weights in it, piece by piece, no weight being copied.

    ``apart`` is the message without them, see `without_weights`. The bytes are those that
    `serialise` gives for the whole, for which protobuf takes three times its size in memory. Fields
    lie in the order of their numbers, those that nest with their length before them
    (https://protobuf.dev/programming-guides/encoding/).
    """
    before, after = _around(apart, "graph")
    start, end = _around(apart.graph, "initializer")
    tensors = [_tensor_pieces(tensor, weights) for tensor in apart.graph.initializer]
    heads = [_head(apart.graph, "initializer", sum(map(len, pieces))) for pieces in tensors]
    size = len(start) + sum(map(len, heads)) + sum(len(piece) for t in tensors for piece in t)
    yield before + _head(apart, "graph", size + len(end)) + start
    for head, pieces in zip(heads, tensors, strict=True):
        yield head
        yield from pieces
    yield end + after


def _tensor_pieces(tensor: onnx.TensorProto, weights: Mapping[str, ir.TensorProtocol]) -> list[Any]:
    if tensor.name not in weights:
        return [tensor.SerializeToString(deterministic=True)]
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    bare.ClearField("external_data")
    bare.ClearField("data_location")
    before, after = _around(bare, "raw_data")
    content = data_of(weights[tensor.name]).reshape(-1).view(np.uint8).data
    return [before + _head(bare, "raw_data", len(content)), content, after]


def _around(message: Message, name: str) -> tuple[bytes, bytes]:
    """The bytes of the fields before and behind the one called ``name``."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    parts = []
    for is_out in (number.__le__, number.__ge__):
        part = type(message)()
        part.CopyFrom(message)
        for field, _ in message.ListFields():
            if is_out(field.number):
                part.ClearField(field.name)
        parts.append(part.SerializeToString(deterministic=True))
    return parts[0], parts[1]


_NESTED: Final = 2
"""Wire type of what has its length before it."""


def _head(message: Message, name: str, size: int) -> bytes:
    number = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | _NESTED) + _varint(size)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    groups = []
    while number > 0x7F:  # noqa: PLR2004
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in WEIGHT_TYPES and tensor.nbytes >= SMALLEST_WEIGHT_BYTES


MAPPED_BYTES: Final = 2**28
"""Largest sum of external weights that is copied; more is mapped into memory.

A mapped file must not be changed by others meanwhile, so that a copy is safer while it is cheap.
"""


class Weights(NamedTuple):
    """The initializers that were taken out of a message, and the files that some were in."""

    arrays: Mapping[str, Array]
    files: tuple[Path, ...]


class _Extent(NamedTuple):
    source: Path
    offset: int
    size: int


def take_out(proto: onnx.ModelProto, path: Path, limit: int = MAPPED_BYTES) -> Weights:
    """Take the large initializers of the model at ``path`` out of ``proto``, for `attach`.

    They are copied once, here, and shared from then on. Those that lie in other files are mapped
    into memory instead where all that lies there has more than ``limit`` bytes. All other external
    tensors are read into ``proto``. What lies in other files is checked before any of it is read.

    Raises:
        ModelFileError: the data lies neither in the model's folder nor in that of what it links to,
            is missing or too short.
    """
    tensors = (item for item in messages_of(proto) if isinstance(item, onnx.TensorProto))
    external = [tensor for tensor in tensors if _is_external(tensor)]
    sources = [(tensor, _locate(tensor, path)) for tensor in external]
    # All before the first read: a damaged file is refused before its gigabytes are loaded.
    found = [(tensor, _extent(tensor, source, path)) for tensor, source in sources]
    maps: dict[Path, Array] | None = {}
    if sum(extent.size for _, extent in found) <= limit:
        maps = None
    arrays = {
        tensor.name: _taken(tensor, path, maps)
        for tensor in proto.graph.initializer
        if tensor.data_type in WEIGHT_TYPES and _is_large(tensor)
    }
    for tensor, extent in found:
        if _is_external(tensor):
            # Those that were taken above are external no more.
            tensor.raw_data = _read(extent)
            _forget_place(tensor)
    return Weights(arrays, tuple(dict.fromkeys(source for _, source in sources)))


def attach(model: ir.Model, arrays: Mapping[str, Array]) -> None:
    """Give the initializers that were taken out of the message their data."""
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(array, dtype=value.dtype, name=name)


def write_weights(path: Path, weights: Mapping[str, ir.TensorProtocol]) -> str:
    """Write the weights as `offsets_of` has them, one at a time; returns the file's sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for weight in weights.values():
            content = data_of(weight).reshape(-1).view(np.uint8).data
            # Zeros up to the next page, as `offsets_of` counts them.
            for block in (bytes(-file.tell() % ALIGNMENT_BYTES), content):
                file.write(block)
                digest.update(block)
    return digest.hexdigest()


def messages_of(message: Message) -> Iterator[Message]:
    """``message`` and everything below it: nodes, subgraphs, functions, tensors, entries."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in (value,) if isinstance(value, Message) else value:
                yield from messages_of(child)


def path_with(files: tuple[Path, ...], path: Path) -> Path:
    """The path of a model by which a runtime finds the ``files`` with its weights.

    It is where a link leads to, if they lie there and not beside the link.
    """
    own, real = _folders(path)[0], path.resolve()
    elsewhere = any(own not in file.parents for file in files)
    return real if elsewhere else path


def _folders(path: Path) -> tuple[Path, ...]:
    """Where external data may lie: beside the file, then beside what it links to.

    In a snapshot of Hugging Face's cache the data are links of their own.
    """
    own = path.parent.resolve()
    if _snapshot_of(own) is not None:
        return (own,)
    return tuple(dict.fromkeys((own, path.resolve().parent)))


def _locate(tensor: onnx.TensorProto, path: Path) -> Path:
    # A key may stand there twice, and readers differ in which one they follow.
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    allowed = [
        folder
        for folder in _folders(path)
        if locations and all(_is_within(folder, name) for name in locations)
    ]
    if not allowed:
        folder = path.parent.resolve()
        outside = next((name for name in locations if not _is_within(folder, name)), "")
        raise ModelFileError(
            f"{path.name} keeps {tensor.name!r} in {outside!r}, outside its own folder\n"
            "this is refused; put the external data beside the .onnx file"
        )
    for folder in allowed:
        if all((folder / name).is_file() for name in locations):
            return folder / str(locations[-1])
    missing = next(name for name in locations if not (allowed[0] / name).is_file())
    raise ModelFileError(f"{path.name} needs {missing!r} beside it, which is missing")


def _is_within(folder: Path, name: str) -> bool:
    """Whether ``name`` lies in ``folder``, links followed, or is a link into its cache's blobs."""
    # resolve() raises ValueError for a null byte.
    if not name or "\0" in name or Path(name).is_absolute():
        return False
    real = (folder / name).resolve()
    blobs = _blobs_of(folder)
    return real.is_relative_to(folder) or (
        blobs is not None and ".." not in Path(name).parts and real.is_relative_to(blobs)
    )


def _blobs_of(folder: Path) -> Path | None:
    """Where the cache of Hugging Face keeps what is linked from ``folder``, one of its snapshots.

    A repository there has ``snapshots/REVISION/...``, links to ``blobs/HASH``.
    """
    snapshot = _snapshot_of(folder)
    if snapshot is None:
        return None
    blobs = snapshot.parent.parent / "blobs"
    # A link in its place would lead anywhere.
    return blobs if blobs.is_dir() and not blobs.is_symlink() else None


def _snapshot_of(folder: Path) -> Path | None:
    each = (folder, *folder.parents)
    return next((snapshot for snapshot in each if snapshot.parent.name == "snapshots"), None)


def _extent(tensor: onnx.TensorProto, source: Path, path: Path) -> _Extent:
    """Extent of the tensor's data, as its shape and type require it."""
    keys = {entry.key: entry.value for entry in tensor.external_data}
    try:
        size = _size(tensor)
        offset, length = int(keys.get("offset", 0)), int(keys.get("length", size))
    except (TypeError, ValueError) as exc:
        raise ModelFileError(
            f"{path.name} does not say where {tensor.name!r} lies in {source.name!r}: {exc}"
        ) from exc
    present = max(min(length, source.stat().st_size - offset), 0)
    if present != size or offset < 0:
        raise ModelFileError(
            f"{path.name} needs {size:,} bytes of {source.name!r} for {tensor.name!r}, "
            f"there are {present:,}\ncopy both files again"
        )
    return _Extent(source, offset, size)


def _size(tensor: onnx.TensorProto) -> int:
    # Rounded up: two 4-bit numbers share a byte.
    size: int = ceil(prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
    return size


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _read(extent: _Extent) -> bytes:
    try:
        with extent.source.open("rb") as file:
            file.seek(extent.offset)
            return file.read(extent.size)
    except OSError as exc:
        raise _unreadable(extent.source, exc) from exc


def _is_large(tensor: onnx.TensorProto) -> bool:
    size = _size(tensor)
    is_whole = _is_external(tensor) or len(tensor.raw_data) == size
    return is_whole and size >= SMALLEST_WEIGHT_BYTES


def _taken(tensor: onnx.TensorProto, path: Path, maps: dict[Path, Array] | None) -> Array:
    """Take the data out of an initializer; ``maps`` has each mapped file once."""
    if not _is_external(tensor):
        content: Array = np.frombuffer(tensor.raw_data, np.uint8)
        tensor.ClearField("raw_data")
    else:
        extent = _extent(tensor, _locate(tensor, path), path)
        _forget_place(tensor)
        if maps is None:
            content = np.frombuffer(_read(extent), np.uint8)
        else:
            if extent.source not in maps:
                maps[extent.source] = _map(extent.source)
            content = maps[extent.source][extent.offset : extent.offset + extent.size]
    return content.view(ir.DataType(tensor.data_type).numpy()).reshape(tuple(tensor.dims))


def _map(source: Path) -> Array:
    try:
        return np.memmap(source, np.uint8, "r").view(np.ndarray)
    except OSError as exc:
        raise _unreadable(source, exc) from exc


def _forget_place(tensor: onnx.TensorProto) -> None:
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _unreadable(source: Path, exc: OSError) -> ModelFileError:
    return ModelFileError(f"cannot read {source}: {exc.strerror}")

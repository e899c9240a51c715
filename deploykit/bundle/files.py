"""Files of a bundle: opened only where they are regular files, hashed, and looked at again."""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from deploykit.core.artifacts import WEIGHTS_SUFFIX, sha256_of_bytes
from deploykit.core.errors import BundleError, IntegrityError, one_line
from deploykit.core.regular_files import open_regular, read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from deploykit.core.serialization import Source

    Stamp = tuple[int, int, int, int, int]

_GRAPH: Final = ".onnx"


@dataclass(frozen=True)
class BundleFiles:
    """The files of one manifest: names with their sha256, all of them plain names in ``folder``.

    Libraries open a graph or an engine by its path, after its hash was compared. So each file is
    looked at again when it is in use, see `changed_since`: by its number in the file system, size
    and times. Whoever writes a file gives it another time of change, which no program can set.
    """

    folder: Path
    expected: Mapping[str, str]
    stamps: dict[str, Stamp] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> bytes:
        """The content that was hashed; the file is read once.

        Raises:
            IntegrityError: it is missing, no regular file, or has another hash.
        """
        try:
            content = read_regular(self.folder / name)
        except OSError as exc:
            raise self._refusal(name, _words(exc)) from exc
        found = sha256_of_bytes(content)
        if found != self.expected[name]:
            raise self._refusal(name, self._other_hash(name, found))
        return content

    def require(self, name: str) -> None:
        """Compare the hash of a file, and of the weights beside a graph.

        Raises:
            IntegrityError: one is missing, no regular file, or has another hash; or a graph takes
                weights from a file that the manifest does not name.
            BundleError: a graph cannot be read so far as to know where its weights are.
        """
        beside = name + WEIGHTS_SUFFIX
        for each in (name, beside) if beside in self.expected else (name,):
            problem = self.difference(each)
            if problem:
                raise self._refusal(each, problem)
        if name.endswith(_GRAPH):
            self._require_named_weights(name)

    def difference(self, name: str) -> str | None:
        """What is wrong with a file, the end of a sentence; ``None`` where nothing is."""
        try:
            with open_regular(self.folder / name) as file:
                self.stamps[name] = stamp_of(file.fileno())
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            return _words(exc)
        return None if found == self.expected[name] else self._other_hash(name, found)

    def changed_since(self) -> bool:
        """Whether a file whose hash was compared is another one now, or was written to."""
        return any(stamp_at(self.folder / name) != stamp for name, stamp in self.stamps.items())

    def _require_named_weights(self, name: str) -> None:
        others = sorted(external_locations(self.folder / name) - self.expected.keys())
        if others:
            raise IntegrityError(
                f"{self.folder.name}: {name} takes weights from {others[0]!r:.80}, which the "
                "manifest does not name\nexport the bundle again"
            )

    def _other_hash(self, name: str, found: str) -> str:
        return f"has sha256 {found}, the manifest gives {self.expected[name]}"

    def _refusal(self, name: str, problem: str) -> IntegrityError:
        return IntegrityError(
            f"{self.folder.name}: {name} {problem}\ncopy or export the bundle again"
        )


def require_plain_names(names: Iterable[str], source: Source) -> None:
    """Refuse what is not the name of a file in its own folder, on any system.

    Raises:
        DeploykitError: the error of ``source``.
    """
    for name in names:
        plain = name.isprintable() and not any(char in name for char in _SEPARATORS)
        if not plain or name in {"", ".", ".."} or len(name.encode()) > _LONGEST_NAME:
            raise source.refusal(f"it names {name!r:.80}, which is no plain name of a file")


def require_one_line(texts: Mapping[str, str], source: Source) -> None:
    """Refuse line breaks and other control characters; ``texts`` are values by field.

    They are written into files that others run, as a Dockerfile, where a line is an instruction.

    Raises:
        DeploykitError: the error of ``source``.
    """
    for field_name, text in texts.items():
        if one_line(text) != text:
            raise source.refusal(f"its {field_name} has a control character: {text!r:.80}")


_LONGEST_NAME: Final = 255  # bytes, on nearly every disk
_SEPARATORS: Final = "/\\:"  # of Windows, too: a bundle may be read on another system


def _words(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read: {error.strerror}"


def stamp_of(file: int | Path) -> Stamp:
    """What tells a file from another one, and from itself before somebody wrote to it."""
    found = os.fstat(file) if isinstance(file, int) else file.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def stamp_at(path: Path) -> Stamp | None:
    """The stamp of the file at ``path``; ``None`` where none is."""
    try:
        return stamp_of(path)
    except OSError:
        return None


_LOCATION: Final = b"location"
_CHILDREN: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}  # fmt: skip
"""Messages of onnx.proto3 that may hold an entry of external data, by the number of the field."""


def external_locations(path: Path) -> set[str]:
    """The files that an ONNX graph takes weights from, as it names them.

    Read from the fields of the protobuf itself, because a machine that serves has no onnx. Weights
    within the file are passed over.

    Raises:
        BundleError: the file is no ONNX graph.
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_LOCATION) < 0:  # the key of each such entry
                return set()
            try:
                return set(_locations(content))
            except (ValueError, IndexError) as exc:
                raise BundleError(
                    f"{path.name} is no ONNX graph: {exc}\nexport the bundle again"
                ) from exc


def _locations(content: mmap.mmap) -> Iterator[str]:
    waiting = [("model", 0, len(content))]
    while waiting:
        kind, start, end = waiting.pop()
        if kind == "external data":
            entry = dict(_fields(content, start, end))
            if content[slice(*entry.get(1, (0, 0)))] == _LOCATION:
                yield content[slice(*entry.get(2, (0, 0)))].decode()
            continue
        children = _CHILDREN[kind]
        waiting += [
            (children[number], *place)
            for number, place in _fields(content, start, end)
            if number in children
        ]


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Each field's number, and where its content begins and ends."""
    while at < end:
        tag, at = _varint(content, at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, stop = _varint(content, at)
        elif wire_type == _BYTES:
            length, at = _varint(content, at)
            stop = at + length
        elif wire_type in _FIXED:
            stop = at + _FIXED[wire_type]
        else:
            raise ValueError(f"a field of wire type {wire_type}")
        if stop > end:
            raise ValueError("it is cut off")
        yield tag >> 3, (at, stop)
        at = stop


_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final[Mapping[int, int]] = {1: 8, 5: 4}
_LONGEST_VARINT: Final = 10


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for count in range(_LONGEST_VARINT):
        byte = content[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a number has its highest bit clear
            return value, at + count + 1
    raise ValueError("a number without an end")

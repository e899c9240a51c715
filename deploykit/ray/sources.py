"""Images at any address that fsspec knows: files of a folder, or rows of Parquet, in parts.

A part is the unit of work: it is read, decoded, answered and written as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit import images
from deploykit.core.artifacts import sha256_of_bytes
from deploykit.core.environment import require
from deploykit.core.errors import DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARQUET: Final = ".parquet"
_COLUMNS: Final = ("image", "bytes", "img")
"""Columns of Parquet that hold encoded images, as data sets are published."""


@dataclass(frozen=True)
class Part:
    """Some images: addresses of files; or of one Parquet file rows of a row group."""

    number: int
    files: tuple[str, ...] = ()
    table: str | None = None
    group: int = 0
    start: int = 0
    stop: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What each image is called: its address, or its file with the row."""
        if self.table is None:
            return self.files
        rows = range(self.start, self.stop)
        return tuple(f"{self.table}#{self.group}:{row}" for row in rows)

    def to_text(self) -> str:
        """As JSON, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Part:
        """From `to_text`."""
        found = json.loads(text)
        return cls(**{**found, "files": tuple(found["files"])})


@dataclass(frozen=True)
class Listing:
    """All images of a source in their order, by part; ``digest`` is of their names and sizes."""

    parts: tuple[Part, ...]
    count: int
    digest: str


def listing_of(source: str, part_images: int) -> Listing:
    """The images at ``source``, ``part_images`` in a part.

    Raises:
        DataError: nothing is there, no image is among it, or it cannot be listed.
        MissingDependencyError: fsspec or pyarrow is not installed.
    """
    fsspec = require("fsspec")
    try:
        fs, root = fsspec.core.url_to_fs(source)
        found = _found(fs, root)
        named = [(_address(fs, path), size) for path, size in found]
        parts = tuple(_parts(fs, found, part_images))
    except DataError:
        raise
    except Exception as exc:  # each file system has errors of its own
        raise DataError(
            f"cannot list {source}: {first_line(exc)}\n"
            "expected a folder, a Parquet file, or an address as s3://bucket/folder"
        ) from exc
    if not parts:
        raise DataError(
            f"{source} holds no images\nexpected files of images, or Parquet with a column "
            f"{', '.join(_COLUMNS)}"
        )
    count = sum(len(part.names) for part in parts)
    return Listing(parts, count, sha256_of_bytes(json.dumps([part_images, named]).encode()))


def read_part(part: Part) -> Iterator[bytes | str]:
    """The encoded images of a part; a text says why one cannot be read."""
    if part.table is None:
        yield from map(_read_file, part.files)
        return
    left = len(part.names)
    try:
        for content in _rows(part):
            yield content
            left -= 1
    except Exception as exc:
        yield from [f"cannot be read: {first_line(exc)}"] * left


def _found(fs: Any, root: str) -> list[tuple[str, int]]:
    """Files of images, or of Parquet, with their bytes; hidden ones are passed over."""
    if not fs.exists(root):
        raise DataError(f"there is nothing at {root}\nexpected images, or a Parquet file")
    known = {*images.image_suffixes(), PARQUET}
    if fs.isfile(root):
        # A name without a suffix may be an image's, as in object stores.
        if _suffix(root) not in {*known, ""}:
            raise DataError(
                f"{root} is neither an image nor Parquet, by its name\n"
                "--ray takes a folder of images, a Parquet file with a column "
                f"{', '.join(_COLUMNS)}, or the address of one, as s3://bucket/folder\n"
                "of a list of files give the folder that they are in"
            )
        return [(root, int(fs.size(root) or 0))]
    listed = fs.find(root, detail=True)
    return sorted(
        (path, int(about.get("size") or 0))
        for path, about in listed.items()
        if _suffix(path) in known
        and not any(word[:1] in "._" for word in path[len(root) :].strip("/").split("/"))
    )


def _parts(fs: Any, found: Sequence[tuple[str, int]], size: int) -> Iterator[Part]:
    number = 0
    files = [_address(fs, path) for path, _ in found if _suffix(path) != PARQUET]
    for at in range(0, len(files), size):
        yield Part(number, tuple(files[at : at + size]))
        number += 1
    for path, _ in found:
        if _suffix(path) != PARQUET:
            continue
        address = _address(fs, path)
        for group, rows in enumerate(_groups(fs, path)):
            for start in range(0, rows, size):
                stop = min(start + size, rows)
                yield Part(number, (), address, group, start, stop)
                number += 1


def _groups(fs: Any, path: str) -> list[int]:
    """Rows of each row group of a Parquet file that has images."""
    parquet = require("pyarrow.parquet")
    with fs.open(path, "rb") as file:
        opened = parquet.ParquetFile(file)
        _column(opened.schema_arrow, path)
        about = opened.metadata
        return [about.row_group(at).num_rows for at in range(about.num_row_groups)]


def _column(schema: Any, path: str) -> str:
    for name in _COLUMNS:
        if name in schema.names:
            return name
    raise DataError(
        f"{path} has no column of images, it has {', '.join(schema.names)}\n"
        f"expected encoded images in a column called {', '.join(_COLUMNS)}"
    )


def _rows(part: Part) -> Iterator[bytes | str]:
    fsspec, parquet = require("fsspec"), require("pyarrow.parquet")
    with fsspec.open(part.table, "rb") as file:
        opened = parquet.ParquetFile(file)
        name = _column(opened.schema_arrow, str(part.table))
        column = opened.read_row_group(part.group, columns=[name]).column(name)
        for value in column.slice(part.start, part.stop - part.start).to_pylist():
            # Data sets are also published with an image as {"bytes": ..., "path": ...}.
            content = value.get("bytes") if isinstance(value, dict) else value
            yield content if isinstance(content, bytes) else "the row has no encoded image"


def _read_file(address: str) -> bytes | str:
    try:
        with require("fsspec").open(address, "rb") as file:
            return bytes(file.read())
    except Exception as exc:  # likewise
        return f"cannot be read: {first_line(exc)}"


def _address(fs: Any, path: str) -> str:
    """The path with its protocol; of a local file alone."""
    is_local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    return path if is_local else str(fs.unstrip_protocol(path))


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return name[name.rfind(".") :].lower() if "." in name else ""

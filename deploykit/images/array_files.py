"""Images, labels and class names in an array file (``.npz``, or ``.npy`` of images alone).

The pixels stay in the file and are read image by image, so that memory does not grow with their
number. Those of a large compressed file are unpacked once, into a temporary file.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import threading
import weakref
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np

from deploykit.core.errors import DataError
from deploykit.core.npz import open_npz
from deploykit.core.regular_files import open_regular
from deploykit.core.sizes import GREY, RGB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels: TypeAlias = "NDArray[np.uint8] | PixelFile"
    Labels = NDArray[np.int64] | None
    Classes = tuple[str, ...] | None


EXPECTED: Final = (
    "expected `images` uint8 (N, H, W, 3), or grey (N, H, W, 1) or (N, H, W), and if wanted\n"
    "`labels` of whole numbers (N,) and `classes`, their names"
)

EXPECTED_ALONE: Final = "expected one array uint8 (N, H, W, 3), or grey (N, H, W, 1) or (N, H, W)"

UNPACKED_IN_MEMORY_BYTES: Final = 64 * 2**20
"""Most bytes of pixels that are unpacked into memory; more go into a temporary file."""

_BLOCK_BYTES: Final = 2**20


class PixelFile:
    """Images uint8 (N, H, W, C) or (N, H, W) in an open file, one behind the other.

    The first begins at ``offset``. Any number of threads may read at the same time. The file is
    closed with the last reference.
    """

    def __init__(self, file: IO[bytes], offset: int, shape: tuple[int, ...], path: Path) -> None:
        self.shape = shape
        self._file = file
        self._offset = offset
        self._path = path
        self._reading = threading.Lock()
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Pixels of one image, (H, W, 3), (H, W, 1) or (H, W).

        Raises:
            IndexError: there is no such image.
            DataError: the file is shorter than when it was opened, or cannot be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} was asked of {len(self)}")
        size = prod(self.shape[1:])
        try:
            content = self._read(size, self._offset + index * size)
        except OSError as error:
            raise DataError(f"cannot read image {index} of {self._path}: {error}") from error
        if len(content) < size:
            raise DataError(
                f"image {index} of {self._path} is cut off: the file was longer when it was opened"
                "\nleave it as it is while it is in use"
            )
        return np.frombuffer(content, np.uint8).reshape(self.shape[1:])

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[index] for index in range(len(self)))

    def _read(self, size: int, at: int) -> bytes:
        if sys.platform == "win32":
            with self._reading:
                self._file.seek(at)
                return self._file.read(size)
        else:
            # The file's own position would be shared by threads and by forked processes.
            return os.pread(self._file.fileno(), size, at)


def read_npz(path: Path) -> tuple[Pixels, Labels, Classes]:
    """Images (N, H, W, C) or (N, H, W), labels and class names of an ``.npz``, without pickles.

    The file is read once, to see that it is whole. The pixels are read again when they are used.

    Raises:
        DataError: damaged, or not of the expected names, types and shapes.
    """
    try:
        with open_npz(path) as archive:
            found = {name: archive[name] for name in ("labels", "classes") if name in archive}
            pixels = _pixels_of(path, archive)
    except DataError:
        raise
    # zipfile, zlib and numpy's header parser each raise their own kinds on damaged bytes.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"cannot read {path}: {reason}\n{EXPECTED}") from error
    classes = _require_classes(path, found.get("classes"))
    return pixels, _require_labels(path, found.get("labels"), len(pixels), classes), classes


def read_npy(path: Path) -> Pixels:
    """Images (N, H, W, C) or (N, H, W) of an ``.npy``, read when they are used, without pickles.

    Raises:
        DataError: damaged, or not of the expected type and shape.
    """
    try:
        with ExitStack() as opened:
            file = opened.enter_context(open_regular(path))
            header = _Header.read(file)
            header.require_images(f"the array of {path}", EXPECTED_ALONE)
            _require_length(header, os.fstat(file.fileno()).st_size - header.header_bytes)
            if header.is_fortran:
                return _in_order(file.read(header.pixel_bytes), header)
            opened.pop_all()  # it stays open
            return PixelFile(file, header.header_bytes, header.shape, path)
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"cannot read {path}: {reason}\n{EXPECTED_ALONE}") from error


@dataclass(frozen=True)
class _Header:
    """What stands before the numbers of an array in its file."""

    header_bytes: int
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, file: IO[bytes]) -> Self:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0(file)
        else:
            read = np.lib.format.read_array_header_2_0(file)
        return cls(file.tell(), *read)

    @property
    def pixel_bytes(self) -> int:
        return prod(self.shape)

    def require_images(self, what: str, expected: str) -> None:
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects, a pickle")
        *images, last = self.shape or (0,)
        has_channels = last in (RGB, GREY)
        # Of three axes the last is no channel's: (H, W, 3) would be one image, not H grey ones.
        right_shape = len(images) == (3 if has_channels else 2)
        if self.dtype != np.uint8 or not right_shape or not prod(self.shape):
            raise DataError(f"{what} is {self.dtype} {self.shape}\n{expected}")


def _require_length(header: _Header, found_bytes: int) -> None:
    if found_bytes < header.pixel_bytes:
        raise ValueError(
            f"{header.shape} takes {header.pixel_bytes:,} bytes, there are {found_bytes:,}"
        )


def _in_order(content: bytes, header: _Header) -> NDArray[np.uint8]:
    """The images of an array that lies in its file with the number of the image running fastest.

    No image lies in one piece there, so that these are held in memory.
    """
    flat = np.frombuffer(content, np.uint8, header.pixel_bytes)
    pixels = np.ascontiguousarray(flat.reshape(header.shape, order="F"))
    pixels.setflags(write=False)
    return pixels


def _pixels_of(path: Path, archive: np.lib.npyio.NpzFile) -> Pixels:
    if "images" not in archive:
        names = ", ".join(archive) or "nothing"
        raise DataError(f"{path} has no `images`, it has: {names}\n{EXPECTED}")
    packed: Any = archive.zip  # None once it is closed
    entry = packed.getinfo("images.npy")
    with packed.open(entry) as member:
        header = _Header.read(member)
        header.require_images(f"`images` of {path}", EXPECTED)
        if header.is_fortran:
            return _in_order(_whole(member, header), header)
        if entry.compress_type == zipfile.ZIP_STORED:
            _require_whole(member, header)
            offset = _start_of(packed.fp, entry) + header.header_bytes
            # The archive closes its own.
            file = os.fdopen(os.dup(packed.fp.fileno()), "rb")
            return PixelFile(file, offset, header.shape, path)
        if header.pixel_bytes > UNPACKED_IN_MEMORY_BYTES:
            return PixelFile(_unpacked(path, member, header), 0, header.shape, path)
        content = _whole(member, header)
        return np.frombuffer(content, np.uint8, header.pixel_bytes).reshape(header.shape)


def _start_of(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the content of a member begins that is stored as it is.

    Its own header has 30 bytes, its name and extra fields, whose lengths the list at the end of the
    archive need not have the same (APPNOTE.TXT of the ZIP format, 4.3.7).
    """
    file.seek(entry.header_offset)
    name_bytes, extra_bytes = struct.unpack("<26x2H", file.read(30))
    return entry.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def _blocks(member: IO[bytes], header: _Header) -> Iterator[bytes]:
    """The pixels, to the end of the member, where zipfile compares their checksum."""
    count = 0
    while block := member.read(_BLOCK_BYTES):
        count += len(block)
        yield block
    _require_length(header, count)


def _require_whole(member: IO[bytes], header: _Header) -> None:
    for _ in _blocks(member, header):
        pass


def _whole(member: IO[bytes], header: _Header) -> bytes:
    return b"".join(_blocks(member, header))


def _unpacked(path: Path, member: IO[bytes], header: _Header) -> IO[bytes]:
    """The pixels in a temporary file, which goes when it is closed."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    except OSError as error:
        raise _no_room(path, header, error) from error
    try:
        for block in _blocks(member, header):
            _write(file, block, path, header)
    except BaseException:
        with suppress(OSError):  # it writes what is left, for which there may be no room
            file.close()
        raise
    return file


def _write(file: IO[bytes], block: bytes, path: Path, header: _Header) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise _no_room(path, header, error) from error


def _no_room(path: Path, header: _Header, error: OSError) -> DataError:
    return DataError(
        f"cannot unpack the {header.pixel_bytes:,} bytes of pixels of {path} into a temporary "
        f"file: {error}\nset TMPDIR to a folder with room, or write the file with numpy.savez, "
        "which does not compress"
    )


def _require_classes(path: Path, classes: NDArray[Any] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if classes.dtype.kind != "U" or classes.ndim != 1:
        raise DataError(f"`classes` of {path} is {classes.dtype} {classes.shape}\n{EXPECTED}")
    return tuple(str(name) for name in classes)


def _require_labels(
    path: Path, labels: NDArray[Any] | None, count: int, classes: tuple[str, ...] | None
) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            f"`labels` of {path} is {labels.dtype} {labels.shape} for {count} images\n{EXPECTED}"
        )
    # A label of an unsigned type beyond int64 turns negative here and is refused below.
    numbers = labels.astype(np.int64)
    require_in_range(path, numbers, classes)
    numbers.setflags(write=False)
    return numbers


def require_in_range(
    path: Path, labels: NDArray[np.int64], classes: tuple[str, ...] | None
) -> None:
    """Refuse labels below 0, and those beyond ``classes`` where the names are given.

    Raises:
        DataError: with the first such label and where it stands.
    """
    limit = np.iinfo(np.int64).max if classes is None else len(classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= limit))
    if wrong.size:
        highest = "up" if classes is None else f"to {limit - 1}, one of {limit} classes"
        raise DataError(
            f"image {wrong[0]} of {path} has label {labels[wrong[0]]}\nexpected 0 {highest}"
        )

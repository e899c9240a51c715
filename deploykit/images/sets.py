"""Sets of images: a folder, a ``.csv`` list, an array file, or the samples of this package."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import DataError, one_line
from deploykit.core.regular_files import is_special
from deploykit.images.array_files import PixelFile, read_npy, read_npz, require_in_range
from deploykit.images.decoding import NEEDS_HEIF, decode, image_suffixes
from deploykit.images.label_files import read_class_names, read_text
from deploykit.images.pixel_limit import require_max_pixels
from deploykit.images.preprocessing import rgb_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from deploykit.core.specs import Preprocessing

    Row = tuple[int, list[str]]


CLASS_NAMES: Final = "labels.txt"
"""File beside a list with one class name per line, in the order of the labels."""

MAX_COLUMNS: Final = 2

MAX_DIGITS: Final = 18
"""Most digits of a label: 18 always fit into 64 bits."""


def read_list(
    path: Path, suffixes: Collection[str]
) -> tuple[tuple[Path, ...], NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Files, labels and class names of a list of ``file,label`` or ``file`` lines.

    A first line that names neither a file that exists nor one with an image suffix is a header.
    Absolute paths are taken as they are.

    Raises:
        DataError: unreadable or empty, a file that is missing, or a label that is not known.
    """
    rows = _without_header(path, read_rows(path), suffixes)
    paths = tuple(_require_file(path, line, cells[0]) for line, cells in rows)
    named = path.parent / CLASS_NAMES
    classes = read_class_names(named) if named.is_file() else None
    labels = _labels(path, rows, classes)
    return paths, labels, None if labels is None else classes


def read_rows(path: Path) -> list[Row]:
    """The lines that are not empty, numbered from 1, each of one or two stripped cells.

    Raises:
        DataError: unreadable, or a line of more cells.
    """
    text = read_text(path, "lines of file,label")
    # strict: a quote that is never closed is an error, not a cell with the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}\nexpected lines of file,label") from error
    filled = [(line, cells) for line, cells in rows if any(cells)]
    for line, cells in filled:
        if len(cells) > MAX_COLUMNS:
            raise DataError(f"{path}, line {line}: {len(cells)} columns\nexpected file,label")
    return filled


def _without_header(path: Path, rows: list[Row], suffixes: Collection[str]) -> list[Row]:
    if rows:
        first = rows[0][1][0]
        if Path(first).suffix.lower() not in suffixes and not _is_file(path.parent / first):
            rows = rows[1:]
    if not rows:
        raise DataError(f"{path} names no images\nexpected lines of file,label")
    return rows


def _require_file(path: Path, line: int, name: str) -> Path:
    if not _is_file(path.parent / name):
        raise DataError(
            f"{path}, line {line}: there is no file {name!r}\n"
            f"expected a path relative to {path.parent}"
        )
    return path.parent / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _labels(
    path: Path, rows: list[Row], classes: tuple[str, ...] | None
) -> NDArray[np.int64] | None:
    cells = [(line, row[1] if len(row) == MAX_COLUMNS else "") for line, row in rows]
    missing = [line for line, cell in cells if not cell]
    if len(missing) == len(cells):
        return None
    if missing:
        raise DataError(
            f"{path}, line {missing[0]}: no label\nexpected one on every line, or on none"
        )
    named = unique_names(classes or ())
    labels = np.array([_label(path, line, cell, named) for line, cell in cells], np.int64)
    require_in_range(path, labels, classes)
    labels.setflags(write=False)
    return labels


def unique_names(classes: tuple[str, ...]) -> dict[str, int]:
    """Label of each name that is unique; ImageNet has two classes named "crane"."""
    counts = Counter(classes)
    return {name: label for label, name in enumerate(classes) if counts[name] == 1}


def _label(path: Path, line: int, cell: str, named: Mapping[str, int]) -> int:
    if cell in named:
        return named[cell]
    if cell.removeprefix("-").isdecimal() and len(cell) <= MAX_DIGITS:
        return int(cell)
    raise DataError(
        f"{path}, line {line}: unknown label {cell!r}\nexpected a number from 0 up, or a name "
        f"that stands once in {path.parent / CLASS_NAMES}"
    )


class ImageSet(Protocol):
    """A fixed sequence of images, with labels where they are known."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each image (N,)."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the labels."""

    @property
    def digest(self) -> str:
        """SHA-256 over images and labels in order; names and places of files do not count."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image:
        """The image as upright RGB.

        Raises:
            DataError: it cannot be read.
        """


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in files of their own, decoded on use.

    ``skipped`` are the files beside them whose suffix is not an image's, and pipes, devices and
    sockets. ``max_pixels`` and ``reduce_for`` are those of `decode`.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    skipped: tuple[Path, ...] = ()
    max_pixels: int | None = None
    reduce_for: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the files' own hashes and the labels; reads every file once.

        Raises:
            DataError: a file cannot be read.
        """
        return _digest(map(_sha256_bytes, self.paths), self.labels)

    def load(self, index: int) -> Image:
        """The image as upright RGB.

        Raises:
            DataError: the file is missing or damaged, or has too many pixels.
        """
        return decode(self.paths[index], self.max_pixels, reduce_for=self.reduce_for)


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images uint8 (N, H, W, 3) in memory, or in a file that is read when they are used.

    Grey ones are (N, H, W, 1) or (N, H, W).
    """

    pixels: NDArray[np.uint8] | PixelFile
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels; compression of the file does not count.

        Raises:
            DataError: the file cannot be read any more.
        """
        shape = repr(self.pixels.shape).encode()
        each = (np.ascontiguousarray(one).data for one in self.pixels)
        return _digest(chain([shape], each), self.labels)

    def load(self, index: int) -> Image:
        """The image as RGB.

        Raises:
            DataError: the file cannot be read any more.
        """
        return rgb_of(self.pixels[index])


def require_images_at(path: Path) -> None:
    """Refuse a path where nothing is, or an empty folder; what is there is not opened.

    Raises:
        DataError: nothing is there, or a folder cannot be listed.
    """
    if not path.exists():
        raise DataError(f"no images at {path}: it does not exist")
    try:
        is_empty = path.is_dir() and not any(path.iterdir())
    except OSError as error:
        raise DataError(f"cannot list {path}: {error}") from error
    if is_empty:
        raise _no_images(path)


def open_images(path: Path, max_pixels: int | None = None) -> ImageSet:
    """Images from a folder, a ``.csv`` list, an array file or a single image file.

    - A folder with one sub-folder per class: the classes are the sorted names of the
      sub-folders, as torchvision's ``ImageFolder`` numbers them.
    - A folder of images: in the order of their names, without labels.
    - A ``.csv`` list of ``file,label`` or ``file``: files are relative to the list's folder. A
      label is a number, or a name out of a ``labels.txt`` beside the list.
    - An ``.npz`` with ``images`` uint8 (N, H, W, 3), or grey (N, H, W, 1) or (N, H, W), and
      optional ``labels`` (N,) and ``classes``, or an ``.npy`` of the images alone. Their pixels
      are read when they are used.

    Hidden files and folders are left out, files of another kind are skipped and kept as such, and
    so are pipes, devices and sockets in a folder. An image file may have ``max_pixels``; what
    prepares images for a model has a default for it (`default_max_pixels`).

    Raises:
        DataError: nothing there, no images in it, or not in one of these forms.
    """
    suffix = path.suffix.lower()
    require_max_pixels(max_pixels)
    if path.is_dir():
        return replace(_open_folder(path), max_pixels=max_pixels)
    require_images_at(path)
    if suffix == ".csv":
        return FileImages(*read_list(path, image_suffixes()), max_pixels=max_pixels)
    if suffix == ".npz":
        return ArrayImages(*read_npz(path))
    if suffix == ".npy":
        return ArrayImages(read_npy(path))
    if suffix in image_suffixes():
        return FileImages((path,), max_pixels=max_pixels)
    raise DataError(
        f"cannot take images from {path}\n"
        "expected a folder, a .csv list, an .npz, an .npy, or an image that Pillow reads:\n"
        f"{_suffixes()}{_heif_hint([path])}"
    )


def sample_images() -> ImageSet:
    """The photographs that come with deploykit, without labels; ``samples/README.md`` has more."""
    return _open_folder(Path(__file__).parent.parent / "samples")


def name_of(image_set: ImageSet, index: int) -> str:
    """How messages call an image: its file where it has one of its own."""
    if isinstance(image_set, FileImages):
        return one_line(image_set.paths[index])
    return f"image {index}"


def image_files(folder: Path) -> FileImages:
    """All image files of a folder at any depth; its sub-folders are not taken for classes.

    Pipes, devices and sockets are skipped, whatever they are called.

    Raises:
        DataError: there is none, or a folder cannot be listed.
    """
    try:
        found, others = _files_below(folder)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error}") from error
    if not found:
        raise _no_images(folder, others)
    return FileImages(tuple(found), skipped=tuple(others))


_FEW: Final = 3
"""Files of one suffix that a message names."""


def notes_on_skipped(skipped: Sequence[Path]) -> list[str]:
    """How many files were no images, by suffix, the first of each by name.

    >>> notes_on_skipped([Path("a.xyz"), Path("b.xyz"), Path("notes.txt")])
    ['3 files are no images that can be read, and were skipped: 2 .xyz (a.xyz, b.xyz), \
1 .txt (notes.txt)']
    """
    if not skipped:
        return []
    files = "1 file is no image" if len(skipped) == 1 else f"{len(skipped)} files are no images"
    was = "was" if len(skipped) == 1 else "were"
    said = f"{files} that can be read, and {was} skipped: {_by_suffix(skipped)}"
    return [said + _heif_hint(skipped)]


def notes_on_data(path: Path | None, compared: int | None = None) -> list[str]:
    """What `notes_on_skipped` says of a folder, and how many images are ``compared``, if not all.

    Raises:
        DataError: there are no images.
    """
    if path is None:
        return []
    folder = _open_folder(path) if path.is_dir() else None
    skipped = [] if folder is None else notes_on_skipped(folder.skipped)
    if compared is None:
        return skipped
    count = len(open_images(path) if folder is None else folder)
    if compared >= count:
        return skipped
    return [f"{compared} of the {count} images of {path} were compared", *skipped]


def _by_suffix(files: Sequence[Path]) -> str:
    counts = Counter(file.suffix.lower() for file in files)
    parts = []
    for suffix, count in counts.most_common():
        named = [one_line(file.name) for file in files if file.suffix.lower() == suffix]
        more = " ..." if count > _FEW else ""
        parts.append(
            f"{count} {one_line(suffix) or 'without a suffix'} ({', '.join(named[:_FEW])}{more})"
        )
    return ", ".join(parts)


def _heif_hint(files: Iterable[Path]) -> str:
    needs = any(file.suffix.lower() in _HEIF_SUFFIXES for file in files)
    return f"; {NEEDS_HEIF}" if needs and not _HEIF_SUFFIXES & image_suffixes() else ""


_HEIF_SUFFIXES: Final = frozenset({".heic", ".heif", ".hif"})


def _suffixes() -> str:
    return " ".join(sorted(image_suffixes()))


def _no_images(folder: Path, others: Sequence[Path] = ()) -> DataError:
    found = f": {_by_suffix(others)}" if others else ""
    hint = _heif_hint(others)
    return DataError(f"no images in {folder}{found}{hint}\nexpected files ending in {_suffixes()}")


def _open_folder(folder: Path) -> FileImages:
    try:
        visible = sorted(item for item in folder.iterdir() if not _is_hidden(item.name))
        files = [item for item in visible if item.exists() and not item.is_dir()]
        below = {item.name: _files_below(item) for item in visible if item.is_dir()}
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error}") from error
    loose, others = _sorted_out(files)
    skipped = (*others, *(file for _, rest in below.values() for file in rest))
    per_class = {name: found for name, (found, _) in below.items()}
    if loose and any(per_class.values()):
        raise DataError(
            f"{folder} has images both beside and inside sub-folders\n"
            "expected either one sub-folder per class or images only"
        )
    if loose:
        return FileImages(tuple(loose), skipped=skipped)
    if any(per_class.values()):
        return replace(_from_classes(folder, per_class, skipped), skipped=skipped)
    raise _no_images(folder, skipped)


def _from_classes(
    folder: Path, per_class: dict[str, list[Path]], skipped: Sequence[Path]
) -> FileImages:
    empty = [name for name, paths in per_class.items() if not paths]
    if empty:
        inside = [file for file in skipped if (folder / empty[0]) in file.parents]
        found = f": {_by_suffix(inside)}{_heif_hint(inside)}" if inside else ""
        raise DataError(
            f"no images in {folder / empty[0]}{found}\n"
            "expected some in every sub-folder: each one is a class and counts in the numbering"
        )
    counts = [len(paths) for paths in per_class.values()]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    labels.setflags(write=False)
    paths = tuple(path for paths in per_class.values() for path in paths)
    return FileImages(paths, labels, tuple(per_class))


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images at any depth and other files, ordered folder by folder as ``ImageFolder`` does."""
    found: list[tuple[str, list[str]]] = []
    for parent, folders, names in os.walk(folder, onerror=_reraise):
        # In place: os.walk descends into the folders that are left in its list.
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found.append((parent, sorted(name for name in names if not _is_hidden(name))))
    files = [Path(parent, name) for parent, names in sorted(found) for name in names]
    return _sorted_out(files)


def _sorted_out(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and the rest: other files, and pipes and devices, which nobody may wait for."""
    images = [file for file in files if _is_image(file.name) and not is_special(file)]
    taken = set(images)
    return images, [file for file in files if file not in taken]


def _reraise(error: OSError) -> None:
    """Raise, where ``os.walk`` by itself would skip a folder that it cannot read."""
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in image_suffixes()


def _digest(parts: Iterable[bytes | memoryview], labels: NDArray[np.int64] | None) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    if labels is not None:
        # Little-endian everywhere, so that all machines compute the same digest.
        total.update(labels.astype("<i8").tobytes())
    return total.hexdigest()


def _sha256_bytes(path: Path) -> bytes:
    try:
        return bytes.fromhex(sha256_of(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error

"""Images and class names in ``.csv`` lists, and the rules for labels."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    Row = tuple[int, list[str]]


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
    classes = _read_class_names(path.parent / CLASS_NAMES)
    labels = _labels(path, rows, classes)
    return paths, labels, None if labels is None else classes


def read_rows(path: Path) -> list[Row]:
    """The lines that are not empty, numbered from 1, each of one or two stripped cells.

    Raises:
        DataError: unreadable, or a line of more cells.
    """
    try:
        # Spreadsheets put a byte-order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            # strict: a quote that is never closed is an error, not a cell with the rest of the
            # file.
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}\nexpected UTF-8 text, file,label") from error
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


def _read_class_names(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {error}\nexpected one class name per line") from error


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

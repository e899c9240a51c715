"""Labels in a file of their own, beside a flat folder of images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.errors import DataError
from deploykit.images.lists import read_rows, unique_names

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

SYNSET: Final = re.compile(r"n\d{8}")
"""WordNet's number of a noun, ImageNet's name of a class."""

_NUMBER: Final = re.compile(r"-?\d{1,18}")

_NAME_AND_LABEL: Final = re.compile(rf"(.+?)\s+({_NUMBER.pattern}|{SYNSET.pattern})")


@dataclass(frozen=True, slots=True)
class Label:
    """The label of one image as the file has it, and its line."""

    line: int
    text: str

    @property
    def number(self) -> int | None:
        """The label where it is a number."""
        return int(self.text) if _NUMBER.fullmatch(self.text) else None


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    name: str | None
    label: str


def read_label_file(
    path: Path, files: Sequence[Path], suffixes: Collection[str]
) -> tuple[Label, ...]:
    """The label of each of ``files``, which lie in one folder, in their order.

    Either one label per line in the order of the files, or ``file,label`` in any order, with or
    without the file's suffix and with or without a header. After a synset anything may follow, as
    the boxes in ImageNet's ``LOC_val_solution.csv`` do.

    Raises:
        DataError: unreadable, or not one label for each file and nothing else.
    """
    rows = [_read_row(line, cells) for line, cells in read_rows(path)]
    places = {file.name: at for at, file in enumerate(files)}
    places = unique_names(tuple(file.stem for file in files)) | places
    if rows and _is_header(rows[0], places, suffixes):
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path} has no labels\nexpected one per line, or lines of file,label")
    named = [row.name is not None for row in rows]
    if all(named):
        return _by_name(path, rows, files, places)
    if any(named):
        odd = rows[named.index(not named[0])]
        raise DataError(
            f"{path}, line {odd.line}: {'one cell' if named[0] else 'file and label'}, unlike the "
            "lines before\nexpected one label per line, or file,label in every line"
        )
    return _in_order(path, rows, files)


def _read_row(line: int, cells: list[str]) -> _Row:
    if len(cells) > 1:
        return _Row(line, cells[0], _label_of(cells[1]))
    pair = _NAME_AND_LABEL.fullmatch(cells[0])
    return _Row(line, pair[1], pair[2]) if pair else _Row(line, None, _label_of(cells[0]))


def _label_of(cell: str) -> str:
    first = cell.split(maxsplit=1)[:1]
    return first[0] if first and SYNSET.fullmatch(first[0]) else cell


def _is_header(row: _Row, places: Collection[str], suffixes: Collection[str]) -> bool:
    if _NUMBER.fullmatch(row.label) or SYNSET.fullmatch(row.label):
        return False
    if row.name is None:
        return row.label.lower() in {"label", "labels", "class", "target"}
    name = Path(row.name)
    return name.name not in places and name.suffix.lower() not in suffixes


def _in_order(path: Path, rows: Sequence[_Row], files: Sequence[Path]) -> tuple[Label, ...]:
    if len(rows) != len(files):
        if len(rows) < len(files):
            first = f"the first image without one is {files[len(rows)].name}"
        else:
            first = f"the first without an image is in line {rows[len(files)].line}"
        raise DataError(
            f"{path} has {len(rows)} labels for {len(files)} images: {first}\n"
            "expected one per line in the order of the file names, or lines of file,label"
        )
    return tuple(Label(row.line, row.label) for row in rows)


def _by_name(
    path: Path, rows: Sequence[_Row], files: Sequence[Path], places: dict[str, int]
) -> tuple[Label, ...]:
    found: dict[int, Label] = {}
    for row in rows:
        at = places.get(Path(row.name or "").name)
        if at is None:
            raise DataError(
                f"{path}, line {row.line}: there is no image {row.name!r}\n"
                f"expected the names of the {len(files)} images, such as {files[0].name}"
            )
        if at in found:
            raise DataError(
                f"{path}, line {row.line}: {row.name!r} has a label already, in line "
                f"{found[at].line}\nexpected one line for each image"
            )
        found[at] = Label(row.line, row.label)
    missing = [file.name for at, file in enumerate(files) if at not in found]
    if missing:
        raise DataError(
            f"{path} has no label for {missing[0]} and {len(missing) - 1} more images\n"
            "expected one line for each image"
        )
    return tuple(found[at] for at in range(len(files)))

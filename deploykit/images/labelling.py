"""Images with labels in ImageNet's layouts: a folder per synset, or one folder and a label file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.images.decoding import image_suffixes
from deploykit.images.label_files import read_folder_names
from deploykit.images.sets import (
    FileImages,
    ImageSet,
    open_images,
    read_rows,
    unique_names,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray


SYNSET: Final = re.compile(r"n\d{8}")
"""WordNet's number of a noun, ImageNet's name of a class."""

# 18 digits always fit into int64; with more it is no label.
_NUMBER: Final = re.compile(r"-?\d{1,18}")

_NAME_AND_LABEL: Final = re.compile(rf"(.+?)\s+({_NUMBER.pattern}|{SYNSET.pattern})")


@dataclass(frozen=True, slots=True)
class Label:
    """The label of one image as the file has it, and its line."""

    line: int
    text: str

    @property
    def number(self) -> int | None:
        """The label as an integer; ``None`` if it is not one."""
        return int(self.text) if _NUMBER.fullmatch(self.text) else None


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    name: str | None
    label: str


ORDERS: Final = ("natural", "text")
"""Orders of names: by the numbers in them (2 before 10), or letter by letter (10 before 2)."""


def natural_order(names: Iterable[str]) -> list[str]:
    """The names sorted with the numbers in them as numbers.

    >>> natural_order(["10", "2", "img10b", "img9"])
    ['2', '10', 'img9', 'img10b']
    """
    return sorted(names, key=lambda name: (_natural_key(name), name))


def _natural_key(name: str) -> tuple[tuple[str, int], ...]:
    texts, numbers = re.split("[0-9]+", name), re.findall("[0-9]+", name)
    return tuple(zip(texts, [*map(int, numbers), -1], strict=True))


def _ordered(names: Sequence[str], order: str | None, what: str, remedy: str) -> list[str]:
    """``names`` in the order that numbers them: the one asked for, or the only one there is."""
    orders = {"natural": natural_order(names), "text": sorted(names)}
    if order is not None:
        return orders[order]
    natural, text = orders.values()
    if natural == text:
        return text
    at = next(place for place, name in enumerate(natural) if name != text[place])
    shown = [", ".join(each[max(at - 2, 0) : at + 1]) for each in (natural, text)]
    raise DataError(
        f"{what} have two orders: {shown[0]} ... as numbers, {shown[1]} ... as text\n"
        "say which one the numbers of the classes follow: --class-order natural, or text (as "
        f"torchvision's ImageFolder sorts)\n{remedy}"
    )


def read_label_file(
    path: Path, files: Sequence[Path], suffixes: Collection[str], order: str | None = None
) -> tuple[Label, ...]:
    """The label of each of ``files``, which lie in one folder, in their order.

    Either one label per line in the order of the files' names, or ``file,label`` in any order, with
    or without the file's suffix and with or without a header. After a synset anything may follow,
    as the boxes in ImageNet's ``LOC_val_solution.csv`` do. ``order`` is one of `ORDERS`.

    Raises:
        DataError: unreadable, or not one label for each file and nothing else; or numbers in the
            names give another order than their text, and ``order`` does not say which.
    """
    rows = [_read_row(line, cells) for line, cells in read_rows(path)]
    places = {file.name: at for at, file in enumerate(files)}
    # Full names last, so that they win over the stem of another file.
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
    return _in_order(path, rows, files, order)


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


def _in_order(
    path: Path, rows: Sequence[_Row], files: Sequence[Path], order: str | None
) -> tuple[Label, ...]:
    if len(rows) != len(files):
        if len(rows) < len(files):
            first = f"the first image without one is {files[len(rows)].name}"
        else:
            first = f"the first without an image is in line {rows[len(files)].line}"
        raise DataError(
            f"{path} has {len(rows)} labels for {len(files)} images: {first}\n"
            "expected one per line in the order of the file names, or lines of file,label"
        )
    names = _ordered(
        [file.name for file in files],
        order,
        f"the images that {path} labels line by line",
        "or give lines of file,label",
    )
    by_name = {name: Label(row.line, row.label) for name, row in zip(names, rows, strict=True)}
    return tuple(by_name[file.name] for file in files)


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


MAPPING: Final = "LOC_synset_mapping.txt"
"""ImageNet's list of classes as Kaggle distributes it: per line a synset and its words, sorted."""

_OR_A_LIST: Final = "or give --classes FILE, or export with --labels: a list in that order"

_GIVE: Final = (
    "give --classes FILE: one folder name or synset per line, in the order of the model's outputs\n"
    f"({MAPPING} is such a file, and found by itself beside the images)"
)


@dataclass(frozen=True, slots=True)
class LabelledData:
    """A set of images, and the files that give its labels and classes.

    ``labels_file`` holds the label of every image of a flat folder; ``classes_file`` one class per
    line, a synset with or without words after it or a folder's name, in the order of the model's
    outputs. ``class_order``, "natural" or "text", says how sorted folders are numbered where these
    differ, or images whose labels have no names. ``max_pixels`` is what an image file may have.
    """

    path: Path
    labels_file: Path | None = None
    classes_file: Path | None = None
    class_order: str | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class ModelClasses:
    """Number and names of a model's outputs, as far as they are known; names in that order."""

    count: int | None = None
    names: tuple[str, ...] | None = None


def open_labelled(data: LabelledData, model: ModelClasses) -> ImageSet:
    """Open images whose labels are indices of the model's outputs.

    Takes what `open_images` takes, and a flat folder with ``labels_file``. Folders and synsets are
    numbered by the first of these that is there: ``classes_file``; ``LOC_synset_mapping.txt`` in or
    beside the folder or beside the label file, if it lists as many classes as the model has; the
    model's own names; their sorted order, if there is one for every class of the model. Where that
    of their numbers is not that of their text, ``class_order`` must say which.

    Raises:
        UsageError: a label file for images that have labels, or are not in a folder; an order for
            what has its numbers already.
        DataError: as `open_images`; a label, a class or a name that does not fit; classes that
            cannot be numbered.
    """
    _check_order(data)
    source = open_images(data.path, data.max_pixels)
    if data.labels_file is not None:
        files = _require_flat_folder(source, data.path)
        return _with_label_file(files, data, data.labels_file, model)
    if isinstance(source, FileImages) and data.path.is_dir() and source.classes is not None:
        return _by_folder(source, source.classes, data, model)
    unused = {"--classes": data.classes_file, "--class-order": data.class_order}
    for option, given in unused.items():
        if given is not None:
            raise UsageError(
                f"{option} does not apply to {data.path}\n"
                "it numbers the folders of a folder per class, or the synsets of a --labels-file"
            )
    return source


def _check_order(data: LabelledData) -> None:
    if data.class_order not in (None, *ORDERS):
        raise UnknownNameError("order", str(data.class_order), ORDERS, ", ".join(ORDERS))
    if data.class_order is not None and data.classes_file is not None and not data.labels_file:
        raise UsageError(
            f"--classes {data.classes_file} numbers the folders already\n"
            "leave out --class-order, or the list"
        )


def _require_flat_folder(source: ImageSet, path: Path) -> FileImages:
    if not isinstance(source, FileImages) or not path.is_dir() or source.labels is not None:
        what = "has labels of its own" if source.labels is not None else "is not a folder of images"
        raise UsageError(
            f"--labels-file does not apply: {path} {what}\n"
            "expected a folder with nothing but images in it, or no --labels-file"
        )
    return source


def _by_folder(
    source: FileImages, folders: tuple[str, ...], data: LabelledData, model: ModelClasses
) -> FileImages:
    classes = _known_classes(data, model, folders)
    if classes is None:
        # With a folder too few, all numbers behind the missing one would be wrong.
        if model.count not in (None, len(folders)):
            raise DataError(
                f"{data.path} has {len(folders)} class folders, the model has {model.count} "
                f"classes: sorting does not tell which\n{_GIVE}"
            )
        classes = tuple(
            _ordered(folders, data.class_order, f"the class folders of {data.path}", _OR_A_LIST)
        )
    places = unique_names(classes)
    unknown = [folder for folder in folders if folder not in places]
    if unknown:
        raise DataError(
            f"{data.path / unknown[0]} is none of the {len(classes)} classes of "
            f"{data.classes_file}\nexpected folders such as {classes[0]!r}"
        )
    numbers = np.array([places[folder] for folder in folders], np.int64)
    return _labelled(source, numbers[source.labels], classes)


def _with_label_file(
    source: FileImages, data: LabelledData, file: Path, model: ModelClasses
) -> FileImages:
    labels = read_label_file(file, source.paths, image_suffixes(), data.class_order)
    words = {label.text for label in labels if label.number is None}
    classes = _known_classes(data, model, words)
    if classes is None and words:
        classes = _sorted_synsets(file, labels, words, model)
    places = unique_names(classes or ())
    limit = model.count if classes is None else len(classes)
    numbers = np.array([_number(file, label, places, limit) for label in labels], np.int64)
    return _labelled(source, numbers, classes)


def _labelled(
    source: FileImages, labels: NDArray[np.int64], classes: tuple[str, ...] | None
) -> FileImages:
    labels.setflags(write=False)
    return replace(source, labels=labels, classes=classes)


def _known_classes(
    data: LabelledData, model: ModelClasses, used: Collection[str]
) -> tuple[str, ...] | None:
    """The list of classes that was given or lies beside the images, or the model's own."""
    if data.classes_file is not None:
        classes = _read_classes(data.classes_file)
        if model.count not in (None, len(classes)):
            raise DataError(
                f"{data.classes_file} lists {len(classes)} classes, the model has {model.count}\n"
                "expected one per line, in the order of the model's outputs"
            )
        return classes
    if data.class_order is not None and data.labels_file is None:
        return None  # the user says how the folders are sorted
    # Lists that were found, not given: one that does not fit is passed over, not an error.
    lists = [_read_classes(path) for path in _mappings(data)]
    lists += [] if model.names is None else [model.names]
    fitting = (one for one in lists if model.count in (None, len(one)))
    return next((one for one in fitting if unique_names(one).keys() >= set(used)), None)


def _mappings(data: LabelledData) -> list[Path]:
    # absolute(): the parent of the relative path "." is "." again.
    folders = [data.path, data.path.absolute().parent]
    if data.labels_file is not None:
        folders.append(data.labels_file.parent)
    found = dict.fromkeys(folder.absolute() / MAPPING for folder in folders)
    return [file for file in found if file.is_file()]


def _read_classes(path: Path) -> tuple[str, ...]:
    classes = tuple(_class_of(name) for name in read_folder_names(path))
    if not classes:
        raise DataError(f"{path} lists no classes\nexpected one per line")
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path} lists {name!r} {times} times\nexpected each class once")
    return classes


def _class_of(line: str) -> str:
    # Words may follow a synset; the name of a folder may have spaces and is kept whole.
    synset = SYNSET.match(line)
    return line if synset is None else line.split(maxsplit=1)[0]


def _sorted_synsets(
    file: Path, labels: tuple[Label, ...], words: set[str], model: ModelClasses
) -> tuple[str, ...]:
    for label in labels:
        if label.number is None and not SYNSET.fullmatch(label.text):
            raise _unknown(file, label)
    # With a synset too few, all numbers behind the missing one would be wrong.
    if len(words) != model.count:
        how_many = "an unknown number of" if model.count is None else model.count
        raise DataError(
            f"{file} names {len(words)} synsets, the model has {how_many} classes: "
            f"sorting does not tell which\n{_GIVE}"
        )
    return tuple(sorted(words))


def _number(file: Path, label: Label, places: Mapping[str, int], limit: int | None) -> int:
    if label.text in places:
        return places[label.text]
    number = label.number
    if number is None:
        raise _unknown(file, label)
    if number < 0 or (limit is not None and number >= limit):
        highest = "up" if limit is None else f"to {limit - 1}"
        raise DataError(
            f"{file}, line {label.line}: label {number}\n"
            f"expected 0 {highest}, places in the sorted synsets; the numbers from 1 of ImageNet's "
            "development kit\nare in another order: use LOC_val_solution.csv"
        )
    return number


def _unknown(file: Path, label: Label) -> DataError:
    return DataError(
        f"{file}, line {label.line}: unknown label {label.text!r}\n"
        "expected a number from 0 up, a synset such as n01440764, or a name of --classes"
    )

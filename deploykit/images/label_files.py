"""Text files of labels and class names, as editors, spreadsheets and programs write them."""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from unicodedata import category

from deploykit.core.errors import DataError
from deploykit.core.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


NAMES: Final = "one class name per line"

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, by which a file says its encoding: Notepad and PowerShell write them."""

_REMEDY: Final = "convert it: iconv -f {} -t utf-8 {} > NEW"

_ENCODINGS: Final = ("cp1252", "cp932", "gbk", "big5", "cp949", "cp1251")
"""Of Windows, as iconv calls them: western, Japanese (Shift-JIS), Chinese, Korean, Cyrillic."""

_SHOWN: Final = 24
"""Letters of a line that a message shows."""

_NUMBERED: Final = re.compile(r"\s*(\d{1,9})\s*[,;:\t]\s*(\S.*|)")
_NUMBER_FIRST: Final = re.compile(r"\s*(\d{1,9})(?:[.)]|\s*-)?\s+(\S.*)")
"""As ``0 red``, ``0. red`` or ``0 - red``, which names may be as well: ``1 star``, ``2 stars``."""

_LEAST_NUMBERED: Final = 2
"""Lines that show that numbers count; a single one may be a name."""


def read_text(path: Path, expected: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; without marks.

    ``expected`` says what the file should hold, for the message.

    Raises:
        DataError: it cannot be read, or is in another encoding.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}\nexpected {expected}"
        ) from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and b"\0" in content:
            raise _wide(path, content, expected) from error
        if encoding != "utf-8":
            raise DataError(
                f"cannot read {path}: it is cut off, or not {encoding.upper()} as its first bytes "
                f"say\nexpected UTF-8 text, or UTF-16 with a byte order mark: {expected}"
            ) from error
        raise _not_utf8(path, content, error.start, expected) from error
    if "\0" in text:
        raise _wide(path, content, expected)
    return text.replace("\ufeff", "")


def _not_utf8(path: Path, content: bytes, at: int, expected: str) -> DataError:
    """Text of one byte, or one to two, for each letter: it does not say which encoding that is.

    Any of them makes letters of nearly any bytes. So the line is shown in each that can be meant,
    and who reads it knows which is right.
    """
    lines = content.splitlines()
    number = content[:at].count(b"\n") + 1
    line = next(each for each in lines if not _is_utf8(each))
    readings = {name: line.decode(name) for name in _ENCODINGS if _is_text(content, name)}
    shown = ", ".join(f"{text.strip()[:_SHOWN]!r} in {name}" for name, text in readings.items())
    first = next(iter(readings), "ENCODING")
    choice = f"; line {number} is {shown}" if shown else ""
    return DataError(
        f"cannot read {path}: line {number} is not UTF-8 (byte 0x{content[at]:02x})\n"
        f"expected UTF-8 text, or UTF-16 with a byte order mark: {expected}\n"
        f"{_REMEDY.format(first, path.name)}{choice}"
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_text(content: bytes, encoding: str) -> bool:
    """Whether all of it decodes to what is printed: letters, no control characters."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\r\n\t\xa0\xad\u3000" for letter in text)


def _wide(path: Path, content: bytes, expected: str) -> DataError:
    """Text of two bytes for each letter, of which one is 0 where it is ASCII."""
    is_little = content[1::2].count(0) >= content[::2].count(0)
    perhaps = f"utf-16{'le' if is_little else 'be'}"
    return DataError(
        f"cannot read {path}: it has {content.count(0)} NUL characters; is it {perhaps}?\n"
        f"expected UTF-8 text, or UTF-16 with a byte order mark: {expected}\n"
        f"{_REMEDY.format(perhaps, path.name)}"
    )


def lines_of(text: str) -> list[str]:
    r"""The lines, stripped, without empty ones at the end.

    Only what editors write ends a line: a name may have other separators of Unicode in it.

    >>> lines_of("red\r\n deep\u2028blue \r\n\r\n")
    ['red', 'deep\u2028blue']
    """
    lines = [line.strip(" \t") for line in re.split("\r\n|\r|\n", text)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Names of the classes by index; ``note`` says where numbers in front of them were left out."""

    names: tuple[str, ...]
    note: str | None = None


def read_class_names(path: Path) -> tuple[str, ...]:
    """As `read_class_names_with_note`, the names alone."""
    return read_class_names_with_note(path).names


def read_folder_names(path: Path) -> tuple[str, ...]:
    """As `read_class_names`, of folders: ``0 red`` and ``0: red`` may be called so, and stay.

    Raises:
        DataError: as `read_class_names_with_note`.
    """
    lines = lines_of(read_text(path, NAMES)) if path.suffix.lower() == ".txt" else []
    if any(_NUMBER_FIRST.fullmatch(line) or ":" in line for line in lines) and "" not in lines:
        return tuple(lines)
    return read_class_names(path)


def require_lines(labels: Sequence[str] | None) -> None:
    """Refuse names that are no line of a file: what comes after a break would name the next class.

    Raises:
        DataError: a name has a control character or another break.
    """
    for label in labels or ():
        if "".join(label.splitlines()) != label or any(category(each) == "Cc" for each in label):
            raise DataError(
                f"the class name {label!r} has a line break or another control character\n"
                "expected names of one line each"
            )


def read_class_names_with_note(path: Path) -> ClassNames:
    """Names of the classes by index: one on each line, or each with its number.

    Lines of ``number,name`` (or with a semicolon, a colon or a tab) count by their numbers, and so
    do those of ``number name`` that count from 0. So does JSON, or the same as Python writes it: a
    list of names, ``{"0": "red"}``, ``{"red": 0}`` or a Hugging Face ``config.json``.

    Raises:
        DataError: the file cannot be read, names a class with nothing but blanks, or its numbers
            are not 0 and up without a gap.
    """
    text = read_text(path, NAMES)
    if path.suffix.lower() == ".json":
        return ClassNames(_named(path, _of_json(path, text)))
    pairs = _of_python(text)
    if pairs:
        return _without_numbers(path, _by_number(path, pairs), "{0: 'name', ...}")
    lines = lines_of(text)
    if "" in lines:
        raise DataError(
            f"{path}, line {lines.index('') + 1}: the line is empty, and names no class\n"
            f"expected {NAMES}: remove the line, or write the name of its class"
        )
    if path.suffix.lower() in {".csv", ".tsv"}:
        return ClassNames(_named(path, _of_table(path, lines)))
    names = _of_lines(path, lines)
    if names is None:
        return ClassNames(_named(path, tuple(lines)))
    return _without_numbers(path, names, repr(lines[0][:_SHOWN]))


def _without_numbers(path: Path, names: tuple[str, ...], written: str) -> ClassNames:
    named = _named(path, names)
    return ClassNames(
        named, f"{path.name} numbers its classes, as {written}: class 0 is called {named[0]!r}"
    )


def _named(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, if each of them is one."""
    empty = [index for index, name in enumerate(names) if not name.strip()]
    if empty:
        raise DataError(
            f"{path}: the name of class {empty[0]} is empty\nexpected a name for each class"
        )
    return names


def _of_lines(path: Path, lines: Sequence[str]) -> tuple[str, ...] | None:
    """The names of lines that all begin with a number of their own; ``None`` of others."""
    if len(lines) < _LEAST_NUMBERED:
        return None
    pairs = _pairs_by(_NUMBERED, lines)
    if pairs is None:
        pairs = _pairs_by(_NUMBER_FIRST, lines)
        if pairs is None or min(pairs)[0] > 0:
            return None
    return _by_number(path, pairs)


def _pairs_by(pattern: re.Pattern[str], lines: Sequence[str]) -> list[tuple[int, str]] | None:
    """Number and name of each line, where all have one and the numbers have no gap."""
    found = [pattern.fullmatch(line) for line in lines]
    pairs = [(int(each[1]), each[2]) for each in found if each is not None]
    numbers = sorted(number for number, _ in pairs)
    first = min(numbers, default=0)
    return pairs if numbers == list(range(first, first + len(lines))) else None


def _of_python(text: str) -> list[tuple[int, str]]:
    """Number and name of each entry of a dictionary as Python prints it; empty of other text."""
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    if not isinstance(found, dict):
        return []
    keyed = {str(key) if type(key) is int else key: value for key, value in found.items()}
    return _pairs(keyed) if keyed and all(isinstance(key, str) for key in keyed) else []


def _of_table(path: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """As a spreadsheet saves it: a header may be there, names may be quoted."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    if lines and separator not in lines[0] and ";" in lines[0]:
        separator = ";"  # where a comma is the decimal sign
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}\nexpected {NAMES}") from error
    if all(len(row) == 1 for row in rows):
        return tuple(row[0] for row in rows)
    if any(len(row) != 2 for row in rows):  # noqa: PLR2004 - a number and a name
        return tuple(lines)
    for number, name in ((0, 1), (1, 0)):
        body = rows if rows[0][number].isdecimal() else rows[1:]
        if body and all(row[number].isdecimal() for row in body):
            return _by_number(path, [(int(row[number]), row[name]) for row in body])
    return tuple(lines)


def _of_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: it is no JSON, {error}\n{_JSON}") from error
    if isinstance(found, dict):
        found = found.get("id2label", found)
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return tuple(found)
    pairs = _pairs(found) if isinstance(found, dict) else []
    if not pairs:
        raise DataError(f"{path} has no class names\n{_JSON}")
    return _by_number(path, pairs)


_JSON: Final = 'expected a list of names, {"0": "red", "1": "green"} or {"red": 0, "green": 1}'


def _pairs(found: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Number and name of each entry, whichever is the key; empty where there are none."""
    if all(type(value) is int for value in found.values()):
        return [(value, name) for name, value in found.items()]
    # Keras lists synset and word: {"0": ["n01440764", "tench"]}.
    names = {
        key: value[-1] if isinstance(value, list) and value else value
        for key, value in found.items()
    }
    fits = all(key.isdecimal() and isinstance(name, str) for key, name in names.items())
    return [(int(key), name) for key, name in names.items()] if fits else []


def _by_number(path: Path, pairs: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    numbers = sorted(number for number, _ in pairs)
    if numbers != list(range(len(pairs))):
        raise DataError(
            f"{path} numbers {len(pairs)} classes from {numbers[0]} to {numbers[-1]}\n"
            f"expected each number of 0 to {len(pairs) - 1} once, the place among the outputs"
        )
    return tuple(name for _, name in sorted(pairs))

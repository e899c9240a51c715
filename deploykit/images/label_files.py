"""Text files of labels and class names, as editors, spreadsheets and programs write them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any, Final

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

_NUMBERED: Final = re.compile(r"\s*(\d{1,9})\s*[,;\t]\s*(\S.*|)")


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
        line = content[: error.start].count(b"\n") + 1
        reason = f"line {line} is not UTF-8 (byte 0x{content[error.start]:02x})"
        raise _other_encoding(path, reason, "latin1", expected) from error
    if "\0" in text:
        raise _wide(path, content, expected)
    return text.replace("\ufeff", "")


def _wide(path: Path, content: bytes, expected: str) -> DataError:
    """Text of two bytes for each letter, of which one is 0 where it is ASCII."""
    is_little = content[1::2].count(0) >= content[::2].count(0)
    reason = f"it has {content.count(0)} NUL characters"
    return _other_encoding(path, reason, f"utf-16{'le' if is_little else 'be'}", expected)


def _other_encoding(path: Path, reason: str, perhaps: str, expected: str) -> DataError:
    return DataError(
        f"cannot read {path}: {reason}; is it {perhaps}?\n"
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


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names of the classes by index: one on each line, or each with its number.

    Lines of ``number,name`` (or with a semicolon or a tab) count by their numbers; so does JSON, a
    list of names, ``{"0": "red"}``, ``{"red": 0}`` or a Hugging Face ``config.json``.

    Raises:
        DataError: the file cannot be read, names a class with nothing but blanks, or its numbers
            are not 0 and up without a gap.
    """
    text = read_text(path, NAMES)
    if path.suffix.lower() == ".json":
        return _named(path, _of_json(path, text))
    lines = lines_of(text)
    if "" in lines:
        raise DataError(
            f"{path}, line {lines.index('') + 1}: the line is empty, and names no class\n"
            f"expected {NAMES}: remove the line, or write the name of its class"
        )
    is_table = path.suffix.lower() in {".csv", ".tsv"}
    return _named(path, _of_table(path, lines) if is_table else _of_lines(path, lines))


def _named(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, if each of them is one."""
    empty = [index for index, name in enumerate(names) if not name.strip()]
    if empty:
        raise DataError(
            f"{path}: the name of class {empty[0]} is empty\nexpected a name for each class"
        )
    return names


def _of_lines(path: Path, lines: Sequence[str]) -> tuple[str, ...]:
    pairs = [_NUMBERED.fullmatch(line) for line in lines]
    numbers = [int(pair[1]) for pair in pairs if pair is not None]
    first = min(numbers, default=0)
    if not lines or sorted(numbers) != list(range(first, first + len(lines))):
        return tuple(lines)
    return _by_number(path, [(int(pair[1]), pair[2]) for pair in pairs if pair is not None])


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

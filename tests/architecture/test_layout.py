"""The layout of the package and of its tests: rooms, names that exist once, sizes, docstrings."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import deploykit
from deploykit.cli import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(str(deploykit.__file__)).parent
UNIT = Path(__file__).parents[1] / "unit"
PROJECT = ("benchmarks",)
"""Folders of `tests/unit` for what lies beside the package."""

ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(path for path in UNIT.rglob("test_*.py") if path.parent != UNIT)

LONGEST_FILE = 500
LONGEST_FUNCTION = 60
REASON = "One file because "
"""Begins the sentence by which a docstring explains a longer file."""

RIDDLES = frozenset({"How", "Old", "Several", "What", "Where", "Whether", "Which"})
"""First words that put off the subject."""


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def folders(root: Path) -> list[Path]:
    """Folders with Python files in them."""
    return sorted({path.parent for path in root.rglob("*.py") if path.parent != root})


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def mentioned(path: Path) -> frozenset[str]:
    """What is imported by the file, by the helpers that it imports, and by code in its strings."""
    names = imported(path)
    helpers = {UNIT.parents[1].joinpath(*name.split(".")).with_suffix(".py") for name in names}
    for helper in helpers:
        if UNIT.parent in helper.parents and helper.is_file():
            names |= imported(helper)
    strings = (n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant))
    words = (word for text in strings if isinstance(text, str) for word in text.split())
    return names | {word for word in words if word.startswith("deploykit.")}


# --- tests mirror the package


def test_every_folder_of_unit_tests_is_one_of_the_package() -> None:
    names = [folder.relative_to(UNIT) for folder in folders(UNIT)]
    strange = [str(name) for name in names if not (PACKAGE / name).is_dir()]
    assert [name for name in strange if name not in PROJECT] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_tests(room: str) -> None:
    assert list((UNIT / room).rglob("test_*.py")) != []


def test_every_test_imports_something_of_its_room() -> None:
    strangers = []
    for path in TESTS:
        room = path.relative_to(UNIT).parts[0]
        home = f"{room}" if room in PROJECT else f"deploykit.{room}"
        names = mentioned(path)
        if not any(name == home or name.startswith(f"{home}.") for name in names | {room}):
            strangers.append(str(path.relative_to(UNIT)))
    assert strangers == []


# --- names


def test_a_command_has_one_module_beside_its_command_line() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        if path.parent.name != "cli" and path.stem in COMMANDS:
            homes[path.stem].append(relative(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_no_room_has_the_name_of_a_public_function() -> None:
    """``import deploykit.bench`` would put a module in the function's place."""
    assert set(ROOMS) & set(deploykit.__all__) == set()


def test_a_public_class_is_defined_once() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(relative(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_there_is_no_drawer_for_the_rest() -> None:
    drawers = {"common", "helpers", "misc", "util", "utils"}
    assert [relative(path) for path in MODULES if path.stem in drawers] == []


# --- files and functions


def test_a_docstring_begins_with_its_subject() -> None:
    docs = {relative(path): ast.get_docstring(parsed(path)) or "" for path in MODULES}
    assert [name for name, doc in docs.items() if not doc] == []
    assert [name for name, doc in docs.items() if doc.split(" ")[0] in RIDDLES] == []


def test_a_long_file_says_why_it_is_one() -> None:
    long = [p for p in MODULES if len(p.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE]
    docs = {relative(path): ast.get_docstring(parsed(path)) or "" for path in long}
    assert [name for name, doc in docs.items() if REASON not in doc] == []


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the name on, without the docstring; decorators are apart."""
    first: ast.stmt = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = int(first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return int(function.end_lineno or 0) - function.lineno + 1 - docstring


def too_long(paths: Iterable[Path]) -> list[str]:
    return [
        f"{relative(path)}: {function.name} has {lines_of(function)} lines"
        for path in paths
        for function in functions(path)
        if lines_of(function) > LONGEST_FUNCTION
    ]


def test_functions_are_short() -> None:
    """The parameters of `export` are its options, one a line."""
    options = "deploykit/cli/export.py: command ", "deploykit/verbs/from_python.py: export "
    assert [found for found in too_long(MODULES) if not found.startswith(options)] == []

"""Every line that a user is told to install with: none takes a stranger's package for ours."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deploykit.core import environment

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = sorted(
    path
    for part in ("*.md", "docs/**/*.md", "docs/**/*.py", "deploykit/**/*.py", ".ci/*", "*.yaml")
    for path in ROOT.glob(part)
    if path.is_file()
)
LINE = re.compile(r"pip install ([^\n`&]*)")
OURS = re.compile(r"\bdeploykit(?:-vision)?(?=[\[=<>~ '\"]|$)(?!(?:\[[\w,]+\])? @ git\+)")
"""Our name where an index would be asked for it; not before the address of a repository."""


def wrong_with(line: str) -> list[str]:
    """What of the arguments of ``pip install`` an index would be asked for, or does not work."""
    bare = re.findall(r"(?<!['\"\w])\.\[\w+", line)
    extras = {
        name for found in re.findall(r"\.(?:whl\))?\[([\w,]+)\]", line) for name in found.split(",")
    }
    return [*OURS.findall(line), *bare, *sorted(extras - EXTRAS.keys())]


def test_no_line_installs_our_name_from_an_index() -> None:
    found = [(path, line) for path in FILES for line in LINE.findall(path.read_text("utf-8"))]
    assert found
    assert [(path, line) for path, line in found if wrong_with(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "deploykit",
        "'deploykit[rtx]'",
        "-U 'deploykit>=1'",
        "deploykit-vision",
        "deploykit-vision[rtx]",
        "-e .[dev]",
    ],
)
def test_what_the_test_would_find(line: str) -> None:
    assert wrong_with(line)


@pytest.mark.parametrize(
    "line",
    [
        "-e '.[dev]'",
        '"$(ls dist/*.whl)[rtx]" fastapi',
        "torch",
        '"deploykit-vision[rtx] @ git+https://HOST/OWNER/deploykit.git"',
    ],
)
def test_what_it_lets_pass(line: str) -> None:
    assert not wrong_with(line)


def test_messages_name_what_the_extras_name() -> None:
    """A package that a message asks for is one that pyproject.toml knows, with its bounds."""
    known = {
        re.split(r"[\[<>=;~ ]", each)[0]
        for each in [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    }
    lines = {*environment._INSTALL_LINES.values()}
    named = {name for line in lines for name in line.removeprefix("pip install ").split()}
    assert named <= known


def test_the_extras_refer_to_our_own_distribution() -> None:
    own = [one for extra in EXTRAS.values() for one in extra if one.startswith("deploykit")]
    assert own
    assert all(one.startswith(f"{PROJECT['name']}[") for one in own)

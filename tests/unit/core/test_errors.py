from __future__ import annotations

import re

import pytest

from deploykit.core import errors
from deploykit.core.errors import DeploykitError, UnknownNameError, UsageError

NAMES = ["resnet18", "resnet34", "resnet50", "vgg16"]


def own_errors() -> list[type[DeploykitError]]:
    members = vars(errors).values()
    return [m for m in members if isinstance(m, type) and issubclass(m, DeploykitError)]


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = re.findall(r"^([│ ]*)(?:├──|└──)? ?(\w+Error)\b", str(errors.__doc__), re.MULTILINE)
    parents: dict[int, str] = {}
    tree = {}
    for indent, name in drawn:
        depth = 0 if name == "DeploykitError" else 1 + len(indent) // 4
        parents[depth] = name
        if depth:
            tree[name] = parents[depth - 1]
    assert tree == {
        error.__name__: error.__bases__[0].__name__
        for error in own_errors()
        if error is not DeploykitError
    }


def test_every_error_is_one_that_a_caller_can_catch_and_has_words() -> None:
    for error in own_errors():
        assert issubclass(error, DeploykitError)
        assert error.__doc__
        assert error.details is None


def test_a_wrong_call_is_also_a_value_error() -> None:
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize(
    ("name", "matches"),
    [("resnet5", ("resnet50", "resnet34", "resnet18")), ("vgg-16", ("vgg16",)), ("zzz", ())],
)
def test_an_unknown_name_suggests_close_ones(name: str, matches: tuple[str, ...]) -> None:
    error = UnknownNameError("architecture", name, NAMES, "deploykit list")
    lines = str(error).splitlines()
    assert lines[0] == f"unknown architecture '{name}'"
    assert lines[-1] == "all of them: deploykit list"
    assert set(error.matches) == set(matches)
    assert len(lines) == (3 if matches else 2)
    assert all(match in lines[1] for match in matches)

"""What a recipe says, and what is wrong with it, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import UsageError
from deploykit.recipes.reading import Problems, Recipe, read_recipe
from tests.recipes import NotedCommands

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, text: str) -> tuple[Recipe, list[str]]:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    problems = Problems(path)
    recipe = read_recipe(path, NotedCommands(), problems)
    return recipe, [one.line(path.name) for one in problems.found]


def test_defaults_hold_where_an_entry_says_nothing_else(tmp_path: Path) -> None:
    recipe, problems = read(
        tmp_path,
        """
        precision = ["fp16", "int8"]
        calib = "images"
        level = 2
        [[export]]
        target = ["a.onnx", "b.onnx", "a.onnx"]
        [[export]]
        target = "c.onnx"
        fp16 = true
        level = 3
        output = "mine"
        [check]
        [eval]
        data = "val"
        """,
    )
    assert problems == []
    first, second = recipe.entries
    assert first.targets == ("a.onnx", "b.onnx")
    assert first.precisions == ("fp16", "int8")
    assert first.values == {"calib": "images", "level": 2}
    assert (second.precisions, second.output) == (("fp16",), "mine")
    assert second.values == {"calib": "images", "level": 3}
    assert second.own == {"fp16", "level"}
    assert recipe.after == {"check": {}, "eval": {"data": "val"}}
    assert recipe.output == tmp_path / "engines"


def test_what_is_left_out(tmp_path: Path) -> None:
    recipe, problems = read(tmp_path, 'output = "o"\ncheck = true\n[export]\ntarget = "a"\n')
    assert problems == []
    assert recipe.entries[0].precisions == (None,)
    assert (recipe.output, recipe.after) == (tmp_path / "o", {"check": {}})
    assert read(tmp_path, 'check = false\n[export]\ntarget = "a"')[0].after == {}


@pytest.mark.parametrize(
    ("top", "own", "asked"),
    [
        ("fp16 = true", "fp16 = false", (None,)),
        ('precision = ["fp16", "int8"]', "fp16 = false", ("int8",)),
        ("fp16 = true", "int8 = false", ("fp16",)),
        ("fp16 = true", "fp16 = false\nint8 = true", ("int8",)),
        ("fp16 = false", "fp16 = true", ("fp16",)),
    ],
)
def test_an_entry_turns_a_precision_off(
    top: str, own: str, asked: tuple[str | None, ...], tmp_path: Path
) -> None:
    recipe, problems = read(tmp_path, f"{top}\n[export]\ntarget = 'a'\n{own}")
    assert problems == []
    assert recipe.entries[0].precisions == asked


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    recipe, problems = read(tmp_path, "\ufeff[export]\ntarget = 'a'")
    assert problems == []
    assert recipe.entries[0].targets == ("a",)


WRONG: dict[str, list[str]] = {
    "": ['r.toml: there is no [[export]], so nothing to do; as: [[export]] target = "resnet50"'],
    "export = 3": ["r.toml, the top, export: is 3, expected tables [[export]]"],
    "exprot = 1\n[export]\ntarget = 'a'": [
        "r.toml, the top, exprot: is no key; did you mean export?"
    ],
    "output = 1\n[export]\ntarget = 'a'": [
        "r.toml, the top, output: is 1, expected the folder of all bundles"
    ],
    "[export]\ntarget = 'a'\nmax_drop = 1": [
        "r.toml, [[export]], max_drop: is no key; did you mean max-drop?"
    ],
    "[[export]]\ntargets = 'a'\n[[export]]\ntarget = ['a', 1]\n[[export]]\ntarget = ''": [
        "r.toml, [[export]] 1, targets: is no key; did you mean target?",
        (
            'r.toml, [[export]] 1, target: is missing, expected a text or a list: "resnet50", '
            '"mine.onnx"'
        ),
        (
            'r.toml, [[export]] 2, target: is ["a", 1], expected a text or a list: "resnet50", '
            '"mine.onnx"'
        ),
        'r.toml, [[export]] 3, target: is "", expected a text or a list: "resnet50", "mine.onnx"',
    ],
    "[export]\ntarget = 'a'\noutput = 3": [
        "r.toml, [[export]], output: is 3, expected the folder of the bundle"
    ],
    "precision = ['fp17', 'fp16']\n[export]\ntarget = 'a'": [
        'r.toml, the top, precision: is "fp17", which is none; did you mean fp16?'
    ],
    "[export]\ntarget = 'a'\nprecision = []": [
        (
            "r.toml, [[export]], precision: is [], which is none; possible: fp32, fp16, bf16, "
            "int8, fp8, auto"
        )
    ],
    "[export]\ntarget = 'a'\nfp16 = 'yes'\nlevel = 10": [
        'r.toml, [[export]], fp16: is "yes", expected true or false',
        "r.toml, [[export]], level: is 10: 10 is above 9",
    ],
    "[export]\ntarget = 'a'\nfp16 = false\nprecision = 'fp16'": [
        "r.toml, [[export]], fp16: is false, and precision names it: leave one out"
    ],
    "check = 1\n[export]\ntarget = 'a'": [
        "r.toml, [check]: is 1, expected a table of options, or true"
    ],
    "[export]\ntarget = 'a'\n[eval]\nbatch = 'b'\n[bench]\nab = 'x'": [
        'r.toml, [eval], batch: is "b", expected a whole number',
        "r.toml, [eval], data: is missing, expected a path, as a text",
        "r.toml, [bench], ab: is no key; possible: batch",
    ],
}


@pytest.mark.parametrize("text", WRONG)
def test_everything_that_is_wrong_is_said(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text)[1] == WRONG[text]


def test_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for place in (path, tmp_path):
        with pytest.raises(UsageError, match=r"^there is no recipe .*\nexpected a \.toml file"):
            read_recipe(place, NotedCommands(), Problems(place))
    for content in (b"a = ", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"r\.toml is no TOML: "):
            read_recipe(path, NotedCommands(), Problems(path))
    with pytest.raises(UsageError, match=r"^cannot read .*: File name too long"):
        read_recipe(tmp_path / ("n" * 300), NotedCommands(), Problems(path))


def test_problems_are_one_error(tmp_path: Path) -> None:
    problems = Problems(tmp_path / "r.toml")
    problems.require_none()
    problems.add("[eval]", "data", "is missing")
    problems.add("[eval]", "data", "is missing")
    with pytest.raises(UsageError, match=r"r\.toml has a problem, nothing was done\nr\.toml, \[ev"):
        problems.require_none()
    problems.add("[eval]", "batch", "is 0")
    with pytest.raises(UsageError, match="has 2 problems"):
        problems.require_none()

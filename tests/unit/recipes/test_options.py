"""Values of TOML as arguments of a command line."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.recipes.options import Form, Use, ValueRefusedError, arguments_of
from tests.recipes import OPTIONS, option

if TYPE_CHECKING:
    from deploykit.recipes.options import CommandOption

SIZES = option("batch", metavar="MIN,OPT,MAX", is_repeated=True)
NAMES = option("backend", metavar="A,B")
CAPABILITY = option("compute-capability", metavar="CC", is_repeated=True)
JSON = option("factory-args", metavar="JSON")
SPIN = replace(option("spin", Form.SWITCH), flags=("--spin", "--no-spin"))
PATH = option("calib", Form.PATH, words=("random",))

GIVEN: list[tuple[CommandOption, Any, list[str]]] = [
    (option("replace", Form.SWITCH), True, ["--replace"]),
    (option("replace", Form.SWITCH), False, []),
    (SPIN, False, ["--no-spin"]),
    (SPIN, True, ["--spin"]),
    (option("seed", Form.INTEGER), 3, ["--seed", "3"]),
    (option("rate", Form.NUMBER), 2, ["--rate", "2"]),
    (option("max-drop"), 0.01, ["--max-drop", "0.01"]),
    (option("max-drop"), "1%", ["--max-drop", "1%"]),
    (option("seed", Form.INTEGER), -1, ["--seed=-1"]),
    (SIZES, [1, 8, 32], ["--batch", "1,8,32"]),
    (SIZES, 8, ["--batch", "8"]),
    (SIZES, ["1", "8,8,8"], ["--batch", "1", "--batch", "8,8,8"]),
    (SIZES, [[1, 1, 1], [8, 16, 32]], ["--batch", "1,1,1", "--batch", "8,16,32"]),
    (NAMES, ["ort", "eager"], ["--backend", "ort,eager"]),
    (CAPABILITY, [8.6, "8.9"], ["--compute-capability", "8.6", "--compute-capability", "8.9"]),
    (option("factory-args", metavar="JSON"), {"d": 18}, ["--factory-args", '{"d": 18}']),
    (PATH, "images/../x", ["--calib", "nets/x"]),
    (PATH, "/images", ["--calib", "/images"]),
    (PATH, "random", ["--calib", "random"]),
    (option("weights", Form.PATH), "a.pth#ema", ["--weights", "nets/a.pth#ema"]),
]


@pytest.mark.parametrize(("asked", "value", "expected"), GIVEN)
def test_what_a_value_becomes(asked: CommandOption, value: Any, expected: list[str]) -> None:
    assert list(arguments_of(asked, value, Path("nets"))) == expected


REFUSED: list[tuple[CommandOption, Any, str]] = [
    (SPIN, "yes", 'is "yes", expected true or false'),
    (option("seed", Form.INTEGER), "3", 'is "3", expected a whole number'),
    (option("seed", Form.INTEGER), 1.5, "is 1.5, expected a whole number"),
    (option("seed", Form.INTEGER), True, "is true, expected a whole number"),
    (option("rate", Form.NUMBER), "fast", 'is "fast", expected a number'),
    (PATH, 5, "is 5, expected a path, as a text"),
    (option("head", metavar="NAME"), ["a"], 'is ["a"], expected a text, NAME'),
    (SIZES, [], "is [], expected a text, MIN,OPT,MAX, or a list"),
    (SIZES, {"a": 1}, 'is {"a": 1}, expected a text'),
    (NAMES, [["ort"]], 'is [["ort"]], expected a text, A,B, or a list'),
    (JSON, {"when": date(2026, 1, 1)}, 'is {"when": "2026-01-01"}, expected a text, JSON, which'),
    (JSON, {"rate": float("nan")}, 'is {"rate": NaN}, expected a text, JSON, which has'),
    (option("head"), "x" * 99, "x ..."),
    (OPTIONS["export"][-2], 12, "is 12: 12 is above 9"),
]


@pytest.mark.parametrize(("asked", "value", "said"), REFUSED)
def test_what_is_refused(asked: CommandOption, value: Any, said: str) -> None:
    if said.endswith(" ..."):
        asked = replace(asked, form=Form.INTEGER)
    with pytest.raises(ValueRefusedError, match=re.escape(said)):
        arguments_of(asked, value, Path())


@pytest.mark.parametrize(
    ("use", "fitting"),
    [
        (Use.ALL, {None, "fp16", "int8", "fp8", "auto"}),
        (Use.QUANTIZED, {"int8", "fp8", "auto"}),
        (Use.BUDGET, {"auto"}),
    ],
)
def test_which_precision_has_a_use_for_it(use: Use, fitting: set[str | None]) -> None:
    asked = option("x", use=use)
    assert {each for each in (None, "fp16", "int8", "fp8", "auto") if asked.is_for(each)} == fitting

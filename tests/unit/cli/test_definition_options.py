"""Options of a definition, from text to choices."""

from __future__ import annotations

import pytest

from deploykit.cli._options import read_choices
from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import UsageError
from deploykit.core.specs import Preprocessing


def test_nothing_given_chooses_nothing() -> None:
    assert read_choices() == DefinitionChoices()


@pytest.mark.parametrize(
    ("text", "expected"), [("256", 256), ("224x192", (224, 192)), ("224X192", (224, 192))]
)
def test_sides(text: str, expected: object) -> None:
    assert read_choices(resize=text).preprocessing.resize == expected


@pytest.mark.parametrize("text", ["", "0", "224x", "1x2x3", "-3", "2.5", "²"])
def test_sides_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected pixels of the shorter side, as 256, or HxW"):
        read_choices(resize=text)


def test_channels() -> None:
    wanted = PreprocessingChoices(mean=(0.5, 0.5, 0.5), std=(1.0, 0.2, 0.3))
    assert read_choices(mean="0.5, .5,0.50", std="1,.2,.3").preprocessing == wanted
    one = read_choices(mean="0.5", std="1,.2,.3").preprocessing
    assert one.applied_to(Preprocessing((8, 8))) == wanted.applied_to(Preprocessing((8, 8)))


@pytest.mark.parametrize("text", ["", "nan", "0.5,", "1,2", "1,2,3,4", "a,b,c", "1,2,nan"])
def test_channels_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected three numbers for red, green and blue"):
        read_choices(std=text)


def test_arguments_are_an_object() -> None:
    assert read_choices(factory_args='{"depth": 18}').arguments == {"depth": 18}


@pytest.mark.parametrize(
    ("text", "said"),
    [("{depth: 18}", "is not JSON: Expecting property name.*"), ("[1]", r"is \[1\]")],
)
def test_arguments_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"--factory-args {said}\nexpected an object"):
        read_choices(factory_args=text)

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping  # noqa: TC003  (read back by these types)
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray  # noqa: TC002

from deploykit.core.errors import BundleError, DataError, UsageError
from deploykit.core.precision import Precision
from deploykit.core.serialization import (
    Source,
    from_plain,
    known_fields,
    parse_json,
    profile_to_plain,
    to_plain,
)
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec

SOURCE = Source("a.json", BundleError, "write it again")


@dataclass(frozen=True)
class Inner:
    count: int
    share: float
    label: str | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UsageError(f"count is {self.count}\nexpected 0 or more")


@dataclass(frozen=True, slots=True)
class Outer:
    place: Path
    precision: Precision
    others: frozenset[Precision]
    by_batch: Mapping[int, Inner]
    inner: tuple[Inner, ...]
    free: Mapping[str, Any]
    side: Literal["a", "b"] = "a"


@dataclass(frozen=True, eq=False)
class Measured:
    times: NDArray[np.float64]


INNER = Inner(3, 0.1, None)
OUTER = Outer(
    place=Path("folder") / "file",
    precision=Precision("fp16"),
    others=frozenset({Precision("fp32")}),
    by_batch={8: INNER},
    inner=(INNER, Inner(2**70, 5e-324, "\u2028")),
    free={"a": [1, {"b": None}], "nan": 1e300},
)


def through_json(noun: Any) -> Any:
    return json.loads(json.dumps(to_plain(noun), allow_nan=False))


def changed(**changes: Any) -> dict[str, Any]:
    return {**through_json(OUTER), **changes}


def test_a_noun_comes_back_from_json() -> None:
    assert from_plain(Outer, through_json(OUTER), SOURCE) == OUTER
    assert type(from_plain(Outer, through_json(OUTER), SOURCE).precision) is type(OUTER.precision)


def test_plain_data_are_plain() -> None:
    assert through_json(OUTER) == {
        "place": "folder/file",
        "precision": "fp16",
        "others": ["fp32"],
        "by_batch": {"8": {"count": 3, "share": 0.1, "label": None}},
        "inner": [
            {"count": 3, "share": 0.1, "label": None},
            {"count": 2**70, "share": 5e-324, "label": "\u2028"},
        ],
        "free": {"a": [1, {"b": None}], "nan": 1e300},
        "side": "a",
    }
    assert list(to_plain(OUTER)) == [*Outer.__dataclass_fields__]


def test_numpy_and_mappings_become_plain() -> None:
    given = MappingProxyType({"a": np.float32(0.5), "b": np.int64(3), "c": np.ones((1, 2))})
    assert to_plain(given) == {"a": 0.5, "b": 3, "c": [[1.0, 1.0]]}


def test_what_cannot_be_plain_is_refused() -> None:
    with pytest.raises(TypeError, match="object is not plain data"):
        to_plain({"a": object()})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "Expected `object`, got `array`"),
        (None, "Expected `object`, got `null`"),
        (changed(colour="blue"), "Object contains unknown field `colour`"),
        (known_fields(Inner, changed()), "Object missing required field `place`"),
        (changed(side="c"), "Invalid enum value 'c' - at `$.side`"),
        (changed(place=3), "Expected `str`, got `int` - at `$.place`"),
        (changed(precision="fp12"), "unknown precision 'fp12', known: fp32, fp16, bf16, int8, fp8"),
        (changed(precision=None), "Expected `str`, got `NoneType` - at `$.precision`"),
        (changed(precision=["fp32"]), "Expected `str`, got `list` - at `$.precision`"),
        (changed(others=["fp32", 3]), "Expected `str`, got `int` - at `$.others[1]`"),
        (changed(by_batch={"x": INNER}), "Expected `int`, got `str` - at `key` in `$.by_batch`"),
        (changed(inner=[{"count": 1}]), "missing required field `share` - at `$.inner[0]`"),
        (changed(inner=[{"count": True, "share": 1, "label": ""}]), "Expected `int`, got `bool`"),
        (changed(inner=[{"count": 1.5, "share": 1, "label": ""}]), "Expected `int`, got `float`"),
        (changed(inner=[{"count": "1", "share": 1, "label": ""}]), "Expected `int`, got `str`"),
        (changed(inner=[{"count": float("nan"), "share": 1, "label": ""}]), "got `float`"),
        (changed(inner=[{"count": 1, "share": 10**400, "label": ""}]), "Number out of range"),
        (changed(inner=[{"count": 1, "share": "1", "label": ""}]), "Expected `float`, got `str`"),
        (changed(inner=[{"count": 1, "share": 1, "label": 1}]), "Expected `str | null`, got `int`"),
        (changed(inner=[{"count": -1, "share": 1, "label": ""}]), "count is -1\nexpected 0 or"),
        (changed(free=[]), "Expected `object`, got `array` - at `$.free`"),
    ],
)
def test_other_data_are_refused(data: Any, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        from_plain(Outer, data, SOURCE)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("a.json: ")
    assert message in str(caught.value)
    assert lines[-1] == "write it again"
    assert len(lines) <= 3


def test_the_remedy_is_left_out_where_a_message_is_long_enough() -> None:
    assert str(SOURCE.refusal("one\ntwo\nthree")) == "a.json: one\ntwo\nthree"
    assert str(Source("x").refusal("one")) == "x: one"
    assert isinstance(Source("x").refusal("one"), DataError)


def test_a_series_is_a_list_of_numbers() -> None:
    assert from_plain(Measured, {"times": [1, 0.5]}, SOURCE).times == [1.0, 0.5]
    with pytest.raises(BundleError, match=r"Expected `float`, got `bool` - at `\$.times\[1\]`"):
        from_plain(Measured, {"times": [1, True]}, SOURCE)


def test_sizes_are_three_numbers_and_fixed_ones_are_left_out() -> None:
    profile = ShapeProfile(1, 8, 32, height=SizeRange(160, 224, 320))
    plain = profile_to_plain(profile)
    assert plain == {"min_batch": 1, "opt_batch": 8, "max_batch": 32, "height": [160, 224, 320]}
    assert from_plain(ShapeProfile, plain, SOURCE) == profile
    assert from_plain(ShapeProfile, {}, SOURCE) == ShapeProfile()
    with pytest.raises(BundleError, match=r"array` of at most length 3, got 4 - at `\$.height`"):
        from_plain(ShapeProfile, {"height": [1, 2, 3, 4]}, SOURCE)
    with pytest.raises(BundleError, match="the sizes 3,2,1 are not in order"):
        from_plain(ShapeProfile, {"height": [3, 2, 1]}, SOURCE)
    with pytest.raises(BundleError, match="Object contains unknown field `depth`"):
        from_plain(ShapeProfile, {"depth": [1, 2, 3]}, SOURCE)


def test_a_later_release_may_say_more_of_a_tensor() -> None:
    plain = {"name": "x", "dtype": "float32", "shape": ["batch", 3], "colour": "blue"}
    assert from_plain(TensorSpec, plain, SOURCE) == TensorSpec("x", "float32", ("batch", 3))


def test_containers_of_nouns_are_read_too() -> None:
    assert from_plain(dict[str, Inner], {"a": to_plain(INNER)}, SOURCE) == {"a": INNER}


def test_data_that_are_nested_too_deep() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        to_plain(deep)
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(BundleError, match=r"^a\.json: maximum recursion depth"):
        from_plain(Outer, changed(free=nested), SOURCE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[1", "Expecting ',' delimiter"),
        ("[" * 100_000, "maximum recursion depth"),
        ('{"a":' * 100_000, "maximum recursion depth"),
        (b"\xff\xfe\x00", "can't decode"),
        (b'"\xff"', "can't decode"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_text_that_is_not_json(text: str | bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=r"^a\.json is not JSON, perhaps cut off: ") as caught:
        parse_json(text, SOURCE)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("\nwrite it again")


def test_the_last_of_several_equal_keys_counts() -> None:
    assert parse_json('{"a": 1, "a": 2}', SOURCE) == {"a": 2}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(name=st.sampled_from(sorted(changed())), value=ANYTHING)
def test_whatever_a_file_holds_gives_a_noun_or_the_one_error(name: str, value: Any) -> None:
    try:
        noun = from_plain(Outer, changed(**{name: value}), SOURCE)
    except BundleError:
        return
    assert isinstance(noun, Outer)


@given(st.binary() | st.text())
def test_whatever_the_text_is(text: str | bytes) -> None:
    with suppress(BundleError):
        parse_json(text, SOURCE)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; import deploykit.core.serialization; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

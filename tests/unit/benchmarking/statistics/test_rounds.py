from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deploykit.benchmarking.statistics.ab import Round, Rounds
from deploykit.core.errors import DataError, UsageError
from deploykit.core.serialization import Source, from_plain, to_plain
from tests.unit.benchmarking.statistics.noise import samples_of


def one_round(at: int = 0) -> Round:
    early, late = np.array([at, at + 0.1]), np.array([at + 0.5, at + 0.6])
    a = samples_of([4.0, 1 / 3], start_s=early)
    return Round(a, samples_of([5.0, 6.0], start_s=late, compute_ms=[4.0, 5.0]))


ROUNDS = Source("rounds")


def some() -> Rounds:
    pairs = tuple(map(one_round, range(20)))
    return Rounds(pairs, (*pairs, one_round(20)), np.array([9.0, 0.1]), np.array([8.0]))


def test_the_first_block_is_the_one_that_began_first() -> None:
    assert one_round().a_first
    assert not Round(one_round().b, one_round().a).a_first


def test_rounds_go_to_json_and_back_without_losing_a_bit() -> None:
    plain = json.loads(json.dumps(to_plain(some())))
    back = from_plain(Rounds, plain, ROUNDS)
    assert to_plain(back) == to_plain(some())
    assert (back.aa, back.ab) == (some().aa, some().ab)
    assert back.warmup_a_ms.tolist() == [9.0, 0.1]


@pytest.mark.parametrize("name", ["aa", "ab"])
def test_too_few_rounds_are_refused(name: str) -> None:
    rounds = {"aa": some().aa, "ab": some().ab, name: some().aa[:19]}
    with pytest.raises(UsageError, match=r"^19 rounds of A and B\nexpected at least 20$"):
        Rounds(rounds["aa"], rounds["ab"], np.ones(1), np.ones(1))


def damaged(**changes: Any) -> dict[str, Any]:
    return {**to_plain(some()), **changes}


BLOCK = to_plain(one_round().a)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_a_ms": None}, r"^rounds: Expected `array`, got `null` - at `\$.warmup_a_ms`"),
        ({"warmup_b_ms": ["8"]}, r"Expected `float`, got `str` - at `\$.warmup_b_ms\[0\]`"),
        ({"aa": {}}, r"Expected `array`, got `object` - at `\$.aa`"),
        ({"ab": [3]}, r"Expected `object`, got `int` - at `\$.ab\[0\]`"),
        ({"ab": [{"a": BLOCK}]}, r"Object missing required field `b` - at `\$.ab\[0\]`"),
        ({"ab": [{"a": BLOCK, "b": []}]}, r"Expected `object`, got `array` - at `\$.ab\[0\].b`"),
        ({"ab": [{"a": BLOCK, "b": BLOCK, "c": {}}]}, r"unknown field `c` - at `\$.ab\[0\]`"),
        ({"more": 1}, "Object contains unknown field `more`"),
    ],
)
def test_damaged_data_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        from_plain(Rounds, damaged(**changes), ROUNDS)


def test_missing_data_are_refused() -> None:
    plain = to_plain(some())
    del plain["aa"]
    with pytest.raises(DataError, match="Object missing required field `aa`"):
        from_plain(Rounds, plain, ROUNDS)


def test_times_must_be_times() -> None:
    with pytest.raises(DataError, match="warmup_a_ms holds a time that is negative, infinite or"):
        from_plain(Rounds, damaged(warmup_a_ms=[-1.0]), ROUNDS)

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deploykit.benchmarking.statistics.ab import Round, Rounds
from deploykit.core.errors import DataError, UsageError
from tests.unit.benchmarking.statistics.noise import samples_of


def one_round(at: int = 0) -> Round:
    early, late = np.array([at, at + 0.1]), np.array([at + 0.5, at + 0.6])
    a = samples_of([4.0, 1 / 3], start_s=early)
    return Round(a, samples_of([5.0, 6.0], start_s=late, compute_ms=[4.0, 5.0]))


def some() -> Rounds:
    pairs = tuple(map(one_round, range(20)))
    return Rounds(pairs, (*pairs, one_round(20)), np.array([9.0, 0.1]), np.array([8.0]))


def test_the_first_block_is_the_one_that_began_first() -> None:
    assert one_round().a_first
    assert not Round(one_round().b, one_round().a).a_first


def test_rounds_go_to_json_and_back_without_losing_a_bit() -> None:
    plain = json.loads(json.dumps(some().to_dict()))
    back = Rounds.from_dict(plain)
    assert back.to_dict() == some().to_dict() == plain
    assert (back.aa, back.ab) == (some().aa, some().ab)
    assert back.warmup_a_ms.tolist() == [9.0, 0.1]


@pytest.mark.parametrize("name", ["aa", "ab"])
def test_too_few_rounds_are_refused(name: str) -> None:
    rounds = {"aa": some().aa, "ab": some().ab, name: some().aa[:19]}
    with pytest.raises(UsageError, match=r"^19 rounds of A and B\nexpected at least 20$"):
        Rounds(rounds["aa"], rounds["ab"], np.ones(1), np.ones(1))


def damaged(**changes: Any) -> dict[str, Any]:
    return {**some().to_dict(), **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_a_ms": None}, "warmup_a_ms is not a list of numbers"),
        ({"warmup_b_ms": ["8"]}, "warmup_b_ms is not a list of numbers"),
        ({"aa": {}}, "aa is {}, expected list"),
        ({"ab": [3]}, "a round of ab is 3, expected dict"),
        ({"ab": [{"a": {}}]}, "lacks the key 'b'"),
        ({"ab": [{"a": {}, "b": []}]}, r"b is \[\], expected dict"),
        ({"ab": [{"a": {}, "b": {}, "c": {}}]}, "has the unknown key 'c'"),
        ({"more": 1}, "has the unknown key 'more'"),
    ],
)
def test_damaged_data_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        Rounds.from_dict(damaged(**changes))


def test_missing_data_are_refused() -> None:
    plain = some().to_dict()
    del plain["aa"]
    with pytest.raises(DataError, match="lacks the key 'aa'"):
        Rounds.from_dict(plain)


def test_times_must_be_times() -> None:
    with pytest.raises(UsageError, match="warmup_a_ms holds a time that is negative, infinite or"):
        Rounds.from_dict(damaged(warmup_a_ms=[-1.0]))

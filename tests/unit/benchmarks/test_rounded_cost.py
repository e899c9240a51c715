"""What rounding costs: ratios within a round, and the order of the rounds."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.rounded_cost import RATIOS, Ratio, interleave, report


def test_a_ratio_is_taken_within_each_round() -> None:
    samples = {"search": [1.0, 4.0], "rounded": [3.0, 2.0], "plain": [2.0, 3.0]}
    assert Ratio("both", ("search", "rounded"), ("plain",)).of(samples) == [2.0, 2.0]


def test_rounds_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Ratio("x", ("a",), ("b",)).of({"a": [1.0, 2.0], "b": [1.0]})


def test_each_call_runs_once_a_round_and_the_first_is_left_out() -> None:
    called: list[str] = []
    names = ["one", "two", "three"]
    samples = interleave({name: partial(called.append, name) for name in names}, 4)
    assert {name: len(found) for name, found in samples.items()} == dict.fromkeys(names, 4)
    rounds = [called[at : at + 3] for at in range(0, len(called), 3)]
    assert [sorted(each) for each in rounds] == [sorted(names)] * 5
    assert len({tuple(each) for each in rounds}) > 1


def test_the_report_has_a_row_for_each_step_and_each_ratio() -> None:
    names = {name for ratio in RATIOS for name in (*ratio.above, *ratio.below)}
    samples = {name: [2.0, 2.0, 2.0] for name in sorted(names)}
    lines = report(samples).splitlines()
    assert "| plain comparison | 2.000 | 2.000 |" in lines
    assert "| comparison alone | 1.00 | 1.00 to 1.00 |" in lines
    assert len(lines) == len(names) + len(RATIOS) + 5

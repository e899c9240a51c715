"""Random halves: which bundle each way takes, and what the other half then loses."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.budget_splits import by_bound, by_loss_seen, drop, measure, table


def right(count: int, *wrong: int) -> np.ndarray:
    found = np.ones(count, dtype=bool)
    found[list(wrong)] = False
    return found


def test_a_drop_is_net() -> None:
    assert drop(right(10, 0), right(10, 1, 2)) == pytest.approx(0.1)


def test_the_bound_stops_where_the_loss_seen_goes_on() -> None:
    before = right(500)
    candidates = [before, right(500, 1, 2), right(500, *range(50))]
    # Two of 500 lost: 0.4 % seen, and up to 1.25 % possible (Clopper and Pearson).
    assert by_loss_seen(before, candidates, 0.01) == 1
    assert by_bound(before, candidates, 0.01) == 0
    assert by_bound(before, candidates, 0.02) == 1
    assert by_bound(before, candidates[2:], 0.02) == -1
    assert by_loss_seen(before, candidates[2:], 0.02) == -1


def test_rows_tell_how_often_the_other_half_loses_more() -> None:
    before = right(1000)
    named = {"fp16": before, "int8": right(1000, *range(0, 1000, 80))}  # 1.3 % lost
    rows = {(row.budget, row.way): row for row in measure(before, named, splits=200)}
    bound, seen = rows[0.01, "bound of 95 %"], rows[0.01, "loss as seen"]
    assert bound.chosen == {"-": 0, "fp16": 200, "int8": 0}
    assert (bound.beyond, bound.worst) == (0.0, 0.0)
    # Halves that show less than 1 % have taken more than 1.6 % from the other half.
    assert seen.chosen["int8"] > 0
    assert seen.beyond == pytest.approx(seen.chosen["int8"] / 200)
    assert seen.worst > 0.016
    assert "| 1.0% | bound of 95 % | 0.0% of splits |" in table(list(rows.values()))


def test_where_nothing_holds_fp32_stays() -> None:
    before = right(400)
    (row, *_) = measure(before, {"int8": right(400, *range(100))}, splits=20)
    assert row.chosen == {"-": 20, "int8": 0}
    assert row.beyond == row.mean_drop == 0.0

"""The choice of a point by its bound, and the record of a frontier."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deploykit.core.precision import Precision
from deploykit.precision.budget.bounds import mean_upper, net_upper, share_upper
from deploykit.precision.budget.frontier import Frontier, Loss, Point, read_frontier

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
GROUPS = (("stem",), ("left", "right"))


def frontier(*changed: int, drop: float = 0.01) -> Frontier:
    """FP32, then points with so many changed answers of 1,000 images."""
    points = [Point(FP32, 9.0, 0.0, (FP32, FP32))]
    points += [
        Point(INT8, 8.0 - at, 0.01 * at, (INT8, FP16), Loss("answers", 1000, lost), f"{at:064}")
        for at, lost in enumerate(changed)
    ]
    return Frontier(drop, "L4", 8, GROUPS, tuple(points), {"images": 1000}, {"method": "mse"})


def test_the_bound_decides_and_not_the_share() -> None:
    found = frontier(0, 3, 6, 20)
    bounds = [point.upper for point in found.points]
    assert [round(bound, 4) for bound in bounds] == [0.0, 0.003, 0.0077, 0.0118, 0.0289]
    assert found.points[3].loss is not None
    assert found.points[3].loss.share < 0.01 < bounds[3]
    assert found.chosen == 2
    assert found.under(0.03).chosen == 4
    assert found.under(0.002).point.precision is FP32


def test_nothing_behind_the_first_failure_is_looked_at() -> None:
    assert frontier(0, 20, 0).chosen == 1


@pytest.mark.parametrize(
    ("loss", "share", "upper"),
    [
        (Loss("top1", 1000, 5, 4), 0.001, net_upper(5, 4, 1000)),
        (Loss("top1", 1000, 0, 5), -0.005, net_upper(0, 5, 1000)),
        (Loss("answers", 100, 2.0), 0.02, share_upper(2, 100)),
        (Loss("decisions", 100, 2.0), 0.02, mean_upper(0.02, 100)),
        (Loss("error", 100, 2.5), 0.025, mean_upper(0.025, 100)),
    ],
)
def test_a_loss_has_the_bound_of_its_measure(loss: Loss, share: float, upper: float) -> None:
    assert loss.share == pytest.approx(share)
    assert loss.upper == upper > share


def test_a_record_is_read_back_from_json() -> None:
    found = frontier(0, 3)
    record = json.loads(json.dumps(found.to_dict()))
    assert record["chosen"] == 2
    assert record["points"][1]["layers"] == {"int8": 1, "fp16": 2}
    assert record["points"][1]["upper"] == found.points[1].upper
    assert read_frontier(record) == found


@pytest.mark.parametrize(
    "change",
    [
        {"points": None},
        {"points": []},
        {"points": [{"ms": 1}]},
        {"groups": [["stem"]]},
        {"colour": "blue"},
        {"max_drop": "much"},
    ],
)
def test_another_record_is_not_used(change: dict[str, Any]) -> None:
    record = json.loads(json.dumps(frontier(0).to_dict()))
    assert read_frontier({**record, **change}) is None
    assert read_frontier({}) is None


def test_fp32_must_be_the_first() -> None:
    found = frontier(0)
    turned = replace(found, points=found.points[::-1])
    assert read_frontier(json.loads(json.dumps(turned.to_dict()))) is None

from __future__ import annotations

import pytest

from deploykit.benchmarking.matrix.run import RemainingTime


class Shown:
    def __init__(self) -> None:
        self.updates: list[tuple[float, float | None, str]] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.updates.append((done, total, detail))


def test_steps_move_the_bar_and_tell_the_time_left() -> None:
    shown, now_s = Shown(), [100.0]
    remaining = RemainingTime(shown, 4, now_s=lambda: now_s[0])
    for name in ("a", "b"):
        with remaining.step(name):
            now_s[0] += 30
    with remaining.step("c") as step:
        step.update(1, 2, "measure")
        now_s[0] += 30
    assert shown.updates == [
        (0, 4, "a"),
        (1, 4, "a"),
        (1, 4, "b"),
        (2, 4, "b, about 1 min left"),
        (2, 4, "c, about 1 min left"),
        (2.5, 4, "c measure, about 36 s left"),
        (3, 4, "c, about 30 s left"),
    ]


def test_a_step_without_a_total_stands_still_and_more_steps_may_come() -> None:
    shown = Shown()
    remaining = RemainingTime(shown, 1, now_s=lambda: 0.0)
    with remaining.step("a") as step:
        step.update(5, None, "export")
        remaining.add(1)
    assert shown.updates == [(0, 1, "a"), (0, 1, "a export"), (1, 2, "a")]


def test_a_failed_step_leaves_the_error_alone() -> None:
    with pytest.raises(KeyError, match="x"), RemainingTime(Shown(), 1).step("a"):
        raise KeyError("x")


def test_measuring_goes_on_where_the_warm_up_ends() -> None:
    shown = Shown()
    with RemainingTime(shown, 1).step("a") as step:
        for done, detail in ((0.5, "warm-up"), (1, "warm-up"), (0.1, "measure"), (1, "measure")):
            step.update(done, 1, detail)
    assert [done for done, _, _ in shown.updates] == [0, 0.15, 0.3, 0.3, 1, 1]

"""Bounds of a loss against scipy, and against losses that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.precision.budget.bounds import (
    images_needed,
    least_bound,
    mean_upper,
    net_upper,
    share_upper,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(("changed", "count"), [(0, 1), (0, 100), (3, 40), (25, 1000), (7, 7)])
def test_the_bound_of_a_share_is_clopper_and_pearsons(changed: int, count: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scikit-learn brings scipy")
    found = stats.binomtest(changed, count, alternative="less").proportion_ci(0.95).high
    assert share_upper(changed, count) == pytest.approx(found, abs=1e-9)


def covered(draw: Callable[[np.random.Generator], tuple[float, float]]) -> int:
    """In how many of 100 sets of images, drawn from a seed, the bound is not below the loss."""
    random = np.random.default_rng(2026)
    cases = (draw(random) for _ in range(100))
    return sum(bound >= loss for bound, loss in cases)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("count", [100, 597])
def test_changed_answers_are_covered(share: float, count: int) -> None:
    assert covered(lambda r: (share_upper(int(r.binomial(count, share)), count), share)) >= 95


@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0.0), (0.01, 0.005), (0.03, 0.03)])
@pytest.mark.parametrize("count", [300, 1000])
def test_a_drop_of_top_1_is_covered(lost: float, gained: float, count: int) -> None:
    def draw(random: np.random.Generator) -> tuple[float, float]:
        wrong, right, _ = random.multinomial(count, [lost, gained, 1 - lost - gained])
        return net_upper(int(wrong), int(right), count), lost - gained

    assert covered(draw) >= 95


@pytest.mark.parametrize("shape", [(0.2, 10.0), (2.0, 50.0)])
def test_a_mean_of_losses_is_covered(shape: tuple[float, float]) -> None:
    def draw(random: np.random.Generator) -> tuple[float, float]:
        losses = random.beta(*shape, 400)
        return mean_upper(float(losses.mean()), 400), shape[0] / sum(shape)

    assert covered(draw) >= 95


def test_a_gain_makes_up_for_a_loss_but_not_for_chance() -> None:
    assert net_upper(10, 10, 1000) < net_upper(10, 0, 1000)
    assert net_upper(10, 10, 1000) > 0
    assert net_upper(0, 50, 1000) < 0.001
    assert net_upper(5, 0, 5) == mean_upper(1.0, 5) == 1.0


@pytest.mark.parametrize("drop", [0.5, 0.1, 0.03, 0.01, 0.002])
def test_as_many_images_are_needed_as_make_the_bound(drop: float) -> None:
    needed = images_needed(drop)
    assert least_bound(needed) <= drop < least_bound(needed - 1)
    assert net_upper(0, 0, needed) <= drop
    assert mean_upper(0.0, needed) <= drop

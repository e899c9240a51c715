"""Which images a calibration sees."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.core.errors import DataError, UsageError
from deploykit.precision.calibration.data import choose_images, few_images_warning, split_holdout


def test_the_choice_is_fixed_by_the_seed() -> None:
    assert choose_images(1000, 5, seed=0) == [402, 993, 40, 186, 583]
    assert choose_images(1000, 5, seed=1) != choose_images(1000, 5, seed=0)


@pytest.mark.parametrize(("available", "wanted"), [(10, 10), (10, 50), (1, 1), (0, 5), (100, 7)])
def test_images_are_chosen_once_each(available: int, wanted: int) -> None:
    chosen = choose_images(available, wanted, seed=3)
    assert len(chosen) == len(set(chosen)) == min(available, wanted)
    assert set(chosen) <= set(range(available))


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    assert choose_images(500, 64, seed=2) == choose_images(500, 512, seed=2)[:64]


def test_the_choice_spreads_over_folders_sorted_by_class() -> None:
    chosen = np.array(choose_images(10_000, 1000, seed=0)) // 1000
    assert np.bincount(chosen, minlength=10).min() > 60


@pytest.mark.parametrize("wanted", [0, -3])
def test_at_least_one_image_is_wanted(wanted: int) -> None:
    with pytest.raises(UsageError, match=rf"^{wanted} calibration images were asked\nexpected at"):
        choose_images(10, wanted, seed=0)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(512, 0.2, 102), (10, 0.2, 2), (2, 0.2, 1), (3, 0.9, 2), (5, 0, 1)]
)
def test_some_images_are_held_out(count: int, share: float, held: int) -> None:
    indices = choose_images(count, count, seed=0)
    seen, held_out = split_holdout(indices, share)
    assert seen + held_out == indices
    assert len(held_out) == held


@pytest.mark.parametrize("indices", [[], [4]])
def test_one_image_cannot_be_split(indices: list[int]) -> None:
    with pytest.raises(DataError, match=rf"^{len(indices)} image is too few to compare .*\ngive"):
        split_holdout(indices)


def test_few_images_are_warned_of() -> None:
    assert few_images_warning(32) is None
    assert "only 31 calibration images" in str(few_images_warning(31))
    assert "at least 32" in str(few_images_warning(1))

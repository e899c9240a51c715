"""Ranges of channels: which rows of a value belong to which image."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.backends.ort import OrtRunner
from deploykit.core.progress import SilentProgress
from deploykit.graph.activations import expose_named
from deploykit.precision.calibration.table import CalibrationKey, CalibrationTable
from deploykit.precision.quantization.equalising import SeenChannels, observe, with_room
from tests.graphs import model_of, normal

SHAPES = {
    "image by image": "w = Reshape (x, whole) y = Relu (w)",
    "four windows of an image": "w = Reshape (x, windows) y = Reshape (w, whole)",
}
CONSTANTS = {"windows": np.array([-1, 2, 3]), "whole": np.array([-1, 8, 3])}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_ranges_are_of_all_images_but_every_third(case: str, size: int) -> None:
    model = model_of(SHAPES[case], ("n,8,3", "n,8,3"), CONSTANTS)
    images = normal(6, 8, 3)
    images[2] += 100  # held out
    batches = np.split(images, range(size, 6, size))
    with (
        OrtRunner(expose_named(model, ["w"])) as runner,
        SilentProgress().step("ranges") as task,
    ):
        seen = observe(runner, ["w"], batches, task)["w"]
    others = images[[0, 1, 3, 4]].reshape(-1, 3)
    assert seen.low is not None
    assert seen.high is not None
    np.testing.assert_array_equal(seen.low, others.min(axis=0))
    np.testing.assert_array_equal(seen.high, others.max(axis=0))
    rows = np.concatenate(seen.rows)
    assert (rows > 90).any()
    held = images[[2, 5]].reshape(-1, 3)
    assert all((held == row).all(axis=1).any() for row in rows)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("between", [0.0, 1.0, 30.0])
def test_variance_between_images_is_told_from_that_within(
    case: str, size: int, between: float
) -> None:
    model = model_of(SHAPES[case], ("n,8,3", "n,8,3"), CONSTANTS)
    images = normal(6, 8, 3) + between * normal(6, 1, 3, seed=4) + 50
    with (
        OrtRunner(expose_named(model, ["w"])) as runner,
        SilentProgress().step("ranges") as task,
    ):
        seen = observe(runner, ["w"], np.split(images, range(size, 6, size)), task)["w"]
    shown = images[[0, 1, 3, 4]].astype(np.float64)
    share = shown.mean(axis=1).var(axis=0) / shown.var(axis=(0, 1))  # law of total variance
    assert seen.between_images == pytest.approx(np.median(share), abs=1e-3)


def test_constant_channels_do_not_count() -> None:
    rows = np.array([[1.0, 5], [1, 5], [3, 5], [3, 5]], np.float32)
    seen = SeenChannels()
    seen.widen(rows, 2)
    assert seen.between_images == 1.0
    still = SeenChannels()
    still.widen(rows[:, 1:], 2)
    assert still.between_images == 0.0


def test_room_is_of_the_largest_magnitude_in_every_method() -> None:
    ranges = {"a": {"max": 4.0, "entropy": 2.0}, "b": {"max": 3.0, "entropy": 1.0}}
    fewer = {"a": {"max": 2.0, "entropy": 1.0}, "b": {"max": 3.0, "entropy": 1.0}}
    table = CalibrationTable(CalibrationKey("m", "d", {}, {}), 8, (), ranges, "", fewer)
    roomy = with_room(table, {"a": 0.5, "of another graph": 1.0})
    assert roomy.amax == {"a": {"max": 6.0, "entropy": 6.0}, "b": ranges["b"]}
    assert roomy.trial_amax == {"a": {"max": 3.0, "entropy": 3.0}, "b": fewer["b"]}
    assert table.amax == ranges

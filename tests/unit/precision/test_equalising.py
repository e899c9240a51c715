"""How strong channels are equalised: the noise of a layer, counted apart from the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.graph.qdq import LinearGroup, Scaling
from deploykit.precision.quantization.equalising import PAYS, SeenChannels, best_scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

WIDTH, HIDDEN = 24, 40
RANDOM = np.random.default_rng(11)


def rounded(values: Floats, largest: Floats) -> NDArray[np.float64]:
    step = largest / 127
    return np.clip(np.round(values / step), -127, 127) * step


def noise(rows: Floats, weight: Floats, ends: Floats, scaling: Scaling) -> float:
    """Mean square of what eight bits change in rows @ weight, with ranges as they were seen."""
    eight = rounded(
        (rows - scaling.shift) / scaling.scale,
        np.abs((ends - scaling.shift) / scaling.scale).max(),
    )
    scaled = weight * scaling.scale[:, None]
    product = eight @ rounded(scaled, np.abs(scaled).max(axis=0))
    return float(np.mean((rows @ weight - product - scaling.shift @ weight) ** 2))


def seen(rows: Floats) -> SeenChannels:
    shown = SeenChannels()
    shown.widen(rows[::2])
    shown.rows.append(rows[1::2])
    return shown


def outliers() -> tuple[Floats, Floats]:
    """Two channels 40 times as large as the others, whose weights are as much smaller."""
    gain = np.ones(WIDTH)
    gain[[3, 17]] = 40
    rows = RANDOM.normal(size=(400, WIDTH)) * gain
    weight = RANDOM.normal(size=(WIDTH, HIDDEN)) / gain[:, None]
    return rows.astype(np.float32), weight.astype(np.float32)


def one_sided() -> tuple[Floats, Floats]:
    """Channels that lie far from zero, each elsewhere."""
    rows = RANDOM.normal(size=(400, WIDTH)) + np.linspace(-20, 20, WIDTH)
    weight = RANDOM.normal(size=(WIDTH, HIDDEN))
    return rows.astype(np.float32), weight.astype(np.float32)


def alike() -> tuple[Floats, Floats]:
    rows, weight = RANDOM.uniform(-1, 1, (400, WIDTH)), RANDOM.uniform(-1, 1, (WIDTH, HIDDEN))
    return rows.astype(np.float32), weight.astype(np.float32)


NOTHING = Scaling(np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32))


@pytest.mark.parametrize(("make", "most"), [(outliers, 0.05), (one_sided, 0.15)])
def test_noise_falls_on_other_rows(make: object, most: float) -> None:
    rows, weight = make()  # type: ignore[operator]
    shown = seen(rows)
    best = best_scaling(LinearGroup("x", ("a",), (weight,)), shown)
    assert best is not None
    assert best.left < most
    assert shown.low is not None and shown.high is not None  # noqa: PT018
    ends = np.stack([shown.low, shown.high])
    fresh = rows[:0:-1]
    before, after = (noise(fresh, weight, ends, each) for each in (NOTHING, best.scaling))
    assert after < 1.5 * most * before


def test_one_sided_channels_are_shifted() -> None:
    rows, weight = one_sided()
    best = best_scaling(LinearGroup("x", ("a",), (weight,)), seen(rows))
    assert best is not None
    np.testing.assert_allclose(best.scaling.shift, np.linspace(-20, 20, WIDTH), atol=1.5)


def test_channels_that_are_alike_gain_nothing() -> None:
    rows, weight = alike()
    best = best_scaling(LinearGroup("x", ("a", "b"), (weight, weight)), seen(rows))
    assert best is not None
    assert best.left > PAYS


def test_a_channel_at_rest_keeps_room() -> None:
    rows, weight = outliers()
    rows[::2, 5] = 0  # of the ranges' rows: it wakes on the others
    best = best_scaling(LinearGroup("x", ("a",), (weight,)), seen(rows))
    assert best is not None
    assert best.left < 0.2
    assert best.scaling.scale[5] > best.scaling.scale.min() / 4


def test_without_other_images_there_is_no_answer() -> None:
    rows, weight = outliers()
    shown = SeenChannels()
    shown.widen(rows)
    assert best_scaling(LinearGroup("x", ("a",), (weight,)), shown) is None

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.errors import UsageError
from deploykit.precision.calibration import calibrators
from deploykit.precision.calibration.calibrators import (
    ALL_ZERO_AMAX,
    HALF_OCTAVES,
    METHODS,
    PERCENTILE,
    Histogram,
    RunningHistogram,
    calibrator,
    half_octaves,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Values = NDArray[np.float32]

SHAPES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda random, n: random.normal(size=n),
    "rectified": lambda random, n: np.maximum(random.normal(size=n), 0),
    "long tail": lambda random, n: random.standard_t(3, size=n),
    "laplace": lambda random, n: random.laplace(size=n) * 37,
    "uniform": lambda random, n: random.uniform(-0.3, 0.3, size=n),
    "outlier": lambda random, n: np.append(random.normal(size=n - 1), 60.0),
    "mostly zero": lambda random, n: random.normal(size=n) * (random.random(n) < 0.05),
}


def values_of(shape: str, count: int = 20_000) -> Values:
    return SHAPES[shape](np.random.default_rng(7), count).astype(np.float32)


def histogram_of(values: Values) -> Histogram:
    running = RunningHistogram()
    running.add(values)
    return running.freeze()


def of_counts(counts: list[int] | NDArray[np.int64], amax: float | None = None) -> Histogram:
    """Bins of width 1; the maximum lies in the middle of the last filled one."""
    array = np.asarray(counts, np.int64)
    last = float(np.flatnonzero(array)[-1]) + 0.5
    return Histogram(array, float(len(array)), last if amax is None else amax)


def test_the_four_methods() -> None:
    assert tuple(METHODS) == ("max", "percentile", "entropy", "mse")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_every_range_is_positive_and_at_most_the_maximum(method: str, shape: str) -> None:
    values = values_of(shape)
    assert 0 < METHODS[method](histogram_of(values)) <= float(np.abs(values).max())


@pytest.mark.parametrize("method", METHODS)
def test_a_power_of_two_scales_the_range_exactly(method: str) -> None:
    values = values_of("long tail")
    small, large = (METHODS[method](histogram_of(values * np.float32(s))) for s in (1, 1024))
    assert large == small * 1024


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1e-40, -1e-38])
def test_a_tensor_of_zeros_has_a_range_all_the_same(method: str, value: float) -> None:
    zeros = histogram_of(np.full(1000, value, np.float32))
    assert METHODS[method](zeros) == ALL_ZERO_AMAX == 1.0
    assert METHODS[method](histogram_of(np.zeros(0, np.float32))) == ALL_ZERO_AMAX


@pytest.mark.parametrize("method", METHODS)
def test_one_value_alone_is_its_own_range(method: str) -> None:
    alone = histogram_of(np.full(500, 0.7, np.float32))
    assert METHODS[method](alone) == pytest.approx(0.7, rel=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_max_is_exact(shape: str) -> None:
    values = values_of(shape)
    assert METHODS["max"](histogram_of(values)) == float(np.abs(values).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_percentile_is_numpys_within_a_bin(shape: str) -> None:
    values = values_of(shape, 300_000)
    histogram = histogram_of(values)
    # Of neighbouring ranks, because numpy interpolates between values and a histogram has none.
    magnitudes = np.abs(values)
    low, high = (np.percentile(magnitudes, PERCENTILE, method=m) for m in ("lower", "higher"))
    found = METHODS["percentile"](histogram)
    assert low - histogram.bin_width <= found <= high + histogram.bin_width


def test_percentile_does_not_clip_the_only_values_there_are() -> None:
    values = np.zeros(1_000_000, np.float32)
    values[:10] = np.arange(1, 11)
    assert np.percentile(values, PERCENTILE) == 0
    assert METHODS["percentile"](histogram_of(values)) == 10.0


def divergence_by_definition(counts: NDArray[np.float64], size: int) -> float:
    """The slides' pseudocode for one candidate."""
    inside = counts[:size]
    filled = inside > 0
    group = np.arange(size) * 128 // size
    averages = np.bincount(group, inside, 128) / np.maximum(np.bincount(group, filled, 128), 1)
    candidate = np.where(filled, averages[group], 0.0)
    reference = inside.copy()
    reference[-1] += counts[size:].sum()
    p, q = reference / reference.sum(), candidate / candidate.sum()
    if (q[p > 0] == 0).any():
        return float("inf")
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_the_published_method(shape: str) -> None:
    histogram = histogram_of(values_of(shape))
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    filled = int(np.flatnonzero(counts)[-1]) + 1
    by_size = {n: divergence_by_definition(counts, n) for n in range(128, filled + 1)}
    expected = np.array(list(by_size.values()))
    found = calibrators._divergences(counts[:filled])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    best = max(size for size, value in by_size.items() if value <= expected.min() + 1e-12)
    clip = min(best * histogram.bin_width, histogram.amax)
    assert METHODS["entropy"](histogram) == pytest.approx(clip)


def test_entropy_never_clips_into_an_empty_bin() -> None:
    """Smoothing Q instead of refusing it makes such a candidate cheap: onnxruntime's old bug."""
    counts = np.zeros(2048, np.int64)
    counts[:600:2] = 50  # every second bin is empty
    counts[1500] = 1
    found = METHODS["entropy"](of_counts(counts))
    assert counts[round(found) - 1] > 0 or found == 1500.5


def test_entropy_does_not_see_a_relus_zeros() -> None:
    values = np.maximum(values_of("normal", 50_000), 0)
    more = np.concatenate([values, np.zeros(10_000_000, np.float32)])
    assert METHODS["entropy"](histogram_of(more)) == METHODS["entropy"](histogram_of(values))
    assert METHODS["mse"](histogram_of(more)) == METHODS["mse"](histogram_of(values))


def test_entropy_clips_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    outlier, uniform = values_of("outlier"), values_of("uniform")
    assert METHODS["entropy"](histogram_of(outlier)) < 10
    assert METHODS["entropy"](histogram_of(uniform)) == pytest.approx(np.abs(uniform).max(), 0.02)


def test_entropy_of_fewer_bins_than_levels_clips_nothing() -> None:
    assert METHODS["entropy"](of_counts([5, 4, 3, 2, 1, 0, 0, 0])) == 4.5


def quantized_error(values: Values, amax: float) -> float:
    """What INT8 does, value by value."""
    scale = amax / 127
    levels = np.clip(np.rint(values.astype(np.float64) / scale), -127, 127)
    return float(np.mean((levels * scale - values) ** 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_as_good_as_the_best_of_all_ranges_tried_on_the_values(shape: str) -> None:
    values = values_of(shape, 60_000)
    largest = float(np.abs(values).max())
    best = min(quantized_error(values, largest * part / 200) for part in range(10, 201))
    found = METHODS["mse"](histogram_of(values))
    assert quantized_error(values, found) <= best * 1.02


@pytest.mark.parametrize("clip", [128, 500, 1000, 2048])
def test_expected_error_is_the_integral(clip: int) -> None:
    """Against the error of a million evenly spread values in each of some bins."""
    errors = calibrators._squared_errors(2048)[(clip - 128) // 4]
    assert errors.shape == (2048,)
    for place in (0, 1, 77, 127, 128, 499, 501, 2047):
        inside = place + (np.arange(100_000) + 0.5) / 100_000
        level = np.minimum(np.rint(inside * 127 / clip), 127)
        expected = np.mean((level * clip / 127 - inside) ** 2)
        assert errors[place] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", ["normal", "rectified"])
def test_half_octaves_are_counted_from_the_largest_value(shape: str) -> None:
    values = np.abs(values_of(shape).ravel())
    counts = half_octaves(histogram_of(values))
    assert (len(counts), sum(counts)) == (HALF_OCTAVES, len(values))
    edges = values.max() * 2.0 ** (-np.arange(HALF_OCTAVES) / 2)
    # Wide steps are exact but for the bin in which an edge lies: one of 2,048.
    for step in range(10):
        inside = np.count_nonzero((values > edges[step + 1]) & (values <= edges[step]))
        assert counts[step] == pytest.approx(inside, abs=0.01 * len(values))


def test_a_tensor_of_zeros_has_half_octaves() -> None:
    assert sum(half_octaves(histogram_of(np.zeros(12, np.float32)))) == 12


def test_a_new_calibrator_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrators, "_methods", {"max": METHODS["max"]})

    @calibrator("half")
    def half(histogram: Histogram) -> float:
        return histogram.amax / 2

    assert tuple(calibrators._methods) == ("max", "half")
    assert half(histogram_of(np.ones(3, np.float32))) == 0.5
    assert half(histogram_of(np.zeros(3, np.float32))) == ALL_ZERO_AMAX


def test_two_calibrators_cannot_share_a_name() -> None:
    with pytest.raises(
        UsageError, match=r"two calibrators are called 'mse'\nexpected another name than max, "
    ):

        @calibrator("mse")
        def other(histogram: Histogram) -> float:
            return 1.0

    assert METHODS["mse"].__name__ == "mse"


def test_the_registry_cannot_be_written_to() -> None:
    with pytest.raises(TypeError, match="item assignment"):
        METHODS["mse"] = METHODS["max"]  # type: ignore[index]  # the point of the test

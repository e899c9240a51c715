from __future__ import annotations

import math

import pytest

from deploykit.core.errors import UsageError
from deploykit.core.precision import Precision
from deploykit.costs.limits import Limit, achieved, physical_limit
from deploykit.costs.network import LayerCost, NetworkCost
from deploykit.costs.peaks import DevicePeak, gpu_peak

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def layer(multiply_adds: int, precision: Precision = FP32, *, winograd: bool = False) -> LayerCost:
    return LayerCost(
        name="conv",
        kinds=("Conv",),
        precision=precision,
        multiply_adds=multiply_adds,
        weight_bytes=0,
        input_bytes=0,
        output_bytes=0,
        winograd=winograd,
    )


def limit_ms(cost: NetworkCost, peak: DevicePeak) -> float:
    return physical_limit(cost, peak).limit_ms


def network(*layers: LayerCost, weight_bytes: int = 0) -> NetworkCost:
    return NetworkCost(1, layers, weight_bytes, input_bytes=600, output_bytes=400)


def device(
    *, cache_bytes: int = 0, measured: str | None = None, tf32: float | None = None
) -> DevicePeak:
    """1 TFLOP/s in FP32, 4 in FP16, 8 in INT8, 1 GB/s."""
    return DevicePeak(
        name="a device",
        fp32_flop_per_s=1e12,
        tf32_flop_per_s=tf32,
        fp16_flop_per_s=None if measured else 4e12,
        int8_op_per_s=None if measured else 8e12,
        bytes_per_s=1e9,
        cache_bytes=cache_bytes,
        winograd=frozenset() if measured else frozenset({FP32}),
        source="invented",
        measured=measured,
    )


def test_each_layer_runs_at_the_peak_of_its_own_precision() -> None:
    mixed = network(layer(10**9, INT8), layer(10**9, FP16), layer(10**9, FP32))
    limit = physical_limit(mixed, device())
    assert limit.compute_ms == pytest.approx(2 / 8 + 2 / 4 + 2 / 1)
    assert limit.memory_ms == pytest.approx(1000 / 1e9 * 1e3)
    assert (limit.flop, limit.required_bytes) == (6 * 10**9, 1000)
    assert limit.binds == "compute"
    assert limit.limit_ms == limit_ms(mixed, device()) == limit.compute_ms


def test_memory_binds_where_weights_are_many() -> None:
    limit = physical_limit(network(layer(10**6), weight_bytes=10**9), device())
    assert limit.binds == "memory"
    assert limit.limit_ms == pytest.approx(1000.001)


def test_winograd_counts_on_vector_units_only() -> None:
    plain, saved = layer(10**9), layer(10**9, winograd=True)
    assert limit_ms(network(plain), device()) == pytest.approx(2.0)
    assert limit_ms(network(saved), device()) == pytest.approx(2.0 / 2.25)
    half = network(layer(10**9, FP16, winograd=True))
    assert limit_ms(half, device()) == pytest.approx(2 / 4)
    # TF32 on matrix units at 2 TFLOP/s: slower than Winograd's 2.25, faster than plain FP32.
    assert limit_ms(network(plain), device(tf32=2e12)) == pytest.approx(1.0)
    assert limit_ms(network(saved), device(tf32=2e12)) == pytest.approx(2.0 / 2.25)
    assert limit_ms(network(saved), device(tf32=4e12)) == pytest.approx(0.5)
    cpu = device(measured="2026-01-01")
    assert limit_ms(network(saved), cpu) == pytest.approx(2.0)


def test_rates_and_share() -> None:
    limit = physical_limit(network(layer(10**9), weight_bytes=10**6), device())
    found = achieved(limit, 8.0)
    assert found.flop_per_s == pytest.approx(2e9 / 8e-3)
    assert found.bytes_per_s == pytest.approx((10**6 + 1000) / 8e-3)
    assert found.share == pytest.approx(0.25)
    assert found.doubt is None


def test_a_time_below_the_arithmetic_is_doubted() -> None:
    limit = physical_limit(network(layer(10**9)), device())
    assert achieved(limit, 2.0).doubt is None
    assert achieved(limit, 1.5).doubt == (
        "1.5 ms is probably an error: the arithmetic alone takes 2 ms at the device's peak"
    )
    assert achieved(limit, 1.5).share == pytest.approx(2 / 1.5)


def test_a_cache_may_keep_the_weights() -> None:
    heavy = network(layer(10**6), weight_bytes=3 * 10**6 - 1000)
    limit = physical_limit(heavy, device(cache_bytes=10**6))
    assert limit.limit_ms == pytest.approx(3.0)
    assert limit.floor_ms == pytest.approx(2.0)
    assert achieved(limit, 2.5).doubt is None
    assert achieved(limit, 2.5).share == pytest.approx(1.2)
    assert achieved(limit, 1.9).doubt == (
        "1.9 ms is probably an error: reading the weights alone takes 2 ms at the device's peak"
    )
    assert physical_limit(heavy, device(cache_bytes=10**9)).uncached_ms == 0


def test_a_measured_peak_may_itself_be_wrong() -> None:
    limit = physical_limit(network(layer(10**9)), device(measured="2026-01-01T00:00:00+00:00"))
    doubt = achieved(limit, 1.0).doubt
    assert doubt is not None
    assert doubt.endswith("unless that peak was measured while the machine was busy")


def test_an_unknown_rate_leaves_the_memory_side() -> None:
    cpu = device(measured="2026-01-01T00:00:00+00:00")
    limit = physical_limit(network(layer(10**9), layer(1, INT8), weight_bytes=10**6), cpu)
    assert limit.compute_ms is None
    assert limit.binds == "memory"
    assert limit.limit_ms == pytest.approx(1.001)
    without_work = network(layer(0, INT8), layer(10**9), weight_bytes=10**6)
    assert physical_limit(without_work, cpu).compute_ms == pytest.approx(2.0)


@pytest.mark.parametrize("latency_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_latency_that_is_none(latency_ms: float) -> None:
    limit = Limit(1, 1, 1.0, 1.0, 1.0, peak_measured=False)
    with pytest.raises(UsageError, match=r"a latency of .* ms cannot be compared"):
        achieved(limit, latency_ms)


def test_one_real_figure_by_hand() -> None:
    # ResNet-50 in FP16 on a T4: 4.089 G multiply-adds at 65 TFLOP/s; 51 MB at 320 GB/s is less.
    peak = gpu_peak("Tesla T4").peak
    assert peak is not None
    cost = network(layer(4_089_184_256, FP16), weight_bytes=2 * 25_557_032)
    limit = physical_limit(cost, peak)
    assert limit.compute_ms is not None
    assert limit.compute_ms == pytest.approx(0.1258, rel=1e-3)
    assert limit.memory_ms == pytest.approx(0.1597, rel=1e-3)
    assert limit.binds == "memory"

"""The model of a GPU's time: one layer by hand, monotone, never below the limit."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import ceil, hypot

import pytest

from deploykit.core.precision import Precision
from deploykit.costs.estimates import estimate, limit_and_estimate
from deploykit.costs.kernels import Kernels, for_batch, in_precision, kind_of
from deploykit.costs.latency import (
    GRAPH,
    GpuModel,
    Timing,
    fitted_constants,
    kernel_times,
    latency_ms,
    work_on,
)
from deploykit.costs.limits import physical_limit
from deploykit.costs.network import LayerCost, NetworkCost, Product
from deploykit.costs.peaks import DevicePeak, gpu_facts, gpu_names, gpu_peak
from deploykit.costs.predicted import predicted_ms

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def layer(
    product: Product | None, *, kind: str = "Conv", given: int = 0, made: int = 0, weights: int = 0
) -> LayerCost:
    """In FP32; sizes are elements."""
    return LayerCost(
        name="layer",
        kinds=(kind,),
        precision=FP32,
        multiply_adds=0 if product is None else product.multiply_adds,
        weight_bytes=4 * weights,
        input_bytes=4 * given,
        output_bytes=4 * made,
        winograd=product is not None and product.window == 9,
        product=product,
    )


def conv(places: int, columns: int, channels: int, window: int, groups: int = 1) -> LayerCost:
    return layer(
        Product(places, columns, channels, window, groups),
        given=places * channels * groups,
        made=places * columns * groups,
        weights=columns * channels * window * groups,
    )


def network(*layers: LayerCost) -> NetworkCost:
    weights = sum(each.weight_bytes for each in layers)
    return NetworkCost(1, layers, weights, layers[0].input_bytes, layers[-1].output_bytes)


SMALL = network(
    conv(112 * 112, 64, 3, 49),
    conv(56 * 56, 64, 64, 9),
    conv(56 * 56, 1, 1, 9, groups=64),
    layer(None, kind="Add", given=2 * 64 * 56 * 56, made=64 * 56 * 56),
    layer(Product(1, 1000, 64, 1, 1), kind="Gemm", given=64, made=1000, weights=64_000),
)


def gpu(name: str) -> DevicePeak:
    found = gpu_peak(name).peak
    assert found is not None
    return found


def ms(cost: NetworkCost, name: str, timing: Timing = GRAPH) -> float:
    peak, facts = gpu(name), gpu_facts(gpu(name).name)
    assert facts is not None
    return latency_ms(cost, peak, facts, fitted_constants(), timing)


def test_one_convolution_by_hand() -> None:
    """28 x 28 places, 100 to 120 channels, 3x3, eight images in FP16 on an A10."""
    cost = in_precision(for_batch(network(conv(28 * 28, 120, 100, 9)), 8), FP16)
    constants, facts = fitted_constants(), gpu_facts("A10")
    assert facts is not None
    times = kernel_times(
        work_on(Kernels.of(cost.layers), GpuModel.of(gpu("A10"), facts)), constants
    )
    places = 8 * 28 * 28
    padded = 104  # 100 channels in tiles of 8; 120 are 15 tiles
    flop = 2 * places * 120 * padded * 9
    occupancy = 1 + constants.work0 / (places * 120 / 72)
    compute_s = flop / (125e12 * constants.fp16) * occupancy
    weights, activations = 2 * 120 * 100 * 9, 2 * places * (100 + 120)
    cache = 6 * 2**20 / 2
    assert activations < cache
    of_cache = 72 * 1695e6 * constants.cache_bytes  # bytes per second
    memory_s = (weights / 600e9 + activations / of_cache) / constants.bandwidth
    assert times.compute_s[0] == pytest.approx(compute_s)
    assert times.memory_s[0] == pytest.approx(memory_s)
    assert times.busy_s[0] == pytest.approx(hypot(compute_s, memory_s))
    launch_ms = constants.launch_us * 1e-3 * 1500 / 1695
    whole = hypot(compute_s, memory_s) * 1e3 + launch_ms
    assert ms(cost, "A10") == pytest.approx(whole)
    assert predicted_ms(cost.layers[0], gpu("A10")) == pytest.approx(whole)


def test_what_the_cache_does_not_hold_moves_at_the_memorys_rate() -> None:
    add = layer(None, kind="Add", given=2 * 10**7, made=10**7)
    constants, facts = fitted_constants(), gpu_facts("Tesla T4")
    assert facts is not None
    times = kernel_times(work_on(Kernels.of([add]), GpuModel.of(gpu("T4"), facts)), constants)
    moved, held = 4 * 3 * 10**7, 2 * 2**20
    of_cache = 40 * 1590e6 * constants.cache_bytes
    by_hand = ((moved - held) / 320e9 + held / of_cache) / constants.pointwise
    assert times.busy_s[0] == pytest.approx(by_hand)


def test_a_cache_is_not_slower_than_the_memory_behind_it() -> None:
    add = layer(None, kind="Add", given=2 * 10**4, made=10**4)
    facts = gpu_facts("Tesla T4")
    assert facts is not None
    slow = replace(fitted_constants(), cache_bytes=0.001)
    times = kernel_times(work_on(Kernels.of([add]), GpuModel.of(gpu("T4"), facts)), slow)
    assert times.busy_s[0] == pytest.approx(4 * 3 * 10**4 / (320e9 * slow.pointwise))


def test_narrow_groups_are_as_slow_as_a_whole_tile() -> None:
    constants, facts = fitted_constants(), gpu_facts("Tesla T4")
    assert facts is not None
    narrow = conv(56 * 56, 4, 4, 9, groups=32)
    times = kernel_times(work_on(Kernels.of([narrow]), GpuModel.of(gpu("T4"), facts)), constants)
    flop = 2 * 56 * 56 * 32 * 8 * 9 * 32  # 4 columns in a tile of 32, 4 channels in a step of 8
    occupancy = 1 + constants.work0 * 40 / (56 * 56 * 32)
    by_hand = flop / (8.1e12 * constants.grouped) * occupancy
    assert times.compute_s[0] == pytest.approx(by_hand)


@pytest.mark.parametrize("name", gpu_names())
@pytest.mark.parametrize("precision", [FP32, FP16, INT8])
def test_more_work_never_takes_less_time_and_none_beats_the_limit(
    name: str, precision: Precision
) -> None:
    found = [in_precision(for_batch(SMALL, batch), precision) for batch in (1, 2, 8, 32, 128, 1024)]
    times = [ms(cost, name) for cost in found]
    assert times == sorted(times)
    for cost, time_ms in zip(found, times, strict=True):
        assert time_ms >= physical_limit(cost, gpu(name)).limit_ms
    wider = network(*(conv(size * size, 64, 64, 9) for size in (56, 64, 80)))
    sizes = [network(layer) for layer in wider.layers]
    by_size = [ms(in_precision(cost, precision), name) for cost in sizes]
    assert by_size == sorted(by_size)


def test_an_estimate_that_would_beat_the_limit_is_the_limit() -> None:
    perfect = replace(
        fitted_constants(),
        **{**dict.fromkeys(asdict(fitted_constants()), 1e9), "work0": 0.0, "launch_us": 0.0},
    )
    facts = gpu_facts("L4")
    assert facts is not None
    limit = physical_limit(SMALL, gpu("L4")).limit_ms
    assert latency_ms(SMALL, gpu("L4"), facts, perfect) == limit > 0


def test_without_a_graph_a_small_network_takes_as_long_as_its_launches() -> None:
    constants = fitted_constants()
    launched = Timing(graph=False, host=True)
    assert ms(SMALL, "H100 PCIe", launched) > ms(SMALL, "H100 PCIe")
    facts = gpu_facts("H100 PCIe 80GB")
    assert facts is not None
    slow = replace(constants, host_us=1000.0, pointwise_launches=1.0)
    assert latency_ms(SMALL, gpu("H100 PCIe"), facts, slow, launched) == pytest.approx(5.0)


def test_a_copied_input_is_added_but_for_shared_memory() -> None:
    copied = Timing(copied_bytes_per_s=1e9)
    extra = SMALL.input_bytes / 1e9 * 1e3
    assert ms(SMALL, "L4", copied) == pytest.approx(ms(SMALL, "L4") + extra)
    assert ms(SMALL, "Jetson Nano", copied) == pytest.approx(ms(SMALL, "Jetson Nano"))


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        (conv(1, 8, 8, 1), "1x1"),
        (conv(1, 8, 8, 9), "k x k"),
        (conv(1, 8, 8, 9, groups=4), "grouped"),
        (conv(1, 1, 1, 9, groups=4), "depthwise"),
        (layer(Product(1, 8, 8, 1, 1), kind="MatMul", weights=64), "GEMM"),
        (layer(Product(8, 8, 8, 1, 4), kind="MatMul"), "attention"),
        (layer(None, kind="Relu"), "pointwise"),
        (layer(None, kind="Concat"), "free"),
    ],
)
def test_kinds_of_kernels(kernel: LayerCost, kind: str) -> None:
    assert str(kind_of(kernel)) == kind


def test_attention_stays_sixteen_bits_and_grows_by_groups() -> None:
    attention = layer(Product(8, 8, 8, 1, 4), kind="MatMul")
    (found,) = in_precision(for_batch(network(attention), 3), INT8).layers
    assert found.precision is FP16
    assert found.product == Product(8, 8, 8, 1, 12)


def test_an_interval_holds_its_value_and_is_wider_where_nothing_is_known() -> None:
    def width(name: str, precision: Precision, cost: NetworkCost = SMALL) -> float:
        found = estimate(in_precision(cost, precision), gpu(name), precision)
        assert found is not None
        latency = found.latency_ms
        assert found.limit_ms <= latency.low < latency.value < latency.high
        return latency.high / latency.value

    assert width("A30", INT8) < width("A30", FP32) < width("L4", FP16)
    assert width("L4", FP16) < width("L4", Precision.BF16)
    new = network(*SMALL.layers, layer(None, kind="Bernoulli", given=8, made=8))
    assert width("T4", FP16) < width("T4", FP16, new)
    found = estimate(for_batch(new, 256), gpu("T4"), FP32)
    assert found is not None
    assert found.notes == ("no published network has Bernoulli: the interval is a guess",)


@pytest.mark.parametrize(
    ("batch", "note"),
    [
        (1, ("no published latency is shorter than 0.33 ms: the interval is a guess",)),
        (256, ()),
        (10**6, ("no published latency is longer than 324 ms: the interval is a guess",)),
    ],
)
def test_outside_the_published_latencies_the_interval_is_wider(
    batch: int, note: tuple[str, ...]
) -> None:
    found = estimate(for_batch(SMALL, batch), gpu("T4"), FP32)
    inside = estimate(for_batch(SMALL, 256), gpu("T4"), FP32)
    assert found is not None
    assert inside is not None
    assert found.notes == note
    factor = found.latency_ms.high / found.latency_ms.value
    usual = inside.latency_ms.high / inside.latency_ms.value
    assert factor == pytest.approx(usual * (1.3 if note else 1))


def test_what_a_gpu_has_not_is_not_estimated() -> None:
    assert estimate(in_precision(SMALL, Precision.FP8), gpu("T4"), Precision.FP8) is None
    unlisted = replace(gpu("T4"), name="a GPU without figures")
    assert estimate(SMALL, unlisted, FP32) is None


def test_a_limit_has_its_estimate_where_the_device_is_in_the_table() -> None:
    cost = in_precision(SMALL, FP16)
    found, plain = limit_and_estimate(cost, gpu("L4")), estimate(cost, gpu("L4"), FP16)
    assert plain is not None
    assert found.estimated_ms == plain.latency_ms
    assert replace(found, estimated_ms=None) == physical_limit(cost, gpu("L4"))
    unlisted = replace(gpu("L4"), name="a CPU")
    assert limit_and_estimate(cost, unlisted) == physical_limit(cost, unlisted)


def test_tiles_are_whole() -> None:
    """45 columns cost what 48 cost, on units that compute eight at a time."""
    facts = gpu_facts("L4")
    assert facts is not None
    found = [
        kernel_times(
            work_on(
                Kernels.of(in_precision(network(conv(10**6, columns, 64, 1)), FP16).layers),
                GpuModel.of(gpu("L4"), facts),
            ),
            fitted_constants(),
        ).compute_s[0]
        for columns in (45, 48, 49)
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[2] / found[1] == pytest.approx(ceil(49 / 8) * 8 / 48, rel=1e-3)

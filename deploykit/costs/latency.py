"""Model of the time that a compiled network takes on a GPU, kernel by kernel.

    compute = FLOP / (peak x efficiency) x occupancy
    memory = bytes / (bandwidth x efficiency)
    kernel = sqrt(compute^2 + memory^2), the longer of the two where they differ
    network = sum of kernels + launches, and never below the physical limit

- FLOP count channels padded to the tile of the matrix instruction: 16 in INT8 and FP8, 8 in FP16
  and BF16, 4 in TF32 (NVIDIA, "Matrix Multiplication Background User's Guide"); 4 for the colours
  of an image. Depthwise and grouped convolutions run on the vector units, in FP32 arithmetic.
- ``occupancy`` is 1 + work0 / (results per multiprocessor): with few results a multiprocessor waits
  for the sums along the inner dimension, whose length does not get shorter. Groups follow one
  another. Before Ampere, which copies into shared memory asynchronously, FP16 waits longer.
- Weights come from memory. As much of the activations as half of the L2 cache holds moves at the
  rate of the cache, which grows with the multiprocessors and their clock, not with the memory.
- A launch costs cycles, less when a CUDA graph is replayed. Without one the host launches kernel by
  kernel, and where that takes longer than the kernels it is the time.

The constants are fitted by ``python -m benchmarks.estimate``; `docs/estimate.md` has what they are
good for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from deploykit.costs.kernels import KINDS, KernelKind, Kernels
from deploykit.costs.limits import physical_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.costs.network import LayerCost, NetworkCost
    from deploykit.costs.peaks import DevicePeak, GpuFacts

    Real: TypeAlias = float | NDArray[np.float64]

CONSTANTS_FILE: Final = "latency_model.json"

CLOCK0_HZ: Final = 1.5e9
"""The clock that launches are told for: they are cycles, so a faster clock launches faster."""

PINNED_BYTES_PER_S: Final = 12e9
"""Of a copy from pinned memory: PCIe 3.0 x16 is 15.75 GB/s before its protocol's overhead."""

_COLOURS: Final = 4
_GROUP_TILE: Final = 32
_GROUP_STEP: Final = 8
"""Columns, and channels, that a grouped convolution computes at once: narrow groups waste some."""
_CACHE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fitted.

    Shares of a peak are between 0 and 1; ``winograd`` is a factor; a multiprocessor moves
    ``cache_bytes`` to or from the L2 cache in a clock. ``work0`` are results of a multiprocessor,
    ``synchronous`` times as many for FP16 before Ampere. ``launch_us`` and
    ``launch_unreplayed_us`` are for a kernel at `CLOCK0_HZ`, with and without a CUDA graph;
    ``host_us`` is what a host takes to launch one, of an embedded GPU ``embedded_host`` times as
    long. A kernel without a product counts ``pointwise_launches``. Of a concatenation ``copied`` is
    the share that is really copied. ``copy_gb_per_s`` is the rate from pageable memory of the host.
    """

    int8: float
    fp16: float
    tf32: float
    vector: float
    grouped: float
    depthwise: float
    winograd: float
    work0: float
    synchronous: float
    bandwidth: float
    pointwise: float
    cache_bytes: float
    launch_us: float
    launch_unreplayed_us: float
    host_us: float
    embedded_host: float
    pointwise_launches: float
    copied: float
    copy_gb_per_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """How a latency is taken: by a replayed CUDA graph, or launched by the host and waited for.

    ``copied_bytes_per_s`` is the rate of the copy of the input that is timed with it; ``None``
    where the input lies on the GPU.
    """

    graph: bool = True
    host: bool = False
    copied_bytes_per_s: float | None = None


GRAPH: Final = Timing()
"""What `bench` measures: a CUDA graph, replayed."""


@dataclass(frozen=True)
class GpuModel:
    """A GPU as the model reads it; each figure a number, or (kernels,) numbers.

    ``rate_8`` and its like are FLOP per second by the bits of an operand, ``matrix_8`` says whether
    matrix units compute it, ``vector`` is the rate of the vector units.
    """

    rate_8: Real
    rate_16: Real
    rate_32: Real
    matrix_8: Any
    matrix_16: Any
    matrix_32: Any
    vector: Real
    bytes_per_s: Real
    cache_bytes: Real
    multiprocessors: Real
    clock_hz: Real
    asynchronous: Any

    @classmethod
    def of(cls, peak: DevicePeak, facts: GpuFacts) -> GpuModel:
        """The GPU of a row of the table; a rate that is not known is 0."""
        tf32 = peak.tf32_flop_per_s or 0.0
        return cls(
            rate_8=peak.int8_op_per_s or 0.0,
            rate_16=peak.fp16_flop_per_s or 0.0,
            rate_32=max(tf32, peak.fp32_flop_per_s),
            matrix_8=facts.matrix_int8,
            matrix_16=facts.matrix_units,
            matrix_32=tf32 > 0,
            vector=peak.fp32_flop_per_s,
            bytes_per_s=peak.bytes_per_s,
            cache_bytes=peak.cache_bytes,
            multiprocessors=facts.multiprocessors,
            clock_hz=facts.clock_hz,
            asynchronous=facts.asynchronous,
        )


_CODE: Final = {kind: code for code, kind in enumerate(KINDS)}

_UNITS: Final = ("int8", "fp16", "tf32", "vector", "grouped", "depthwise")
"""The constants that are shares of a rate; a kernel has the place of its own."""


@dataclass(frozen=True)
class KernelWork:
    """Kernels on their GPU before any constant: seconds at the full rates, a row per kernel.

    ``unit`` is the place in `_UNITS`, ``wait`` the multiprocessors over the results that they have
    to compute. Activations go through the cache or through memory, ``cached_s`` and ``passed_s``,
    both in seconds at the bandwidth of the memory; ``cached_clocks_s`` are those of the cache at a
    byte in a clock of each multiprocessor.
    """

    compute_s: NDArray[np.float64]
    unit: NDArray[np.int64]
    winograd: NDArray[np.bool_]
    wait: NDArray[np.float64]
    weights_s: NDArray[np.float64]
    cached_s: NDArray[np.float64]
    cached_clocks_s: NDArray[np.float64]
    passed_s: NDArray[np.float64]
    synchronous: NDArray[np.bool_]
    has_product: NDArray[np.bool_]
    free: NDArray[np.bool_]


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of each kernel (kernels,): its two sides, the longer one, and launches it counts."""

    compute_s: NDArray[np.float64]
    memory_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    launches: NDArray[np.float64]


def work_on(kernels: Kernels, gpu: GpuModel) -> KernelWork:
    """What ``kernels`` are for a GPU; infinite where it has no rate for their precision."""
    eight, sixteen = kernels.bits == _EIGHT, kernels.bits == _SIXTEEN
    grouped = kernels.kind == _CODE[KernelKind.GROUPED]
    apart = grouped | (kernels.kind == _CODE[KernelKind.DEPTHWISE])
    own = np.where(eight, gpu.rate_8, np.where(sixteen, gpu.rate_16, gpu.rate_32))
    has_matrix = np.where(eight, gpu.matrix_8, np.where(sixteen, gpu.matrix_16, gpu.matrix_32))
    matrix = has_matrix.astype(bool) & ~apart
    rate = np.where(apart & (own > 0), gpu.vector, own)
    tile = np.where(matrix, np.where(eight, 16, np.where(sixteen, 8, 4)), 1)
    wide = np.where(grouped, _GROUP_TILE, tile)
    of_channels = np.where(kernels.channels <= _COLOURS, np.minimum(tile, _COLOURS), tile)
    of_channels = np.where(grouped, _GROUP_STEP, of_channels)
    columns, channels = _up(kernels.columns, wide), _up(kernels.channels, of_channels)
    flop = 2 * kernels.rows * columns * channels * kernels.window * kernels.groups
    product = kernels.rows > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        compute_s = np.where(product, flop / rate, 0.0)
    of_matrix = np.where(eight, 0, np.where(sixteen, 1, 2))
    of_vector = np.where(grouped, 4, np.where(apart, 5, 3))
    # Groups are computed one after the other, each as small as it is.
    at_once = np.where(grouped, 1.0, kernels.groups)
    results = np.maximum(kernels.rows * columns * at_once, 1.0)
    slow = matrix & sixteen & np.logical_not(gpu.asynchronous)
    cached = np.minimum(kernels.activation_bytes, _CACHE_SHARE * np.asarray(gpu.cache_bytes))
    return KernelWork(
        compute_s=compute_s,
        unit=np.where(matrix, of_matrix, of_vector),
        winograd=kernels.winograd & ~matrix & ~apart,
        wait=np.where(product, gpu.multiprocessors / results, 0.0),
        weights_s=kernels.weight_bytes / gpu.bytes_per_s,
        cached_s=cached / gpu.bytes_per_s,
        cached_clocks_s=cached / (np.asarray(gpu.multiprocessors) * gpu.clock_hz),
        passed_s=(kernels.activation_bytes - cached) / gpu.bytes_per_s,
        synchronous=slow,
        has_product=product,
        free=kernels.kind == _CODE[KernelKind.FREE],
    )


_EIGHT, _SIXTEEN = 8, 16


def _up(sizes: NDArray[np.float64], tile: NDArray[Any]) -> NDArray[np.float64]:
    whole: NDArray[np.float64] = np.ceil(sizes / tile) * tile
    return whole


def kernel_times(work: KernelWork, constants: Constants) -> KernelTimes:
    """Both sides of each kernel."""
    shares = np.array([getattr(constants, name) for name in _UNITS])
    saving = np.where(work.winograd, constants.winograd, 1.0)
    slower = np.where(work.synchronous, constants.synchronous, 1.0)
    occupancy = 1 + constants.work0 * work.wait * slower
    compute_s = work.compute_s / (shares[work.unit] * saving) * occupancy
    # A cache is not slower than the memory behind it.
    cached_s = np.minimum(work.cached_clocks_s / constants.cache_bytes, work.cached_s)
    moved_s = work.weights_s + work.passed_s + cached_s
    share = np.where(work.has_product, constants.bandwidth, constants.pointwise)
    memory_s = np.where(work.free, constants.copied, 1.0) * moved_s / share
    launches = np.where(work.has_product, 1.0, constants.pointwise_launches)
    launches = np.where(work.free, constants.copied, launches)
    return KernelTimes(compute_s, memory_s, np.hypot(compute_s, memory_s), launches)


def network_s(
    busy_s: Real,
    launches: Real,
    copied_s: Real,
    gpu: tuple[Any, Any],
    way: tuple[Any, Any],
    constants: Constants,
) -> NDArray[np.float64]:
    """Seconds of networks whose kernels are busy for ``busy_s`` and are ``launches`` launches.

    ``gpu`` is its clock in Hz and whether it is embedded, ``way`` whether a CUDA graph is replayed
    and whether the host is waited for; each one for all, or one for each network.
    """
    (clock_hz, embedded), (graph, host) = gpu, way
    each_us = np.where(graph, constants.launch_us, constants.launch_unreplayed_us)
    device = busy_s + launches * each_us * 1e-6 * CLOCK0_HZ / clock_hz
    slower = np.where(embedded, constants.embedded_host, 1.0)
    launched = launches * constants.host_us * 1e-6 * slower
    waits = np.logical_and(host, np.logical_not(graph))
    found: NDArray[np.float64] = np.where(waits, np.maximum(device, launched), device) + copied_s
    return found


@cache
def fitted() -> Mapping[str, Any]:
    """The file of constants: ``constants``, ``operators`` it was fitted on, ``errors`` held out."""
    text = resources.files(__package__).joinpath(CONSTANTS_FILE).read_text("utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


@cache
def fitted_constants() -> Constants:
    """The constants of the file."""
    return Constants(**fitted()["constants"])


def kernel_ms(layer: LayerCost, peak: DevicePeak, facts: GpuFacts, constants: Constants) -> float:
    """Milliseconds of one kernel with its launch from a CUDA graph."""
    times = kernel_times(work_on(Kernels.of([layer]), GpuModel.of(peak, facts)), constants)
    gpu, way = (facts.clock_hz, facts.embedded), (True, False)
    seconds = network_s(times.busy_s, times.launches, 0.0, gpu, way, constants)
    return float(seconds[0]) * 1e3


def latency_ms(
    cost: NetworkCost,
    peak: DevicePeak,
    facts: GpuFacts,
    constants: Constants,
    timing: Timing = GRAPH,
) -> float:
    """Milliseconds of one batch, never less than the physical limit.

    Infinite where the GPU's rate in the network's precision is not known.
    """
    gpu = GpuModel.of(peak, facts)
    times = kernel_times(work_on(Kernels.of(cost.layers), gpu), constants)
    copied_s = 0.0
    if timing.copied_bytes_per_s is not None and not facts.embedded:
        copied_s = cost.input_bytes / timing.copied_bytes_per_s
    seconds = network_s(
        float(times.busy_s.sum()),
        float(times.launches.sum()),
        copied_s,
        (facts.clock_hz, facts.embedded),
        (timing.graph, timing.host),
        constants,
    )
    return max(float(seconds) * 1e3, physical_limit(cost, peak).limit_ms)


def constants_to_plain(constants: Constants) -> dict[str, float]:
    """Plain data for the file of constants, with as many digits as mean something."""
    return {name: float(f"{value:.4g}") for name, value in asdict(constants).items()}

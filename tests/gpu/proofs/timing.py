"""Whether the times are true: kernels of a known length, copies, launches, calls side by side."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.backends._cuda.device import Device, Memory
from tests.kernels.benches import kernel_bench
from tests.kernels.runtime import spin
from tests.runner_scenarios import images

if TYPE_CHECKING:
    from deploykit.backends._cuda.device import PinnedMemory, StepClock, Stream
    from tests.gpu.proofs.report import Report

CYCLES = (200_000, 2_000_000, 20_000_000)
"""About 0.1, 1 and 10 ms on a GPU; nanoseconds on a stand-in."""
THREADS = (1, 2, 4, 8)


def prove(report: Report) -> None:
    with report.piece("kernels of a known length"):
        _spins(report)
    with report.piece("copies"):
        _copies(report)
    with report.piece("compute time of the runner"):
        _compute(report)
    with report.piece("launches"):
        _launches(report)
    with report.piece("calls side by side"):
        _side_by_side(report)


def _spins(report: Report) -> None:
    """Events around a kernel against the GPU's own timer inside it."""
    device = Device()
    stream, clock = device.new_stream(), device.new_clock(2)
    pinned = device.reserve_pinned(8)
    for cycles in CYCLES[: 2 if report.quick else 3]:
        spin(stream.core, cycles, pinned.address)  # the first loads the kernel
        clock.mark(0, stream)
        spin(stream.core, cycles, pinned.address)
        clock.mark(1, stream)
        stream.synchronise()
        inside = float(pinned.array((1,), np.dtype(np.int64))[0]) / 1e6
        events = clock.between_ms(0, 1)
        close = inside <= events + 0.005 and events - inside < 0.03 + 0.02 * inside
        report.time(
            f"a kernel of {cycles} cycles",
            close,
            events_ms=events,
            inside_ms=inside,
            implied_mhz=cycles / inside / 1e3,
        )


def _copies(report: Report) -> None:
    device = Device()
    stream, clock = device.new_stream(), device.new_clock(2)
    for mib in (1, 4) if report.quick else (1, 16, 64, 256):
        size = mib << 20
        host = device.reserve_pinned(size)
        one, other = device.reserve(size, stream), device.reserve(size, stream)
        pairs = {"to the GPU": (one, host), "from it": (host, one), "on it": (other, one)}
        rates = {name: _rate(clock, stream, *pair) for name, pair in pairs.items()}
        report.figure(f"copies of {mib} MiB, in GB/s", **rates)
        values = host.array((size // 8,), np.dtype(np.int64))
        values[:] = np.arange(size // 8)
        stream.copy(one, host)
        stream.copy(other, one)
        stream.synchronise()
        values[:] = 0
        stream.copy(host, other)
        stream.synchronise()
        equal = bool((values == np.arange(size // 8)).all())
        report.check(f"{mib} MiB come back as they went", equal)
        for memory in (one, other, host):
            memory.close()


def _rate(
    clock: StepClock, stream: Stream, target: Memory | PinnedMemory, source: Memory | PinnedMemory
) -> float:
    took = []
    for _ in range(6):
        clock.mark(0, stream)
        stream.copy(target, source)
        clock.mark(1, stream)
        stream.synchronise()
        took.append(clock.between_ms(0, 1))
    return round(target.size / median(took) / 1e6, 2)


def _times(folder: Path, count: int, **options: Any) -> dict[str, float]:
    """Medians of the steps of calls whose inputs lie on the GPU, in ms."""
    with kernel_bench(folder, **options).runner() as runner:
        x = runner.upload({"x": images(4)})
        for _ in range(3):
            runner.time_on_device(x)
        steps = [runner.time_on_device(x) for _ in range(count)]
    return {
        "compute_ms": median(step.compute_ms or 0 for step in steps),
        "enqueue_ms": median(step.enqueue_ms or 0 for step in steps),
        "wall_ms": median(step.wall_ms for step in steps),
    }


def _compute(report: Report) -> None:
    """An engine with a wait in it takes longer by what that wait takes, and by no more."""
    count = 5 if report.quick else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        without = _times(folder, count)["compute_ms"]
        for cycles in CYCLES[:2]:
            more = _times(folder, count, spin_cycles=cycles)["compute_ms"] - without
            expected = _spin_ms(cycles)
            report.time(
                f"compute_ms with {cycles} cycles more",
                abs(more - expected) < 0.02 + 0.05 * expected,
                more_ms=more,
                expected_ms=expected,
                without_ms=without,
            )


def _spin_ms(cycles: int) -> float:
    device = Device()
    stream, pinned = device.new_stream(), device.reserve_pinned(8)
    took = []
    for _ in range(9):
        spin(stream.core, cycles, pinned.address)
        stream.synchronise()
        took.append(float(pinned.array((1,), np.dtype(np.int64))[0]) / 1e6)
    return median(took)


def _launches(report: Report) -> None:
    count = 5 if report.quick else 300
    with tempfile.TemporaryDirectory() as name:
        graph = _times(Path(name), count)
        eager = _times(Path(name), count, cuda_graphs=False)
    report.figure("a call as a graph", **graph)
    report.figure("a call without a graph", **eager)
    faster = graph["enqueue_ms"] < eager["enqueue_ms"]
    ratio = graph["enqueue_ms"] / eager["enqueue_ms"]
    report.time("a graph is enqueued faster", passed=faster, ratio=ratio)


def _side_by_side(report: Report) -> None:
    """Calls of one thread block each: four fit a GPU at once, and take no longer than one."""
    seconds = 0.3 if report.quick else 3.0
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        bench = kernel_bench(Path(name), spin_cycles=CYCLES[1])
        check = bench.oracle()
        with bench.runner() as runner:

            def work(seed: int) -> int:
                given, calls = images(1, seed), 0
                while time.perf_counter() < end:
                    outputs = runner.run({"x": given})
                    if calls % 16 == 0:  # comparing takes the processor, as the calls do
                        check(given, outputs)
                    calls += 1
                return calls

            for threads in THREADS:
                with ThreadPoolExecutor(threads) as pool:
                    end = time.perf_counter() + seconds
                    calls = sum(pool.map(work, range(threads)))
                rates[threads] = calls / seconds
    report.time(
        "four threads do more than two and a half times what one does",
        rates[4] > 2.5 * rates[1],
        **{f"calls_per_s_of_{threads}": round(rate, 1) for threads, rate in rates.items()},
    )

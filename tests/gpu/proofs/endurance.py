"""The meter, 32 threads on one runner, and the memory of runners that are opened and closed."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.backends._cuda.device import Device
from tests.device_arrays import ByDlpack
from tests.gpu.proofs.report import CannotRunError
from tests.kernels.benches import kernel_bench
from tests.runner_scenarios import images

if TYPE_CHECKING:
    from tests.gpu.proofs.report import Report
    from tests.runner_scenarios import Bench

THREADS = 32
LEAK_BYTES = 8 << 20


def prove(report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = kernel_bench(Path(folder))
        with report.piece("the meter, while a GPU works"):
            report.needs_gpu("NVML")
            _metered(report, bench)
        with report.piece("32 threads"):
            _threads(report, bench, 0.5 if report.quick else 10)
        with report.piece("opened and closed"):
            _open_and_close(report, bench, 3 if report.quick else 40)


def _metered(report: Report, bench: Bench) -> None:
    from deploykit.benchmarking.machine.gpu_meter import GpuSampler, open_gpu_meter

    meter = open_gpu_meter()
    try:
        sampler = GpuSampler(meter)
        sampler.start()
        _threads(report, bench, 5)
        readings = sampler.stop()
    finally:
        meter.close()
    if not readings:
        raise CannotRunError("NVML gave no reading")
    report.figure("readings of the meter", count=len(readings), some=str(readings[1::10]))


def _threads(report: Report, bench: Bench, seconds: float) -> None:
    check = bench.oracle()

    def work(seed: int) -> int:
        calls = 0
        while calls == 0 or time.perf_counter() < end:  # a busy machine may start a thread late
            given = images(1 + seed % 5, 1000 * seed + calls)
            check(given, runner.run({"x": given}))
            calls += 1
        return calls

    with bench.runner() as runner, ThreadPoolExecutor(THREADS) as pool:
        end = time.perf_counter() + seconds
        calls = list(pool.map(work, range(THREADS)))
    report.check("32 threads get their own answers", passed=True, per_s=sum(calls) / seconds)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _open_and_close(report: Report, bench: Bench, times: int) -> None:
    check = bench.oracle()
    free, resident = [], []
    for seed in range(times):
        with bench.runner() as runner:
            for batch in (1, 1, 1, 5, 5):
                check(images(batch, seed), runner.run({"x": images(batch, seed)}))
                runner.run_on_device({"x": ByDlpack(images(batch, seed))})
        free.append(Device().memory_bytes()[0])
        resident.append(_resident_mib())
    report.check(
        "memory of the GPU comes back",
        free[0] - free[-1] <= LEAK_BYTES,
        lost_mib=(free[0] - free[-1]) / 2**20,
        times=times,
    )
    report.figure(
        "memory of the process", first_mib=resident[0], last_mib=resident[-1], times=times
    )

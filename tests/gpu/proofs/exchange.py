"""Arrays from and to other libraries, on side streams, while their producer is still busy."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.core.errors import UsageError
from tests.device_arrays import Busy
from tests.kernels.benches import kernel_bench
from tests.kernels.runtime import spin
from tests.runner_scenarios import ByDlpackOnly, images

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.backends.trt.runner import TrtRunner
    from tests.gpu.proofs.report import Report

    Check = Callable[[Any, dict[str, Any]], None]

BUSY_CYCLES = 4_000_000
"""About 2 ms on a GPU: a call that did not wait would be done before."""


def prove(report: Report) -> None:
    rounds = 4 if report.quick else 30
    with tempfile.TemporaryDirectory() as folder:
        bench = kernel_bench(Path(folder))
        check = bench.oracle()
        with bench.runner() as runner:
            with report.piece("cuda.core"):
                _cuda_core(report, runner, check, rounds)
            with report.piece("torch"):
                report.needs_gpu("torch.cuda")
                _torch(report, runner, check, rounds)
            with report.piece("cupy"):
                report.needs_gpu("cupy")
                _cupy(report, runner, check, rounds)


def _cuda_core(report: Report, runner: TrtRunner, check: Check, rounds: int) -> None:
    array = Busy(images(2), lambda stream: spin(stream, BUSY_CYCLES))
    for seed in range(rounds):
        array.write(images(2, seed))
        check(images(2, seed), runner.run({"x": array}))
    report.check("cuda.core", passed=True, rounds=rounds)


def _torch(report: Report, runner: TrtRunner, check: Check, rounds: int) -> None:
    import torch

    busy = 0
    cuda: Any = torch.cuda
    from_dlpack: Any = torch.utils.dlpack.from_dlpack
    side, reader = cuda.Stream(), cuda.Stream()
    for seed in range(rounds):
        given = images(2, seed)
        source = torch.from_numpy(given).cuda()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            cuda._sleep(BUSY_CYCLES)
            x = source * 1.0
            done = side.record_event()
            busy += not done.query()
            outputs = runner.run_on_device({"x": x})
            check(given, runner.run({"x": x}))
        with torch.cuda.stream(reader):
            y = from_dlpack(outputs["y"]) + 0
            reader.synchronize()
            by_interface = torch.as_tensor(outputs["y"], device="cuda").cpu()
        check(given, {"y": y.cpu().numpy()})
        check(given, {"y": by_interface.numpy()})
    report.check("torch", passed=True, rounds=rounds)
    report.check("torch was busy when its array was handed over", busy > rounds // 2, times=busy)
    try:
        runner.run({"x": torch.from_numpy(images(2)).cuda().requires_grad_()})
    except UsageError as error:
        report.check("torch's array with a gradient is refused", passed=True, said=str(error))
    else:
        report.check("torch's array with a gradient is refused", passed=False)


class _ByInterface:
    """A cupy array with nothing but its CUDA array interface, which names its stream."""

    def __init__(self, array: Any) -> None:
        self._array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        described: dict[str, Any] = self._array.__cuda_array_interface__
        return described


def _cupy(report: Report, runner: TrtRunner, check: Check, rounds: int) -> None:
    import cupy

    wait = cupy.RawKernel(
        'extern "C" __global__ void wait(long long n) '
        "{ long long t = clock64(); while (clock64() - t < n); }",
        "wait",
    )
    stream = cupy.cuda.Stream(non_blocking=True)
    for form in (ByDlpackOnly, _ByInterface):
        busy = 0
        for seed in range(rounds):
            given = images(2, seed)
            source = cupy.asarray(given)
            cupy.cuda.runtime.deviceSynchronize()
            with stream:
                wait((1,), (1,), (np.int64(BUSY_CYCLES),))
                x = source * np.float32(1)
                busy += not stream.done
                outputs = runner.run_on_device({"x": form(x)})
                check(given, runner.run({"x": form(x)}))
                for y in (cupy.from_dlpack(outputs["y"]), cupy.asarray(outputs["y"])):
                    check(given, {"y": cupy.asnumpy(y + 0)})
        report.check(f"cupy {form.__name__.strip('_')}", passed=True, rounds=rounds, busy=busy)

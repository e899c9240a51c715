"""Faults of the GPU that another part of the process caused, and the caller's current device."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.environment import require
from deploykit.core.errors import DeviceError, UsageError
from tests.device_arrays import ByDlpack, core
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

ROOT = Path(__file__).parents[2]
DRIVER = ctypes.CDLL("libcuda.so.1")
BROKEN = r"model.engine: the GPU failed, and this process cannot use it any more\nit says: {}.*\n"
# cuda.h: a kernel's address that is none, its trap, its endless loop, a card that fell off the bus.
FAULTS = {
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    719: "(CUDA_ERROR_LAUNCH_FAILED|.*719)",  # the stand-in does not know the name of each
    702: "(CUDA_ERROR_LAUNCH_TIMEOUT|.*702)",
    46: "(CUDA_ERROR_DEVICE_UNAVAILABLE|.*46)",
}


@pytest.fixture
def fault() -> Iterator[Callable[[int], None]]:
    """From now on the driver answers every call so, as after a fault of a kernel of anybody."""
    yield DRIVER.nullcuda_fault
    DRIVER.nullcuda_fault(0)


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_of_others_breaks_the_runner(
    runner: TrtRunner, fault: Callable[[int], None], code: int
) -> None:
    output = runner.run_on_device({"x": images(1)})["y"]
    on_gpu = ByDlpack(images(1))
    fault(code)
    said = BROKEN.format(FAULTS[code])
    for call in (runner.run, runner.run_on_device, runner.run_timed, runner.upload):
        with pytest.raises(DeviceError, match=said):
            call({"x": images(1)})
    with pytest.raises(DeviceError, match=f"cannot be copied from there\nit says: {FAULTS[code]}"):
        output.numpy()
    fault(0)
    with pytest.raises(
        DeviceError, match=said
    ):  # for good: what the GPU holds is not to be trusted
        runner.run({"x": on_gpu})


def test_a_fault_while_a_call_reads_its_input(
    runner: TrtRunner, fault: Callable[[int], None]
) -> None:
    class Faulty(ByDlpack):
        def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
            capsule = super().__dlpack__(stream=stream, **options)
            fault(700)
            return capsule

    with pytest.raises(DeviceError, match=BROKEN.format("CUDA_ERROR_ILLEGAL_ADDRESS")):
        runner.run({"x": Faulty(images(1))})


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
def test_closing_after_a_fault_gives_all_up_and_says_nothing_else(
    script: Script, tmp_path: Path, fault: Callable[[int], None], *, rtx: bool
) -> None:
    cache = tmp_path / "cache"
    runner = fake_bench(script, tmp_path, rtx=rtx).runner(cache=cache)
    runner.run({"x": images(1)})
    cache.unlink(missing_ok=True)
    fault(719)
    with pytest.raises(KeyError, match="the caller's own"), runner:
        raise KeyError("the caller's own")
    assert script.contexts == 0
    assert not cache.exists()
    fault(0)
    with pytest.raises(UsageError, match="is closed; open a new one"):
        runner.run({"x": images(1)})


def test_a_fault_is_logged_when_it_shows_at_the_end_only(
    runner: TrtRunner, fault: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    runner.run({"x": images(1)})
    fault(700)
    runner.close()
    assert "model.engine: the GPU failed before it was closed: CUDA_ERROR_ILLEGAL" in caplog.text


def test_too_little_memory_passes(
    bench: Bench, runner: TrtRunner, memory_mib: Callable[[int], None]
) -> None:
    runner.run({"x": images(1)})
    memory_mib(0)
    with pytest.raises(DeviceError, match="the GPU has no"):
        runner.upload({"x": images(1)})
    memory_mib(1024)
    bench.oracle()(images(1), runner.run({"x": images(1)}))


def test_closing_gives_the_pools_memory_back(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = require("cuda.bindings.driver")
    seen: list[tuple[int, int, int]] = []
    trim = driver.cuMemPoolTrimTo

    def spy(pool: Any, kept: int) -> Any:
        free = driver.cuMemGetInfo()[1]
        seen.append((int(pool), kept, free))
        return trim(pool, kept)

    monkeypatch.setattr(driver, "cuMemPoolTrimTo", spy)
    device = core.Device(0)
    device.set_current()
    free = driver.cuMemGetInfo()[1]
    with bench.runner() as runner:
        for batch in (1, 1, 1, 3):
            runner.run({"x": images(batch)})
        assert not seen
    # Once, to nothing, of the pool that the runner reserves from, and after all else was freed.
    assert seen == [(int(device.memory_resource.handle), 0, free)]


def test_a_gpu_without_memory_pools_is_closed_too(bench: Bench) -> None:
    """As a virtual GPU may be: ``cuda.core`` then reserves memory by another resource."""
    device = core.Device(0)
    device.set_current()
    before = device.memory_resource
    without_pool: Any = require("cuda.core._memory._legacy")
    device.memory_resource = without_pool._SynchronousMemoryResource(0)
    try:
        with bench.runner() as runner:
            bench.oracle()(images(1), runner.run({"x": images(1)}))
    finally:
        device.memory_resource = before


TWO_GPUS = """
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import cuda.core as core
from cuda.bindings import driver
from deploykit.core.errors import UsageError
from tests.device_arrays import ByDlpack
from tests.fakes.runtime_fake import Script
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

bench = fake_bench(Script(), Path(tempfile.mkdtemp()))
check = bench.oracle()
on_gpu_0 = ByDlpack(images(1))

def current():
    status, context = driver.cuCtxGetCurrent()
    assert status == 0
    return int(context)

def use(runner):
    core.Device(1).set_current()
    before = current()
    assert int(driver.cuCtxGetDevice()[1]) == 1
    outputs = None
    for call in (
        lambda: runner.inputs,
        lambda: check(images(2), runner.run({"x": images(2)})),
        lambda: check(images(1), runner.run({"x": on_gpu_0})),
        lambda: runner.run_timed({"x": images(1)}),
        lambda: runner.upload({"x": images(1)}),
        lambda: check(images(1), runner.run_on_device({"x": images(1)})),
    ):
        for _ in range(3):
            call()
            assert current() == before
    try:
        runner.run({"z": images(1)})
    except UsageError:
        assert current() == before
    return before

runner = bench.runner()
before = use(runner)
with ThreadPoolExecutor(4) as pool:
    for done in [pool.submit(use, runner) for _ in range(8)]:
        done.result()
with ThreadPoolExecutor(1) as pool:  # a thread that has none
    check(images(1), pool.submit(runner.run, {"x": images(1)}).result())
runner.close()
assert current() == before
print("kept")
"""


def test_the_callers_current_device_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_GPUS],
        cwd=ROOT,  # from where it imports the tests
        env={**os.environ, "NULLCUDA_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "kept\n", done.stdout + done.stderr


def test_a_user_made_context_stays(runner: TrtRunner, bench: Bench) -> None:
    driver = require("cuda.bindings.driver")
    check = bench.oracle()

    def work() -> tuple[int, int]:
        _, own = driver.cuCtxCreate(None, 0, 0)
        for turn in range(3):
            check(images(1, turn), runner.run({"x": images(1, turn)}))
        _, after = driver.cuCtxGetCurrent()
        return int(own), int(after)

    with ThreadPoolExecutor(1) as pool:
        own, after = pool.submit(work).result()
    assert own == after

"""What is told when the runtime or the GPU refuses, and what goes on afterwards."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from deploykit.backends._cuda.device import Device
from deploykit.backends.trt.runner import LANES, TrtRunner
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.sizes import ShapeProfile
from tests.device_arrays import ByDlpack, ByInterface, core
from tests.fakes.execution_fake import SCRATCH
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

DRIVER = ctypes.CDLL("libcuda.so.1")


def destroy(stream: int) -> None:
    """From now on the driver refuses whatever is asked of the stream, as after a fault.

    Its work is done by then: a runner frees what that used, as after a fault none of it goes on.
    """
    DRIVER.cuStreamSynchronize(ctypes.c_void_p(stream))
    assert DRIVER.cuStreamDestroy_v2(ctypes.c_void_p(stream)) == 0


def driver_error() -> Exception:
    device = core.Device(0)
    device.set_current()
    try:
        device.allocate(1 << 60, stream=device.create_stream())
    except Exception as error:
        return error
    raise AssertionError("the stand-in gave it")


REFUSALS = {
    "create_execution_context": "makes no execution context\nit says: the reason",
    "set_input_shape": r"refuses the shape \(1, 8, 16, 16\) of 'x'\nit says: the reason",
    "infer_shapes": "cannot infer the shapes\nit says: the reason",
    "all shapes": "lacks the shapes of x",
    "set_tensor_address": "refuses the address of 'x'\nit says: the reason",
    "execute_async_v3": "does not run it\nit says: the reason",
}


@pytest.mark.parametrize("method", REFUSALS)
def test_each_refusal_is_told_and_the_next_call_goes_on(
    bench: Bench, runner: TrtRunner, script: Script, method: str
) -> None:
    script.refuses = {method}
    for _ in range(2):
        with pytest.raises(DeviceError, match=f"model.engine: tensorrt .* {REFUSALS[method]}"):
            runner.run({"x": images(1)})
    script.refuses = set()
    bench.oracle()(images(1), runner.run({"x": images(1)}))


def test_a_call_that_the_driver_refuses(bench: Bench, runner: TrtRunner, script: Script) -> None:
    def refuse(stream: int) -> None:
        raise driver_error()

    script.before = refuse
    with pytest.raises(DeviceError, match="refuses a call\nit says: CUDA_ERROR_OUT_OF_MEMORY"):
        runner.run({"x": images(1)})
    script.before = None
    bench.oracle()(images(1), runner.run({"x": images(1)}))


def test_a_driver_that_refuses_at_once(runner: TrtRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Device) -> None:
        raise driver_error()

    with monkeypatch.context() as patch:
        patch.setattr(Device, "make_current", refuse)
        # As in a thread that has not used the GPU yet: there is nothing to do where it is current.
        assert DRIVER.cuCtxSetCurrent(None) == 0
        with pytest.raises(DeviceError, match="the CUDA driver refuses a call\nit says: CUDA_"):
            runner.run({"x": images(1)})
    runner.run({"x": images(1)})


def test_an_interrupted_call_leaves_the_runner_usable(
    bench: Bench, runner: TrtRunner, script: Script
) -> None:
    def interrupt(stream: int) -> None:
        raise KeyboardInterrupt

    for _ in ("in a plain run", "in a capture, as the lane's second call"):
        script.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            runner.run({"x": images(1)})
        script.before = None
        bench.oracle()(images(1), runner.run({"x": images(1)}))


@pytest.mark.parametrize("moment", ["while enqueuing", "while computing"])
def test_a_fault_breaks_the_runner_for_good(script: Script, tmp_path: Path, moment: str) -> None:
    bench = fake_bench(script, tmp_path, rtx=True)
    cache = tmp_path / "cache"
    runner = bench.runner(cache=cache)
    runner.run({"x": images(1)})
    cache.unlink()  # it was written after the first call of this shape
    handles: list[int] = []
    if moment == "while enqueuing":
        script.before = destroy
    else:
        script.before = handles.append
        script.work = lambda: destroy(handles[0])
    broken = r"the GPU failed, and this process cannot use it any more\nit says: .*\nstart the pro"
    with pytest.raises(DeviceError, match=broken):
        runner.run({"x": images(1)})
    script.before = script.work = None
    for call in (runner.run, runner.run_on_device, runner.run_timed):
        with pytest.raises(DeviceError, match=broken):
            call({"x": images(1)})
    runner.close()
    runner.close()
    assert not cache.exists()  # what a failing GPU has compiled is not to be trusted


def test_whoever_waits_for_the_call_that_fails_is_told(
    bench: Bench, runner: TrtRunner, script: Script
) -> None:
    script.before = destroy
    with ThreadPoolExecutor(2 * LANES) as pool:
        calls = [pool.submit(runner.run, {"x": images(1)}) for _ in range(4 * LANES)]
        for call in calls:
            with pytest.raises(DeviceError, match="start the process again"):
                call.result()


def test_a_call_that_waited_does_not_go_on_where_the_one_before_failed(
    runner: TrtRunner, script: Script
) -> None:
    runner.run({"x": images(1)})
    assert runner._opened is not None
    pool = runner._opened.pool
    pool._limit = 1
    waiting = pool._changed._waiters  # type: ignore[attr-defined]  # of Python's Condition

    def fail_when_another_waits(stream: int) -> None:
        script.before = None
        other.append(threads.submit(runner.run, {"x": images(2)}))
        while not waiting:
            time.sleep(0.001)
        destroy(stream)

    script.before = fail_when_another_waits
    other: list[Future[Any]] = []
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(DeviceError, match="start the process again"):
            runner.run({"x": images(2)})
        with pytest.raises(DeviceError, match="start the process again"):
            other[0].result()


def test_too_little_memory_for_a_lane(
    bench: Bench, runner: TrtRunner, memory_mib: Callable[[int], None]
) -> None:
    memory_mib(0)
    with pytest.raises(
        DeviceError, match=r"the GPU has no 0.2 MiB left: .* MiB of 0.0 MiB are free"
    ):
        runner.run({"x": images(1)})
    memory_mib(1024)
    bench.oracle()(images(1), runner.run({"x": images(1)}))


def test_too_little_memory_for_an_output(
    bench: Bench, runner: TrtRunner, memory_mib: Callable[[int], None]
) -> None:
    runner.run({"x": images(1)})
    memory_mib(0)
    with pytest.raises(DeviceError, match="compile the engine for smaller batches"):
        runner.run_on_device({"x": images(1)})
    memory_mib(1024)
    bench.oracle()(images(1), runner.run_on_device({"x": images(1)}))


def test_too_little_page_locked_memory() -> None:
    with pytest.raises(DeviceError, match=r"the system gives no .* MiB of page-locked memory"):
        Device().reserve_pinned(1 << 60)


def test_a_lane_that_cannot_be_made_gives_back_what_it_had(
    runner: TrtRunner, monkeypatch: pytest.MonkeyPatch, memory_mib: Callable[[int], None]
) -> None:
    before = Device().memory_bytes()[0]
    reserved: list[int] = []
    original = Device.reserve

    def reserve(self: Device, size: int, stream: Any) -> Any:
        if size == SCRATCH:
            memory_mib(0)
        reserved.append(size)
        return original(self, size, stream)

    monkeypatch.setattr(Device, "reserve", reserve)
    with pytest.raises(DeviceError, match=r"has no 0.0 MiB left"):
        runner.run({"x": images(1)})
    memory_mib(24576)
    assert reserved[-1] == SCRATCH
    assert len(reserved) == 3
    assert Device().memory_bytes()[0] == before


def test_two_inputs_have_one_batch(script: Script, tmp_path: Path) -> None:
    runner = two_inputs(script, tmp_path)
    a, b = images(2, 1), images(2, 2)
    with runner:
        for _ in range(3):
            np.testing.assert_array_equal(runner.run({"x": a, "z": b})["y"], a + b)
            given = {"z": ByDlpack(b), "x": a}
            np.testing.assert_array_equal(runner.run(given)["y"], a + b)
        assert runner.run_timed({"x": a, "z": ByDlpack(b)})[1].h2d_ms is not None
        with pytest.raises(UsageError, match=r"have different batches: \[1, 2\]"):
            runner.run({"x": a, "z": b[:1]})


def two_inputs(script: Script, folder: Path) -> TrtRunner:
    element = onnx.TensorProto.FLOAT
    x, z, y = (
        helper.make_tensor_value_info(name, element, ("batch", *small_models.IMAGE))
        for name in ("x", "z", "y")
    )
    graph = helper.make_graph([helper.make_node("Add", ["x", "z"], ["y"])], "sum", [x, z], [y])
    opset = [helper.make_opsetid("", small_models.OPSET)]
    plan = folder / "sum.engine"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), plan)
    return TrtRunner(plan, fake_bench(script, folder).compiler, ShapeProfile(1, 2, 2))


def test_an_address_that_is_none_is_told(bench: Bench, runner: TrtRunner) -> None:
    """On a real GPU it may be a fault, which ends the process: tests/gpu has one for it."""
    wrong = ByInterface(images(1), data=(0x1000, False))
    with pytest.raises(UsageError, match="cannot be read\nit says: CUDA_ERROR_INVALID_VALUE"):
        runner.run({"x": wrong})
    bench.oracle()(images(1), runner.run({"x": images(1)}))


class Elsewhere:
    def __dlpack_device__(self) -> tuple[int, int]:
        return (10, 0)


class Refusing:
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> object:
        raise BufferError("cannot export what needs a gradient")


class Defective(Refusing):
    def __dlpack__(self, **options: Any) -> object:
        raise KeyError("a defect")


def test_inputs_on_devices_that_are_none_of_ours(runner: TrtRunner) -> None:
    with pytest.raises(UsageError, match="type 10\npossible are the host and GPU 0 of CUDA"):
        runner.run({"x": Elsewhere()})
    with pytest.raises(UsageError, match=r"fed a Refusing that .*\nit says: cannot export what"):
        runner.run({"x": Refusing()})
    with pytest.raises(KeyError, match="a defect"):
        runner.run({"x": Defective()})

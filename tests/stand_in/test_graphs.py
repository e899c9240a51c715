"""When a CUDA graph is captured, replayed, captured again and given up."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends._cuda.device import Device, Stream
from deploykit.backends.trt.lane import GRAPHS_KEPT, BatchContext
from deploykit.backends.trt.runner import TrtRunner
from tests.device_arrays import ByDlpack
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

DRIVER = ctypes.CDLL("libcuda.so.1")


def counts(script: Script) -> tuple[int, int, int]:
    return script.eager, script.captured, script.computed


def test_a_batch_size_is_captured_when_it_comes_again(runner: TrtRunner, script: Script) -> None:
    seen = []
    for batch in (1, 1, 1, 2, 1, 2, 2):
        runner.run({"x": images(batch)})
        seen.append(counts(script))
    # Enqueued plainly, enqueued under capture, computed: a replay is seen in the last only.
    assert seen == [(1, 0, 1), (1, 1, 2), (1, 1, 3), (2, 1, 4), (2, 1, 5), (2, 2, 6), (2, 2, 7)]


def test_without_graphs_every_call_is_enqueued(bench: Bench, script: Script) -> None:
    with bench.runner(cuda_graphs=False) as runner:
        for _ in range(4):
            runner.run({"x": images(1)})
    assert counts(script) == (4, 0, 4)


def test_rtx_is_told_to_capture_by_itself(script: Script, tmp_path: Path) -> None:
    bench = fake_bench(script, tmp_path, rtx=True)
    for cuda_graphs in (True, False):
        with bench.runner(cuda_graphs=cuda_graphs) as runner:
            for _ in range(3):
                runner.run({"x": images(1)})
    assert [strategy.name for strategy in script.strategies] == ["WHOLE_GRAPH_CAPTURE", "DISABLED"]
    assert counts(script) == (6, 0, 6)


def test_a_changed_address_is_captured_again(runner: TrtRunner, script: Script) -> None:
    check_counts = []
    first, second = ByDlpack(images(1, 1)), ByDlpack(images(1, 2))
    for array in (first, first, first, second, second, second, first):
        runner.run({"x": array})
        check_counts.append(counts(script)[:2])
    assert check_counts == [(1, 0), (1, 1), (1, 1), (2, 1), (2, 2), (2, 2), (2, 2)]


def test_an_input_on_the_gpu_is_not_copied(
    runner: TrtRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    original = Stream.copy

    def copy(self: Stream, target: Any, source: Any) -> None:
        copied.append(source.size)
        original(self, target, source)

    monkeypatch.setattr(Stream, "copy", copy)
    array = ByDlpack(images(2))
    for _ in range(3):
        runner.run({"x": array})
    assert copied == [2 * 10 * 4] * 3  # the outputs
    copied.clear()
    runner.run({"x": ByDlpack(images(2), offset=4)})
    assert copied == [images(2).nbytes, 2 * 10 * 4]  # not aligned to what the runtime needs


def test_the_producers_stream_is_waited_for(runner: TrtRunner) -> None:
    array = ByDlpack(images(1))
    runner.run({"x": array})
    runner.run({"x": array})
    (handle,) = set(array.streams)
    assert handle is not None
    assert handle > 2  # a stream of the runner, neither "do not wait" nor a default one


def test_graphs_do_not_pile_up(runner: TrtRunner, script: Script) -> None:
    arrays = [ByDlpack(images(1, seed)) for seed in range(GRAPHS_KEPT + 2)]
    for array in arrays:
        for _ in range(2):
            runner.run({"x": array})
    assert script.captured == len(arrays)
    runner.run({"x": arrays[-1]})
    assert script.eager == len(arrays)  # the newest are still there
    runner.run({"x": arrays[0]})
    assert script.eager == len(arrays) + 1  # the oldest is gone


def test_a_model_that_cannot_be_captured_runs_without(
    bench: Bench, runner: TrtRunner, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    def synchronise(stream: int) -> None:
        DRIVER.cuStreamSynchronize(ctypes.c_void_p(stream))

    script.before = synchronise
    check = bench.oracle()
    for turn in range(6):
        check(images(1, turn), runner.run({"x": images(1, turn)}))
    assert counts(script)[:2] == (6, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "model.engine: no CUDA graph could be captured: " in caplog.text


def test_a_refusal_under_capture_is_no_failure(
    bench: Bench, runner: TrtRunner, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(stream: int) -> None:
        status = ctypes.c_int()
        DRIVER.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status))
        script.refuses = {"execute_async_v3"} if status.value else set()

    script.before = refuse
    check = bench.oracle()
    for turn in range(3):
        check(images(1, turn), runner.run({"x": images(1, turn)}))
    assert "it says: the reason" in caplog.text


def test_a_defect_under_capture_is_not_hidden(runner: TrtRunner, script: Script) -> None:
    runner.run({"x": images(1)})

    def fail(stream: int) -> None:
        raise KeyError("a defect")

    script.before = fail
    with pytest.raises(KeyError, match="a defect"):
        runner.run({"x": images(1)})
    script.before = None
    for _ in range(3):
        runner.run({"x": images(1)})


def test_other_threads_may_reserve_memory_during_a_capture(
    runner: TrtRunner, script: Script
) -> None:
    statuses: list[int] = []

    def reserve() -> int:
        Device()
        address = ctypes.c_uint64()
        status: int = DRIVER.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(4096))
        return status or int(DRIVER.cuMemFree_v2(address))

    def meanwhile(stream: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            statuses.append(pool.submit(reserve).result())

    script.before = meanwhile
    for _ in range(3):
        runner.run({"x": images(1)})
    assert statuses == [0, 0]
    assert counts(script) == (1, 1, 3)


@pytest.mark.parametrize("call", [TrtRunner.run, TrtRunner.run_timed, TrtRunner.run_on_device])
def test_nothing_is_handed_out_before_the_stream_is_done(
    runner: TrtRunner, monkeypatch: pytest.MonkeyPatch, call: Callable[..., object]
) -> None:
    call(runner, {"x": images(1)})
    order: list[str] = []
    for kind, name in ((Stream, "copy"), (Stream, "synchronise"), (BatchContext, "results")):
        monkeypatch.setattr(kind, name, noted(getattr(kind, name), name, order))
    call(runner, {"x": images(1)})
    end = [] if call is TrtRunner.run_on_device else ["results"]
    assert order == ["copy", "copy", "synchronise", *end]


def noted(function: Callable[..., object], name: str, order: list[str]) -> Callable[..., object]:
    def wrapped(*arguments: object) -> object:
        order.append(name)
        return function(*arguments)

    return wrapped

"""Queries that overlap on an engine: right answers, in the right order, and cells measured so."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends._cuda.device import Device, StepClock, Stream
from deploykit.core.errors import DeviceError, UsageError
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench
from tests.stand_in.test_measuring import TRTEXEC_10, TRTEXEC_11, measured

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

DRIVER = ctypes.CDLL("libcuda.so.1")


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
def test_each_query_of_a_queue_is_right(
    script: Script, tmp_path: Path, batch: int, *, cuda_graphs: bool, rtx: bool
) -> None:
    bench = fake_bench(script, tmp_path, rtx=rtx)
    check = bench.oracle()
    given = images(batch, seed=batch)
    with bench.runner(cuda_graphs=cuda_graphs) as runner:
        with runner.overlapped({"x": given}, transfers=True) as queue:
            queue.submit()
            for _ in range(8):
                queue.submit()
                steps = queue.finish()
                check(given, queue.outputs())
                durations = (steps.h2d_ms, steps.compute_ms, steps.d2h_ms, steps.enqueue_ms)
                assert all(ms is not None and ms >= 0 for ms in durations)
            queue.finish()
            check(given, queue.outputs())
        check(images(2), runner.run({"x": images(2)}))
    assert script.computed == 10
    assert script.contexts == 0


def test_without_transfers_inputs_and_outputs_stay(
    bench: Bench, runner: TrtRunner, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = runner.upload({"x": images(4)})
    with runner.overlapped(uploaded, transfers=False) as queue:
        monkeypatch.setattr(Stream, "copy", lambda *_: pytest.fail("a copy"))
        queue.submit()
        for _ in range(6):
            queue.submit()
            steps = queue.finish()
            assert steps.h2d_ms is steps.d2h_ms is None
            assert steps.compute_ms is not None
        queue.finish()
    assert script.computed == 7


@pytest.mark.parametrize(("spin", "asleep"), [(None, False), (True, False), (False, True)])
def test_a_query_is_waited_for_as_was_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, spin: bool | None, asleep: bool
) -> None:
    """The context's flag is for streams: of an event its own flag decides (cuEventSynchronize)."""
    waits: list[bool] = []
    synchronise = StepClock.synchronise

    def noted(clock: StepClock, index: int) -> None:
        event: Any = getattr(clock, "_events")[index]  # noqa: B009
        waits.append(event.is_blocking_sync)
        synchronise(clock, index)

    monkeypatch.setattr(StepClock, "synchronise", noted)
    with (
        bench.runner(spin=spin) as runner,
        runner.overlapped({"x": images(1)}, transfers=True) as queue,
    ):
        queue.submit()
        queue.finish()
    assert waits == [asleep]


def test_one_query_computes_at_a_time_and_the_next_is_queued_before(
    runner: TrtRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    hold, synchronise = StepClock.hold, StepClock.synchronise

    def holds(clock: StepClock, index: int, stream: Stream) -> None:
        done.append("waits for the computation before")
        hold(clock, index, stream)

    def waits(clock: StepClock, index: int) -> None:
        done.append("finished")
        synchronise(clock, index)

    monkeypatch.setattr(StepClock, "hold", holds)
    monkeypatch.setattr(StepClock, "synchronise", waits)
    with runner.overlapped({"x": images(1)}, transfers=True) as queue:
        queue.submit()
        for _ in range(2):
            queue.submit()
            queue.finish()
        queue.finish()
    assert done == ["waits for the computation before", "finished"] * 2 + ["finished"]


def test_a_queue_gives_its_memory_back(bench: Bench, runner: TrtRunner) -> None:
    runner.run({"x": images(1)})
    free = Device().memory_bytes()[0]
    with runner.overlapped({"x": images(2)}, transfers=True) as queue:
        queue.submit()
        queue.submit()
        assert Device().memory_bytes()[0] < free
    assert Device().memory_bytes()[0] == free


def test_bad_feeds_of_a_queue(runner: TrtRunner) -> None:
    runner.run({"x": images(1)})
    free = Device().memory_bytes()[0]
    with pytest.raises(UsageError, match="a batch of 21, its profile is 1 to 20"):
        runner.overlapped({"x": images(21)}, transfers=True)
    assert Device().memory_bytes()[0] == free


def test_a_fault_in_a_queue_breaks_the_runner(runner: TrtRunner) -> None:
    broken = "the GPU failed, and this process cannot use it any more\nit says: CUDA_ERROR_ILL"

    def fail() -> None:
        with runner.overlapped({"x": images(1)}, transfers=True) as queue:
            queue.submit()
            queue.finish()
            DRIVER.nullcuda_fault(700)
            queue.submit()

    try:
        with pytest.raises(DeviceError, match=broken):
            fail()
    finally:
        DRIVER.nullcuda_fault(0)
    with pytest.raises(DeviceError, match=broken):
        runner.run({"x": images(1)})


@pytest.mark.parametrize("switches", [TRTEXEC_10, TRTEXEC_11], ids=["transfers", "resident"])
def test_a_cell_is_measured_in_a_queue(bench: Bench, script: Script, switches: Any) -> None:
    result = measured(bench, replace(switches, queue=2))
    assert result.switches.queue == 2
    samples = result.samples
    assert len(samples) >= 12
    assert (samples.h2d_ms is not None) is switches.transfers
    begun = samples.start_s * 1e3
    ended = begun + samples.wall_ms
    assert (begun[1:] < ended[:-1]).all()  # each begins before the one before it has ended
    assert np.all(np.diff(ended) >= 0)
    apart = measured(bench, switches).samples
    begun = apart.start_s * 1e3
    assert (begun[1:] >= (begun + apart.wall_ms)[:-1] - 1e-6).all()

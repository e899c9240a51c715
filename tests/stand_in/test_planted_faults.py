"""Faults of ordering, planted into the runner one at a time: each has to be found.

On a driver whose streams work with random delays a fault shows in the outputs, in the driver's
reports, or in an error. A fault is a changed line of the runner's own code: where that code has
changed, the test says so, and the fault has to follow it.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from deploykit.backends._cuda import arrays
from deploykit.backends.trt.lane import BatchContext, Lane
from deploykit.backends.trt.runner import TrtRunner
from tests.device_arrays import Busy
from tests.runner_scenarios import images

if TYPE_CHECKING:
    from deploykit.backends._cuda.device import Stream
    from tests.runner_scenarios import Bench

pytestmark = pytest.mark.skipif(
    os.environ.get("NULLCUDA_ASYNC") != "1",
    reason="needs a driver that works asynchronously: NULLCUDA_ASYNC=1",
)
ROUNDS = 6
WRONG, REPORTED = "wrong outputs", "a report of the driver"


@dataclass(frozen=True)
class Fault:
    """Replacements in the source of ``owner.function``; each has to be found once.

    The new source may also call `busy`.
    ``shows`` is where the fault may be seen; an error is known by a part of its text.
    """

    owner: Any
    function: str
    edits: tuple[tuple[str, str], ...]
    shows: tuple[str, ...] = (WRONG, REPORTED)


def dropped(code: str) -> tuple[tuple[str, str], ...]:
    return ((code, "pass"),)


WAIT = "self._finish(batch)"
GIVE_BACK = "opened.pool.give_back(lane)"
FAULTS = {
    "no wait before the results": Fault(Lane, "run", dropped(WAIT)),
    "waits before the copy out": Fault(
        Lane, "run", ((WAIT, "pass"), ("batch.copy_out()", f"{WAIT}; batch.copy_out()"))
    ),
    "results are views of page-locked memory": Fault(
        BatchContext, "results", (("binding.array.copy()", "binding.array"),)
    ),
    "a lane is given back early": Fault(
        TrtRunner,
        "_in_lane",
        (
            # Used before, so that it has its memory and its graph: two threads that make those at
            # once end in a crash of the process.
            ("result = work(", f"{'work(lane, feeds); ' * 3}{GIVE_BACK}; result = work("),
            # Once for each call, as the pool counts its lanes when it closes.
            ("self._refuse_if_broken()  # by", "pass  #"),
            (f"{GIVE_BACK}\n        raise", "raise"),
            ("opened.pool.discard(lane)", "pass"),
            (f"{GIVE_BACK}\n    return result", "return result"),
        ),
        (WRONG, REPORTED, "one context in two threads", "CUDA_ERROR", "NoneType"),
    ),
    "buffers are reserved on a stream that nobody waits for": Fault(
        Lane,
        "_slot",
        (("reserve(size, self._stream)", "reserve(size, busy(self._device.new_stream()))"),),
    ),
    "outputs on the GPU are not copied": Fault(
        Lane, "_copies", (("self._stream.copy(memory, binding.device)", "memory = binding.device"),)
    ),
    "a producer is not waited for": Fault(
        arrays, "_gpu_view", (("stream_ptr=stream.handle", "stream_ptr=-1"),)
    ),
    "outputs on the GPU are handed out unfinished": Fault(Lane, "run_on_device", dropped(WAIT)),
    "uploads are handed out unfinished": Fault(
        Lane, "upload", dropped("self._stream.synchronise()")
    ),
    "a time is read before its events": Fault(
        Lane, "time_on_device", dropped(WAIT), ("events have not completed",)
    ),
}


def delay(stream: Any) -> None:
    """The driver pauses before each of these."""
    for _ in range(6):
        stream.record()


def busy(stream: Stream) -> Stream:
    delay(stream.core)
    return stream


def plant(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    function = vars(fault.owner)[fault.function]
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in fault.edits:
        found = source.count(old)
        assert found == 1, f"{fault.function} has {found} times {old!r}: plant the fault elsewhere"
        source = source.replace(old, new)
    scope = {**function.__globals__, "busy": busy}
    code = compile(f"from __future__ import annotations\n{source}", __file__, "exec")
    exec(code, scope)  # noqa: S102 - the project's own source
    monkeypatch.setattr(fault.owner, fault.function, scope[fault.function])


def reports() -> int:
    return int(ctypes.CDLL("libcuda.so.1").nullcuda_races())


def use(bench: Bench) -> None:
    """Everything that a runner does, each answer checked."""
    check = bench.oracle()
    producer = Busy(images(2), delay)
    with bench.runner() as runner:
        kept: list[tuple[Any, dict[str, Any]]] = []
        for seed in range(ROUNDS):
            given = images(1 + seed % 2, seed)
            answer = runner.run({"x": given})
            check(given, answer)
            on_gpu = runner.run_on_device({"x": given})
            check(given, {"y": on_gpu["y"].numpy()})
            kept += [(given, answer), (given, on_gpu)]
            producer.write(images(2, seed))
            check(images(2, seed), runner.run({"x": producer}))
            uploaded = runner.upload({"x": given})
            assert (uploaded["x"].numpy() == given).all(), WRONG
            runner.time_on_device(uploaded)
            check(given, runner.run(uploaded))
            check(given, runner.run_timed({"x": given})[0])
        for given, answer in kept:
            check(given, answer)


def use_in_threads(bench: Bench) -> None:
    check = bench.oracle()

    def work(seed: int) -> None:
        given = images(2, seed)
        check(given, runner.run({"x": given}))

    with bench.runner() as runner, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(4 * ROUNDS)))


def use_new_lanes(bench: Bench) -> None:
    check = bench.oracle()
    for seed in range(2 * ROUNDS):
        with bench.runner() as runner:
            check(images(1, seed), runner.run({"x": images(1, seed)}))


def symptom(bench: Bench) -> str:
    """How it shows that something is wrong with the runner; empty if nothing is."""
    before = reports()
    try:
        for work in (use_in_threads, use_new_lanes, use):
            work(bench)
    except (NameError, AttributeError, SyntaxError):
        raise  # of a fault that was planted badly
    except Exception as error:
        said = str(error)
        return f"{WRONG}: {said}" if "Not equal to tolerance" in said else said
    return REPORTED if reports() > before else ""


def test_without_a_fault_nothing_is_found(bench: Bench) -> None:
    assert symptom(bench) == ""


@pytest.mark.timeout(120)  # where a fault ends in a deadlock, say so soon
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fault = FAULTS[name]
    plant(fault, monkeypatch)
    seen = symptom(bench)
    assert any(part in seen for part in fault.shows), seen or "nobody saw it"


def test_a_fault_that_has_no_place_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in ("this was never there", "self"):
        with pytest.raises(AssertionError, match=r"times .*: plant the fault elsewhere"):
            plant(Fault(Lane, "run", dropped(code)), monkeypatch)

"""Execution contexts of a lane: each graph has one to itself, and there are not many."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends._cuda.device import StepClock
from deploykit.backends.trt.lane import CONTEXTS_KEPT, GRAPHS_KEPT, Slot
from tests.device_arrays import ByDlpack
from tests.fakes.execution_fake import ExecutionContext
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench
from tests.stand_in.test_failures import two_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench


class Witness:
    """Sees what is done to each context: it is captured, enqueued plainly, or bound anew."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, ExecutionContext]] = []  # alive, so that none has another's id
        bind, execute = ExecutionContext.set_tensor_address, ExecutionContext.execute_async_v3

        def set_tensor_address(context: ExecutionContext, name: str, memory: int) -> bool:
            self.seen.append(("bound", context))
            return bind(context, name, memory)

        def execute_async_v3(context: ExecutionContext, stream: int) -> bool:
            kind = "captured" if context._is_capturing(stream) else "enqueued"
            self.seen.append((kind, context))
            return execute(context, stream)

        patch.setattr(ExecutionContext, "set_tensor_address", set_tensor_address)
        patch.setattr(ExecutionContext, "execute_async_v3", execute_async_v3)

    def of(self, context: ExecutionContext) -> list[str]:
        return [kind for kind, one in self.seen if one is context]

    def captured(self) -> list[ExecutionContext]:
        return [context for kind, context in self.seen if kind == "captured"]


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    return Witness(monkeypatch)


def test_each_graph_has_a_context_to_itself(
    bench: Bench, runner: TrtRunner, witness: Witness
) -> None:
    check = bench.oracle()
    arrays = [ByDlpack(images(2, seed)) for seed in range(GRAPHS_KEPT - 1)]  # and the host's
    for _ in range(4):
        for seed, array in enumerate(arrays):
            check(images(2, seed), runner.run({"x": array}))
        check(images(2, 9), runner.run({"x": images(2, 9)}))
        check(images(3, 8), runner.run({"x": images(3, 8)}))
    captured = witness.captured()
    assert len(captured) >= GRAPHS_KEPT
    assert max(Counter(map(id, captured)).values()) == 1
    for context in captured:
        done = witness.of(context)
        assert done[-1] == "captured"  # afterwards it is neither run nor bound elsewhere
        assert "enqueued" in done  # it was warm


def test_a_warm_context_is_captured_even_if_a_graph_took_the_last_one(
    bench: Bench, runner: TrtRunner, script: Script
) -> None:
    check = bench.oracle()
    first, second = ByDlpack(images(1, 1)), ByDlpack(images(1, 2))
    counts = []
    for seed, array in ((1, first), (2, second), (1, first), (2, second), (2, second), (2, second)):
        check(images(1, seed), runner.run({"x": array}))
        counts.append((script.eager, script.captured))
    # The first one's capture takes the context: the second's new one runs once before its own.
    assert counts == [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (3, 2)]


def test_contexts_of_all_shapes_and_addresses_are_bounded(
    bench: Bench, runner: TrtRunner, script: Script
) -> None:
    check = bench.oracle()
    arrays = {
        batch: [ByDlpack(images(batch, seed)) for seed in range(GRAPHS_KEPT)]
        for batch in range(1, 9)
    }
    for _ in range(2):
        for batch, given in arrays.items():
            for _ in range(3):
                for seed, array in enumerate(given):
                    check(images(batch, seed), runner.run({"x": array}))
                    assert script.contexts <= CONTEXTS_KEPT
    assert script.contexts == CONTEXTS_KEPT
    runner.close()
    assert script.contexts == 0


def test_the_least_recently_used_context_goes(
    runner: TrtRunner, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in range(1, CONTEXTS_KEPT + 1):
        for _ in range(2):
            runner.run({"x": images(batch)})
    runner.run({"x": images(1)})  # used again: the one of batch 2 is the oldest now
    captured = script.captured
    runner.run({"x": images(CONTEXTS_KEPT + 1)})
    for batch in (1, 3, CONTEXTS_KEPT):
        runner.run({"x": images(batch)})
    assert (script.captured, script.contexts) == (captured, CONTEXTS_KEPT)
    eager = script.eager
    runner.run({"x": images(2)})
    assert script.eager == eager + 1


def at_first_event(patch: pytest.MonkeyPatch, slots: list[Slot]) -> list[list[bytes]]:
    """What lies in page-locked memory of the inputs whenever the first event is recorded."""
    seen: list[list[bytes]] = []
    mark = StepClock.mark

    def spy(clock: StepClock, index: int, stream: Any) -> None:
        if index == 0:
            seen.append([slot.host.bytes.tobytes() for slot in slots])
        mark(clock, index, stream)

    patch.setattr(StepClock, "mark", spy)
    return seen


CHANNELS_LAST = images(2).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
FORMS = {
    "contiguous": images(2),
    "channels last": CHANNELS_LAST,
    "every other row": np.repeat(images(2), 2, axis=0)[::2],
    "reversed": images(2)[:, :, ::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_what_the_host_stages_is_in_no_transfer(
    runner: TrtRunner, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    given = FORMS[form]
    runner.run({"x": np.zeros_like(given)})
    assert runner._opened is not None
    (lane,) = runner._opened.pool._idle
    seen = at_first_event(monkeypatch, lane._slots[:1])
    _, times = runner.run_timed({"x": given})
    (((staged,)),) = seen
    assert staged.startswith(np.ascontiguousarray(given).tobytes())
    assert times.h2d_ms is not None


def test_all_inputs_are_staged_before_the_first_is_copied(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = images(2, 1), images(2, 2)
    with two_inputs(script, tmp_path) as runner:
        runner.run({"x": b, "z": a})
        assert runner._opened is not None
        (lane,) = runner._opened.pool._idle
        seen = at_first_event(monkeypatch, lane._slots[:2])
        outputs, _ = runner.run_timed({"x": a, "z": b})
    np.testing.assert_array_equal(outputs["y"], a + b)
    assert seen == [[a.tobytes(), b.tobytes()]]


def test_kernels_are_compiled_for_a_shape_before_it_is_computed(
    script: Script, tmp_path: Path
) -> None:
    with fake_bench(script, tmp_path, rtx=True).runner() as runner:
        runner.run({"x": images(1)})
        assert runner._opened is not None
        config: Any = runner._opened.engine._config
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"


@pytest.mark.parametrize("call", ["run", "run_timed", "run_on_device", "time_on_device"])
def test_the_runtime_cache_is_written_after_the_first_call_of_each_shape(
    script: Script, tmp_path: Path, call: str
) -> None:
    cache = tmp_path / "cache"
    with fake_bench(script, tmp_path, rtx=True).runner(cache=cache) as runner:
        for batch in (1, 3, 2):
            script.cache = f"kernels of this GPU for {batch}".encode()
            for turn in range(3):
                before = cache.stat().st_mtime_ns if cache.exists() else None
                getattr(runner, call)({"x": images(batch)})
                assert cache.read_bytes() == script.cache
                assert turn == 0 or cache.stat().st_mtime_ns == before

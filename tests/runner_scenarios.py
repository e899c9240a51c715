"""What a runner of engines has to do on any GPU: collected on the stand-in and on a real one.

A test class inherits from `RunnerScenarios`, and a fixture ``bench`` beside it says which engine
on which runtime.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest

from deploykit.backends import EngineOptions
from deploykit.backends._cuda.device import Device
from deploykit.backends.trt.lane import SIZES_KEPT
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core import environment
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import TensorSpec
from tests.device_arrays import ByDlpack, ByInterface
from tests.unit.backends.trt.small_models import IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.backends import Compiler

PROFILE = ShapeProfile(1, 4, SIZES_KEPT + 4)
THREADS = 32


@dataclass(frozen=True)
class Bench:
    """An engine of the small convolution, and its ONNX file for the right answers.

    ``tolerance`` is relative to the largest output. ``leak_bytes`` is what may stay reserved after
    a runner was closed that was not reserved after the first one.
    """

    plan: Path
    onnx: Path
    compiler: Compiler
    tolerance: float
    leak_bytes: int

    def runner(self, **options: Any) -> TrtRunner:
        return TrtRunner(self.plan, self.compiler, PROFILE, EngineOptions(**options))

    def oracle(self) -> Callable[[NDArray[Any], dict[str, Any]], None]:
        """Compares outputs, on the host or on the GPU, with onnxruntime's on the CPU."""
        session = ort.InferenceSession(str(self.onnx), providers=["CPUExecutionProvider"])

        def check(images: NDArray[Any], outputs: dict[str, Any]) -> None:
            expected = session.run(None, {"x": np.ascontiguousarray(images)})[0]
            assert list(outputs) == ["y"]
            got = outputs["y"]
            got = got if isinstance(got, np.ndarray) else got.numpy()
            assert got.dtype == expected.dtype
            limit = self.tolerance * float(np.abs(expected).max())
            np.testing.assert_allclose(got, expected, rtol=0, atol=limit)

        return check


def images(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, *IMAGE)).astype(np.float32)


BAD_FEEDS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "name": (lambda: {"z": images(1)}, r"was fed \['z'\], it takes \['x'\]"),
    "nothing": (dict, r"was fed \[\], it takes \['x'\]"),
    "one too many": (lambda: {"x": images(1), "z": images(1)}, r"it takes \['x'\]"),
    "type": (lambda: {"x": images(1).astype(np.float64)}, "fed float64 .* it takes float32"),
    "shape": (lambda: {"x": images(1)[:, :4]}, r"fed float32 \(1, 4, 16, 16\), it takes"),
    "layout": (lambda: {"x": images(1).transpose(0, 2, 3, 1)}, r"\(1, 16, 16, 8\), it takes"),
    "no batch": (lambda: {"x": images(1)[0]}, r"fed float32 \(8, 16, 16\)"),
    "empty": (lambda: {"x": images(0)}, "a batch of 0, its profile is 1 to 20"),
    "too large": (lambda: {"x": images(21)}, "a batch of 21, its profile is 1 to 20"),
    "a list": (lambda: {"x": images(1).tolist()}, "fed a list\nit takes a numpy array"),
    "type on the GPU": (
        lambda: {"x": ByDlpack(images(1).astype(np.float16))},
        "fed float16 .* it takes float32",
    ),
    "shape on the GPU": (
        lambda: {"x": ByInterface(images(1), shape=(1, 16, 16, 8))},
        r"\(1, 16, 16, 8\), it takes",
    ),
    "strides on the GPU": (
        lambda: {"x": ByInterface(images(1), strides=(8192, 4, 512, 32))},
        r"strides \(2048, 1, 128, 8\) .*\n.*make a contiguous copy",
    ),
    "byte order on the GPU": (
        lambda: {"x": ByInterface(images(1), typestr=">f4")},
        "type >f4\n.*byte order",
    ),
    "an old interface": (lambda: {"x": ByInterface(images(1), version=2)}, "v3 or above"),
}


class RunnerScenarios:
    @pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "eager"])
    def test_every_batch_of_the_profile_is_right(self, bench: Bench, cuda_graphs: bool) -> None:
        check = bench.oracle()
        with bench.runner(cuda_graphs=cuda_graphs) as runner:
            for batch in range(PROFILE.min_batch, PROFILE.max_batch + 1):
                for turn in range(3):  # runs plainly, is captured, is replayed
                    given = images(batch, seed=turn)
                    check(given, runner.run({"x": given}))

    def test_batches_by_turns_are_right(self, bench: Bench) -> None:
        check = bench.oracle()
        with bench.runner() as runner:
            for turn, batch in enumerate([1, 3, 1, 3, 8, 1, 3, 1, 8, 8]):
                given = images(batch, seed=turn)
                check(given, runner.run({"x": given}))

    def test_each_of_32_threads_gets_its_own_answer(self, bench: Bench) -> None:
        check = bench.oracle()
        together = Barrier(THREADS, timeout=60)

        def work(seed: int) -> None:
            together.wait()
            for turn in range(6):
                given = images(1 + seed % 5, seed=100 * seed + turn)
                check(given, runner.run({"x": given}))

        with bench.runner() as runner, ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(work, seed) for seed in range(THREADS)]:
                done.result()

    def test_what_it_takes_and_gives_is_read_from_the_engine(self, bench: Bench) -> None:
        with bench.runner() as runner:
            assert runner.inputs == (TensorSpec("x", "float32", ("batch", *IMAGE)),)
            assert runner.outputs == (TensorSpec("y", "float32", ("batch", 10)),)

    @pytest.mark.parametrize("kind", [ByDlpack, ByInterface])
    def test_inputs_on_the_gpu(self, bench: Bench, kind: Any) -> None:
        check = bench.oracle()
        given = [images(2, seed) for seed in range(3)]
        on_gpu = [kind(array) for array in given]
        with bench.runner() as runner:
            for index in [0, 1, 0, 1, 2, 0, 1, 2]:
                check(given[index], runner.run({"x": on_gpu[index]}))
            check(given[0], runner.run({"x": given[0]}))  # and back to the host

    def test_new_values_at_the_same_address(self, bench: Bench) -> None:
        check = bench.oracle()
        on_gpu = ByDlpack(images(2))
        with bench.runner() as runner:
            for seed in range(4):
                on_gpu.write(images(2, seed))
                check(images(2, seed), runner.run({"x": on_gpu}))

    def test_an_input_at_an_odd_address(self, bench: Bench) -> None:
        check = bench.oracle()
        on_gpu = ByDlpack(images(2), offset=64)
        with bench.runner() as runner:
            for _ in range(3):
                check(images(2), runner.run({"x": on_gpu}))

    def test_outputs_that_stay_on_the_gpu_outlive_calls_and_runner(self, bench: Bench) -> None:
        check = bench.oracle()
        with bench.runner() as runner:
            kept = [runner.run_on_device({"x": images(2, seed)}) for seed in range(4)]
            by_dlpack = [ByDlpackOnly(outputs["y"]) for outputs in kept]
        for seed, outputs in enumerate(kept):
            assert outputs["y"].shape == (2, 10)
            assert outputs["y"].dtype == np.float32
            check(images(2, seed), outputs)
        assert [array.__dlpack_device__() for array in by_dlpack] == [(2, 0)] * 4

    def test_an_output_is_an_input_without_a_copy_in_between(self, bench: Bench) -> None:
        with bench.runner() as runner:
            logits = runner.run_on_device({"x": images(1)})["y"]
            with pytest.raises(UsageError, match=r"fed float32 \(1, 10\), it takes"):
                runner.run({"x": logits})
            interface = logits.__cuda_array_interface__
            assert interface["shape"] == (1, 10)
            assert interface["data"][0] % 256 == 0

    def test_layouts_of_the_host(self, bench: Bench) -> None:
        check = bench.oracle()
        odd = np.repeat(images(4), 2, axis=0)[::2].transpose(0, 1, 3, 2)
        fixed = images(4)
        fixed.flags.writeable = False
        with bench.runner() as runner:
            check(odd, runner.run({"x": odd}))
            check(fixed, runner.run({"x": fixed}))
            check(images(4), runner.run({"x": ByDlpackOnly(images(4))}))

    def test_steps_are_timed(self, bench: Bench) -> None:
        check = bench.oracle()
        on_gpu = ByDlpack(images(2))
        with bench.runner() as runner:
            for _ in range(3):
                outputs, times = runner.run_timed({"x": images(2)})
                check(images(2), outputs)
                steps = [times.h2d_ms, times.compute_ms, times.d2h_ms]
                assert all(step is not None and step >= 0 for step in steps)
                assert sum(step or 0 for step in steps) <= times.wall_ms
                assert 0 < (times.enqueue_ms or 0) < times.wall_ms
            assert runner.run_timed({"x": on_gpu})[1].h2d_ms is None

    @pytest.mark.parametrize("case", BAD_FEEDS)
    def test_bad_feeds(self, bench: Bench, case: str) -> None:
        make, said = BAD_FEEDS[case]
        check = bench.oracle()
        with bench.runner() as runner:
            with pytest.raises(UsageError, match=said):
                runner.run(make())
            check(images(1), runner.run({"x": images(1)}))  # it goes on

    def test_close_twice_and_use_after_close(self, bench: Bench) -> None:
        runner = bench.runner()
        runner.close()  # never opened
        for use in (lambda: runner.run({"x": images(1)}), lambda: runner.inputs):
            with pytest.raises(UsageError, match=r"is closed; open a new one"):
                use()
        with bench.runner() as runner:
            runner.run({"x": images(1)})
        runner.close()
        with pytest.raises(UsageError, match=r"is closed; open a new one"):
            runner.run_on_device({"x": images(1)})

    def test_closing_waits_for_the_calls_that_run(self, bench: Bench) -> None:
        check = bench.oracle()
        started = Barrier(9, timeout=60)

        def work(seed: int) -> int:
            for turn in range(1000):
                try:
                    check(images(1, seed), runner.run({"x": images(1, seed)}))
                except UsageError as error:
                    assert "is closed" in str(error)  # noqa: PT017 - an answer or this
                    return turn
                if turn == 0:
                    started.wait()
            return -1

        runner = bench.runner()
        with ThreadPoolExecutor(8) as pool:
            turns = [pool.submit(work, seed) for seed in range(8)]
            started.wait()
            runner.close()
            assert all(turn.result() > 0 for turn in turns)

    def test_closing_gives_everything_back(self, bench: Bench) -> None:
        free = []
        for _ in range(4):
            with bench.runner() as runner:
                for batch in (1, 1, 1, 5, 5):
                    runner.run({"x": images(batch)})
                    runner.run_on_device({"x": ByDlpack(images(batch))})
                    runner.run_timed({"x": images(batch)})
            free.append(Device().memory_bytes()[0])
        assert free[0] - free[-1] <= bench.leak_bytes
        # What a pool keeps for later is free to nobody but this process.
        pool = environment.require("cuda.core").Device(0).memory_resource
        assert pool.attributes.reserved_mem_current <= bench.leak_bytes

    def test_a_fork_after_loading_is_told(self, bench: Bench) -> None:
        with bench.runner() as runner:
            runner.run({"x": images(1)})
            child = os.fork()
            if child == 0:
                os._exit(_in_child(runner))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            bench.oracle()(images(1), runner.run({"x": images(1)}))


def _in_child(runner: TrtRunner) -> int:
    """0 if the child is told to load for itself; it must not end as a test would."""
    assert runner._opened is not None
    runner._opened.pool.close = lambda: os._exit(3)  # type: ignore[method-assign]  # not the child's
    try:
        runner.run({"x": images(1)})
    except UsageError as error:
        runner.close()
        return 0 if "load it after the fork, in each process" in str(error) else 1
    return 2


class ByDlpackOnly:
    """Any array with nothing but DLPack."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._array.__dlpack_device__()
        return int(kind), int(index)

    def __dlpack__(self, **options: Any) -> object:
        capsule: object = self._array.__dlpack__(**options)
        return capsule

"""Memory and contexts of a runner are bounded while it lives, and gone after it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from deploykit.backends._cuda.device import Device
from deploykit.backends.trt.lane import SIZES_KEPT, BatchContext
from deploykit.backends.trt.runner import LANES
from tests.runner_scenarios import PROFILE, images

if TYPE_CHECKING:
    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script


def test_contexts_and_lanes_are_bounded(runner: TrtRunner, script: Script) -> None:
    for batch in range(1, PROFILE.max_batch + 1):
        runner.run({"x": images(batch)})
        assert script.contexts <= SIZES_KEPT
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda _: runner.run({"x": images(PROFILE.max_batch)}), range(200)))
    assert script.contexts <= SIZES_KEPT + LANES - 1
    runner.close()
    gc.collect()
    assert script.contexts == 0


def test_memory_of_a_runner_does_not_depend_on_what_it_is_fed(runner: TrtRunner) -> None:
    runner.run({"x": images(1)})
    free = Device().memory_bytes()[0]
    for batch in range(1, PROFILE.max_batch + 1):
        for _ in range(3):
            runner.run({"x": images(batch)})
    assert Device().memory_bytes()[0] == free


def test_memory_of_an_output_goes_with_its_last_reader(runner: TrtRunner) -> None:
    runner.run_on_device({"x": images(1)})
    gc.collect()
    free = Device().memory_bytes()[0]
    output = runner.run_on_device({"x": images(1)})["y"]
    assert repr(output) == "DeviceArray(shape=(1, 10), dtype=float32)"
    capsule = output.__dlpack__(stream=1, max_version=(1, 0))
    del output
    gc.collect()
    assert Device().memory_bytes()[0] < free
    del capsule
    gc.collect()
    assert Device().memory_bytes()[0] == free


def test_a_context_has_no_reference_to_itself(runner: TrtRunner, script: Script) -> None:
    """Contexts go when the runner is closed, not when a collector comes by."""
    runner.run({"x": images(1)})
    gc.disable()
    try:
        runner.close()
        assert script.contexts == 0
        assert not [thing for thing in gc.get_objects() if isinstance(thing, BatchContext)]
    finally:
        gc.enable()


def test_the_last_reader_of_an_output_may_be_in_any_thread(runner: TrtRunner) -> None:
    runner.run_on_device({"x": images(1)})
    gc.collect()
    free = Device().memory_bytes()[0]
    outputs = [runner.run_on_device({"x": images(1)})]
    assert Device().memory_bytes()[0] < free
    with ThreadPoolExecutor(1) as pool:  # where no GPU is current
        pool.submit(outputs.clear).result()
    assert Device().memory_bytes()[0] == free

"""Engines whose height and width are open: every size of the profile, and none beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from deploykit.backends import EngineOptions
from deploykit.backends._cuda.device import Device
from deploykit.backends.trt.lane import SIZES_KEPT
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from tests.device_arrays import ByDlpack
from tests.stand_in.benches import fake_bench
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

PROFILE = ShapeProfile(1, 2, 4, SizeRange(8, 16, 24), SizeRange(12, 16, 20))
SIZES = [(1, 16, 16), (2, 8, 12), (4, 24, 20), (1, 20, 16), (1, 16, 20), (4, 8, 20), (3, 9, 13)]


def images(batch: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (batch, 8, height, width)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def sized(script: Script, tmp_path: Path) -> Bench:
    bench = fake_bench(script, tmp_path)
    small_models.convolution(bench.plan, shape=("batch", 8, "height", "width"))
    return bench


@pytest.fixture
def opened(sized: Bench) -> Iterator[TrtRunner]:
    with TrtRunner(sized.plan, sized.compiler, PROFILE) as runner:
        yield runner


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "eager"])
def test_every_size_by_turns_is_right(sized: Bench, script: Script, cuda_graphs: bool) -> None:
    check = sized.oracle()
    with TrtRunner(
        sized.plan, sized.compiler, PROFILE, EngineOptions(cuda_graphs=cuda_graphs)
    ) as runner:
        for turn in range(3):  # runs plainly, is captured, is replayed
            for size in SIZES:
                given = images(*size, seed=turn)
                check(given, runner.run({"x": given}))
    # One graph for each shape: two that differ in height or width only are two.
    assert script.captured == (len(SIZES) if cuda_graphs else 0)


def test_inputs_and_outputs_on_the_gpu(sized: Bench, opened: TrtRunner) -> None:
    check = sized.oracle()
    on_gpu = {size: ByDlpack(images(*size)) for size in SIZES}
    for _ in range(3):
        for size, given in on_gpu.items():
            check(images(*size), opened.run({"x": given}))
            check(images(*size), opened.run_on_device({"x": given}))


def test_what_the_engine_says_it_takes(opened: TrtRunner) -> None:
    assert opened.inputs == (TensorSpec("x", "float32", ("batch", 8, "height", "width")),)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((1, 7, 16), "fed images of height 7, its profile is 8 to 24\n.* another --height MIN"),
        ((1, 25, 16), "fed images of height 25, its profile is 8 to 24"),
        ((1, 16, 11), "fed images of width 11, its profile is 12 to 20\n.* another --width MIN"),
        ((1, 16, 21), "fed images of width 21, its profile is 12 to 20"),
        ((5, 16, 16), "fed a batch of 5, its profile is 1 to 4"),
    ],
)
def test_a_size_outside_the_profile(
    sized: Bench, opened: TrtRunner, size: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        opened.run({"x": images(*size)})
    sized.oracle()(images(1, 16, 16), opened.run({"x": images(1, 16, 16)}))  # it goes on


def test_one_open_axis(sized: Bench) -> None:
    small_models.convolution(sized.plan, shape=("batch", 8, "height", 16))
    check = sized.oracle()
    with TrtRunner(sized.plan, sized.compiler, replace(PROFILE, width=None)) as runner:
        for height in (8, 24, 9):
            check(images(2, height, 16), runner.run({"x": images(2, height, 16)}))
        with pytest.raises(UsageError, match="it takes float32"):
            runner.run({"x": images(2, 8, 12)})


def test_memory_is_for_the_largest_image_and_contexts_are_bounded(
    opened: TrtRunner, script: Script
) -> None:
    opened.run({"x": images(1, 8, 12)})
    free = Device().memory_bytes()[0]
    for height in range(8, 25):
        for width in (12, 20):
            opened.run({"x": images(4, height, width)})
            assert script.contexts <= SIZES_KEPT
    assert Device().memory_bytes()[0] == free


def with_maps(path: Path) -> Path:
    """The small convolution with its feature maps as a second output."""
    small_models.convolution(path, shape=("batch", 8, "height", "width"))
    model = onnx.load(path)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ("batch", 16, "h", "w"))
    )
    onnx.save(model, path)
    return path


def test_outputs_that_grow_with_the_image(sized: Bench) -> None:
    with_maps(sized.plan)
    with TrtRunner(sized.plan, sized.compiler, PROFILE) as runner:
        assert runner.outputs[1] == TensorSpec("c", "float32", ("batch", 16, "c_2", "c_3"))
        for size in (*SIZES, (4, 24, 20)):
            outputs = runner.run({"x": images(*size)})
            assert outputs["c"].shape == (size[0], 16, *size[1:])
            assert outputs["y"].shape == (size[0], 10)


@pytest.mark.parametrize("method", ["set_input_shape", "infer_shapes", "all shapes"])
def test_sizes_of_such_outputs_that_the_runtime_does_not_tell(
    sized: Bench, script: Script, method: str
) -> None:
    with_maps(sized.plan)
    script.refuses.add(method)
    runner = TrtRunner(sized.plan, sized.compiler, PROFILE)
    said = "refuses the shape|cannot infer the shapes|lacks the shapes of x"
    with runner, pytest.raises(DeviceError, match=said):
        runner.run({"x": images(1, 16, 16)})

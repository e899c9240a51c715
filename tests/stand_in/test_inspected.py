"""What a runner says of its engine's layers, for the shapes that it runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import InspectedRunner, LayerConversion
from deploykit.backends.trt.runner import ResidentRunner
from deploykit.core.errors import DataError, DeviceError, UsageError
from tests.unit.backends.trt.small_models import IMAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.backends.trt.runner import TrtRunner
    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

NAME = "Reformatting CopyNode for Input Tensor 0 to conv"
ANSWER = {
    "Layers": [
        {
            "Name": NAME,
            "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "r", "Format/Datatype": "Row major Int8 format"}],
        },
        {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Name": "r"}]},
    ]
}


def images(batch: int) -> NDArray[np.float32]:
    return np.ones((batch, *IMAGE), np.float32)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_layers_are_those_of_the_shape_that_runs(
    bench: Bench, runner: TrtRunner, script: Script, batch: int
) -> None:
    script.layers = json.dumps(ANSWER)
    check, given = bench.oracle(), images(batch)
    for _ in range(3):  # runs plainly, is captured, is replayed
        check(given, runner.run({"x": given}))
    found = runner.conversions({"x": given})
    assert found == (LayerConversion("reformat", NAME, "conv", "FP32", "INT8", at_border=True),)
    assert script.inspected == [{"x": (batch, *IMAGE)}]
    check(given, runner.run({"x": given}))


def test_what_stays_on_the_gpu_is_inspected_too(runner: TrtRunner, script: Script) -> None:
    resident = ResidentRunner(runner)
    assert isinstance(resident, InspectedRunner)
    assert resident.conversions(resident.upload({"x": images(2)})) == ()
    assert script.inspected == [{"x": (2, *IMAGE)}]


def test_a_runtime_that_says_nothing(runner: TrtRunner, script: Script) -> None:
    script.refuses.add("create_engine_inspector")
    with pytest.raises(DeviceError, match="makes no inspector of its layers\nit says: the reason"):
        runner.conversions({"x": images(1)})
    script.refuses.clear()
    script.layers = "no layers"
    with pytest.raises(DataError, match="the engine's inspector answers 'no layers'"):
        runner.conversions({"x": images(1)})
    assert runner.run({"x": images(1)})


def test_feeds_are_checked(runner: TrtRunner) -> None:
    with pytest.raises(UsageError, match="'x'"):
        runner.conversions({"y": images(1)})

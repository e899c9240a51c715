"""Engines of several optimisation profiles: each batch runs on the narrowest that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.backends import EngineOptions
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.errors import DeviceError, UsageError
from deploykit.core.sizes import ShapeProfile
from tests.device_arrays import ByDlpack
from tests.unit.backends.trt import small_models

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tests.fakes.runtime_fake import Script
    from tests.runner_scenarios import Bench

PROFILE = ShapeProfile.of([ShapeProfile(1, 1, 1), ShapeProfile(4, 8, 16), ShapeProfile(4, 4, 4)])
PLACES = {1: 0, 4: 2, 5: 1, 16: 1}


def images(batch: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (batch, *small_models.IMAGE)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True)
def compiled(script: Script) -> None:
    script.profiles = [
        {"x": tuple((batch, *small_models.IMAGE) for batch in sizes)}
        for sizes in ((1, 1, 1), (4, 8, 16), (4, 4, 4))
    ]


@pytest.fixture
def opened(bench: Bench) -> Iterator[TrtRunner]:
    with TrtRunner(bench.plan, bench.compiler, PROFILE) as runner:
        yield runner


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "eager"])
def test_every_batch_by_turns_is_right(bench: Bench, script: Script, cuda_graphs: bool) -> None:
    check = bench.oracle()
    options = EngineOptions(cuda_graphs=cuda_graphs)
    with TrtRunner(bench.plan, bench.compiler, PROFILE, options) as runner:
        for turn in range(3):  # runs plainly, is captured, is replayed
            for batch in PLACES:
                given = images(batch, seed=turn)
                check(given, runner.run({"x": given}))
    assert set(script.chosen) == set(PLACES.values())


@pytest.mark.parametrize(("batch", "place"), PLACES.items())
def test_a_batch_runs_on_the_narrowest(
    opened: TrtRunner, script: Script, batch: int, place: int
) -> None:
    script.chosen.clear()
    opened.run({"x": images(batch)})
    assert set(script.chosen) == {place}
    script.chosen.clear()
    opened.run({"x": images(batch)})
    assert set(script.chosen) <= {place}


@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_between_profiles_is_refused_and_the_next_runs(
    bench: Bench, opened: TrtRunner, batch: int
) -> None:
    words = r"and none of its profiles has that: batch 1; batch 4,8,16; batch 4\nsplit"
    for given in (images(batch), ByDlpack(images(batch))):
        with pytest.raises(UsageError, match=words):
            opened.run({"x": given})
    check = bench.oracle()
    check(images(4), opened.run({"x": images(4)}))


def test_a_batch_beyond_all_of_them(opened: TrtRunner) -> None:
    with pytest.raises(UsageError, match="fed a batch of 17, its profile is 1 to 16"):
        opened.run({"x": images(17)})


def test_inputs_and_outputs_on_the_gpu(bench: Bench, opened: TrtRunner) -> None:
    check = bench.oracle()
    for _ in range(3):
        for batch in PLACES:
            given = images(batch)
            check(given, opened.run_on_device({"x": ByDlpack(given)}))


def test_a_profile_that_the_runtime_refuses(bench: Bench, script: Script) -> None:
    script.refuses = {"set_optimization_profile_async"}
    words = "refuses its profile 1\nit says: the reason"
    with (
        TrtRunner(bench.plan, bench.compiler, PROFILE) as runner,
        pytest.raises(DeviceError, match=words),
    ):
        runner.run({"x": images(8)})


def test_an_engine_of_one_profile_is_not_told_of_any(bench: Bench, script: Script) -> None:
    script.profiles = []
    check = bench.oracle()
    with TrtRunner(bench.plan, bench.compiler, ShapeProfile(1, 8, 16)) as runner:
        check(images(3), runner.run({"x": images(3)}))
    assert script.chosen == []

"""Models whose height and width are open, from `load` to the batcher."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import deploykit
from deploykit.core.errors import UsageError
from deploykit.core.sizes import ShapeProfile, SizeRange
from deploykit.core.specs import TensorSpec
from deploykit.heads.multiclass import BatchComparison
from deploykit.runtime.inputs import Inputs
from deploykit.runtime.loading import load
from tests.bundles import SIZE, colours_of, engine_record, write_bundle
from tests.fakes.engine_fake import FakeMachine, OnGpu
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.runtime.classifier import Classifier

OPEN = "height, width"
PROFILE = ShapeProfile(1, 2, 4, SizeRange(6, 8, 12), SizeRange(8, 8, 16))
SPEC = TensorSpec("input", "float32", ("N", 3, "s0", "s1"))


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine(image=("height", "width"))


@pytest.fixture
def on_engine(tmp_path: Path, machine: FakeMachine) -> Iterator[Classifier]:
    folder = write_bundle(tmp_path / "colours", engine_record(profile=PROFILE), image=OPEN)
    with load(folder, device="cuda", machine=machine()) as model:
        yield model


@pytest.fixture
def on_cpu(tmp_path: Path) -> Iterator[Classifier]:
    with load(write_bundle(tmp_path / "colours", image=OPEN), device="cpu") as model:
        yield model


def fed(batch: Any, profile: ShapeProfile | None = None) -> Any:
    return Inputs((SPEC,), takes_gpu_arrays=True, profile=profile).feeds(batch)[0]["input"]


@pytest.mark.parametrize("size", [(1, 1), (6, 16), (12, 8), (300, 5)])
def test_any_size_without_a_profile(size: tuple[int, int]) -> None:
    batch = normal(2, 3, *size)
    assert fed(batch) is batch
    assert fed(OnGpu(batch)).content is batch


@pytest.mark.parametrize(
    ("batch", "remedy"),
    [
        (normal(3, 4, 5), r"one image lacks the batch dimension"),
        (normal(2, 4, 5, 3), r"its layout is \(N, H, W, C\)"),
        (normal(2, 1, 4, 5), r"predict\(\) resizes, crops and normalises"),
        (normal(2, 3, 0, 5), r"predict\(\) resizes, crops and normalises"),
        (normal(2, 3, 4), r"predict\(\) resizes, crops and normalises"),
        (normal(0, 3, 4, 5), r"the batch is empty"),
        (normal(2, 3, 4, 5).astype(np.float64), r"convert it: batch.astype\(numpy.float32\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_open_images(batch: NDArray[Any], remedy: str) -> None:
    expected = r"the model takes float32 \(N, 3, height, width\)"
    with pytest.raises(UsageError, match=rf"{expected}\n.*{remedy}"):
        fed(batch, PROFILE)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((5, 8), "the height 5 is not among the engine's 6 to 12\n.*--height MIN,OPT,MAX"),
        ((13, 8), "the height 13 is not among the engine's 6 to 12"),
        ((6, 7), "the width 7 is not among the engine's 8 to 16\n.*--width MIN,OPT,MAX"),
        ((6, 17), "the width 17 is not among the engine's 8 to 16"),
    ],
)
def test_a_size_outside_the_profile(size: tuple[int, int], said: str) -> None:
    for batch in (normal(2, 3, *size), OnGpu(normal(2, 3, *size))):
        with pytest.raises(UsageError, match=said):
            fed(batch, PROFILE)


@pytest.mark.parametrize("size", [(6, 8), (12, 16), (8, 8), (7, 13)])
def test_an_engine_runs_every_size_of_its_profile(
    on_engine: Classifier, size: tuple[int, int]
) -> None:
    batch = normal(5, 3, *size)  # more than it takes at once
    with pytest.warns(deploykit.BatchSplitWarning):
        logits = on_engine.run(batch)
    np.testing.assert_allclose(logits, colours_of(batch), atol=1e-6)


def test_an_engine_refuses_other_sizes_before_it_is_asked(
    on_engine: Classifier, machine: FakeMachine
) -> None:
    with pytest.raises(UsageError, match="the height 13 is not among"):
        on_engine.run(normal(1, 3, 13, 8))
    assert on_engine.profile == PROFILE
    assert machine.opened[0].fed == []


def test_a_graph_runs_every_size(on_cpu: Classifier) -> None:
    assert on_cpu.profile is None
    for size in ((1, 1), (8, 8), (40, 3)):
        batch = normal(2, 3, *size)
        np.testing.assert_allclose(on_cpu.run(batch), colours_of(batch), atol=1e-6)


def test_a_graph_takes_the_sizes_that_its_bundle_names(tmp_path: Path) -> None:
    """Those that it was compared with the original at, and those that an engine was built for."""
    record = engine_record(profile=PROFILE)  # of heights 6 to 12, and widths 8 to 16
    named = {"name": "colours", "num_classes": 3, "height": (8, 8, 24), "width": (4, 8, 12)}
    folder = write_bundle(tmp_path / "colours", record, image=OPEN, model=named)
    with load(folder, device="cpu") as model:
        assert model.profile is None
        for size in ((6, 4), (24, 16), (8, 8)):
            batch = normal(2, 3, *size)
            np.testing.assert_allclose(model.run(batch), colours_of(batch), atol=1e-6)
        for size, said in {
            (5, 8): "the height 5 is not among the bundle's 6 to 24",
            (8, 700): "the width 700 is not among the bundle's 4 to 16\n.*export it for more sizes",
        }.items():
            with pytest.raises(UsageError, match=said):
                model.run(normal(2, 3, *size))


def test_photographs_are_prepared_at_the_size_of_the_bundle(on_engine: Classifier) -> None:
    red = np.zeros((31, 50, 3), np.uint8)
    red[..., 0] = 255
    small = replace(on_engine.preprocessing, resize=SIZE)
    on_engine.preprocessing = small
    assert on_engine.predict([red])[0][0].label == "red"
    found = on_engine.self_test()
    assert isinstance(found, BatchComparison)
    assert found.agreement == 1.0


def test_a_batch_of_the_batcher_has_images_of_one_size(
    on_engine: Classifier, machine: FakeMachine
) -> None:
    sizes = [(8, 8), (6, 8), (8, 8), (6, 16), (6, 8), (8, 8)]
    requests = [normal(3, *size, seed=turn) for turn, size in enumerate(sizes)]
    with deploykit.MicroBatcher(on_engine, max_batch=4, max_wait_ms=100) as batcher:
        futures = [batcher.submit(image) for image in requests]
        for image, future in zip(requests, futures, strict=True):
            np.testing.assert_allclose(future.result(), colours_of(image[None])[0], atol=1e-6)
    assert sum(len(batch) for batch in machine.opened[0].fed) == len(requests)
    assert {batch.shape[2:] for batch in machine.opened[0].fed} == set(sizes)


def test_the_batcher_refuses_a_size_outside_the_profile_at_once(on_engine: Classifier) -> None:
    with deploykit.MicroBatcher(on_engine) as batcher:
        with pytest.raises(UsageError, match="the width 17 is not among the engine's 8 to 16"):
            batcher.submit(normal(3, 8, 17))
        assert batcher.stats().accepted == 0


def test_a_profile_that_is_something_else_is_left_alone() -> None:
    class Odd:
        inputs = (SPEC,)

        def profile(self) -> None: ...

        def run(self, batch: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(batch.mean(axis=(1, 2, 3))[:, None])

    with deploykit.MicroBatcher(Odd()) as batcher:
        assert batcher.run(np.ones((3, 5, 7), np.float32)).tolist() == [1.0]

from __future__ import annotations

import os
import shutil
import sys
import threading
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import deploykit
from deploykit.bundle.manifest import GOLDEN, MANIFEST, Bundle, manifest_text
from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import DataError, IntegrityError, UsageError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.sizes import ShapeProfile
from deploykit.core.specs import HeadRecord, StepTimes
from deploykit.heads.multiclass import BatchComparison
from deploykit.runtime.inputs import BatchSplitWarning
from deploykit.runtime.loading import load
from tests.bundles import SIZE, colours_of, engine_record, write_bundle
from tests.fakes.engine_fake import FakeEngine, FakeMachine, OnGpu
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.runtime.classifier import Classifier

RED, GREEN, BLUE = (np.zeros((SIZE, SIZE, 3), np.uint8) for _ in range(3))
for channel, pixels in enumerate((RED, GREEN, BLUE)):
    pixels[..., channel] = 255


def batch_of(count: int) -> NDArray[np.float32]:
    return normal(count, 3, SIZE, SIZE)


ALONE = """colours (float[1, 3, {image}] input) => (int64[1, 2] logits, float[2] v) {{
    mean = GlobalAveragePool(input)  l = Flatten(mean)  two = Constant <value_ints = [2]> ()
    first = Constant <value_ints = [0]> ()  a, logits = TopK(l, two)  v = Squeeze(a, first) }}"""


def test_probabilities_of_one_image_without_an_axis_for_it(tmp_path: Path) -> None:
    """Bundles of such a file have been written."""
    head, beside = HeadRecord("multiclass", "logits", "top_k"), {"probabilities": "v"}
    folder = write_bundle(tmp_path / "alone", source=ALONE, head=head, conversion=beside)
    orange = RED + GREEN // 2
    with load(folder, device="cpu") as model:
        for given in (orange, RED):
            top = model.predict(given)
            assert [each.index for each in top] == [0, 1]
            shares = (given[0, 0, :2] / 255).tolist()
            assert [each.probability for each in top] == pytest.approx(shares)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "colours")


@pytest.fixture
def on_cpu(folder: Path) -> Iterator[Classifier]:
    with load(folder, device="cpu") as model:
        yield model


def on_engine(
    folder: Path, fake: FakeMachine, profile: ShapeProfile | None = None
) -> tuple[Classifier, FakeEngine]:
    """A classifier on a fake engine that takes 2 to 4 images."""
    record = engine_record(profile=profile or ShapeProfile(2, 3, 4))
    model = load(write_bundle(folder, record), device="cuda", machine=fake())
    return model, fake.opened[0]


# Batches


@pytest.mark.parametrize("count", [1, 2, 7])
def test_logits_of_numpy_torch_and_by_name(on_cpu: Classifier, count: int) -> None:
    batch = batch_of(count)
    for given in (batch, torch.from_numpy(batch), {"input": batch}, np.asfortranarray(batch)):
        logits = on_cpu.run(given)
        assert logits.dtype == np.float32
        assert logits.shape == (count, 3)
        np.testing.assert_allclose(logits, colours_of(batch), atol=1e-6)


def test_read_only_and_strided_batches(on_cpu: Classifier) -> None:
    batch = batch_of(6)
    batch.setflags(write=False)
    np.testing.assert_allclose(on_cpu.run(batch[::2]), colours_of(batch[::2]), atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0, 3, SIZE, SIZE), np.float32), "the batch is empty"),
        (np.zeros((1, SIZE, SIZE, 3), np.float32), "turn it"),
        (np.full((1, 3, SIZE, SIZE), np.nan, np.float32), "192 of 192 values are NaN"),
        (OnGpu(np.zeros((1, 3, SIZE, SIZE), np.float32)), "lies on a GPU"),
    ],
    ids=["empty", "layout", "nan", "gpu"],
)
def test_bad_batches_are_refused(on_cpu: Classifier, bad: Any, message: str) -> None:
    for call in (on_cpu.run, on_cpu.run_timed):
        with pytest.raises(UsageError, match=message):
            call(bad)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [2]), (2, [2]), (4, [4]), (5, [4, 2]), (8, [4, 4]), (11, [4, 4, 3])]
)
def test_batches_outside_the_profile_are_split_and_filled_up(
    tmp_path: Path, count: int, sizes: list[int]
) -> None:
    model, engine = on_engine(tmp_path / "b", FakeMachine())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchSplitWarning)
        logits = model.run(batch_of(count))
    np.testing.assert_array_equal(logits, colours_of(batch_of(count)))
    assert engine.batches == sizes


def test_a_split_is_said_once_where_it_was_asked_for(tmp_path: Path) -> None:
    model, _ = on_engine(tmp_path / "b", FakeMachine())
    with pytest.warns(
        BatchSplitWarning, match=r"a batch of 5 is run in parts: colours-fp32 takes 4 at once"
    ) as caught:
        model.run(batch_of(5))
    model.run(batch_of(6))  # any other warning would be an error
    assert [warning.filename for warning in caught] == [__file__]


def test_a_graph_of_a_fixed_batch_takes_any(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", batch="2")
    with load(folder, device="cpu") as model:
        assert model.inputs[0].shape == (2, 3, SIZE, SIZE)
        np.testing.assert_allclose(model.run(batch_of(1)), colours_of(batch_of(1)), atol=1e-6)
        with pytest.warns(BatchSplitWarning):
            np.testing.assert_allclose(model.run(batch_of(5)), colours_of(batch_of(5)), atol=1e-6)


def test_times_of_parts_are_added_up(tmp_path: Path, on_cpu: Classifier) -> None:
    model, engine = on_engine(tmp_path / "b", FakeMachine())
    logits, times = model.run_timed(batch_of(9))
    assert engine.batches == [4, 4, 2]
    assert times == StepTimes(wall_ms=6.0, compute_ms=3.0, h2d_ms=1.5)
    np.testing.assert_array_equal(logits, colours_of(batch_of(9)))
    _, times = on_cpu.run_timed(batch_of(1))
    assert times.wall_ms > 0
    assert times.compute_ms is not None
    assert times.h2d_ms is None


# The GPU


def test_arrays_on_the_gpu_reach_the_engine_untouched(tmp_path: Path) -> None:
    model, engine = on_engine(tmp_path / "b", FakeMachine())
    batch = OnGpu(batch_of(3))
    np.testing.assert_array_equal(model.run(batch), colours_of(batch.content))
    assert engine.fed == [batch]


def test_logits_stay_on_the_gpu_where_asked(tmp_path: Path) -> None:
    model, _ = on_engine(tmp_path / "b", FakeMachine())
    for given in (batch_of(3), OnGpu(batch_of(3))):
        logits = model.run(given, keep_on_device=True)
        assert isinstance(logits, OnGpu)
        np.testing.assert_array_equal(logits.content, colours_of(batch_of(3)))


@pytest.mark.parametrize("count", [1, 5])
def test_what_is_on_the_gpu_is_neither_split_nor_filled_up(tmp_path: Path, count: int) -> None:
    model, engine = on_engine(tmp_path / "b", FakeMachine())
    message = rf"a batch of {count} with arrays that stay on the GPU: the engine takes 2 to 4 at"
    with pytest.raises(UsageError, match=message):
        model.run(batch_of(count), keep_on_device=True)
    for call in (model.run, model.run_timed):
        with pytest.raises(UsageError, match=message):
            call(OnGpu(batch_of(count)))
    assert engine.batches == []


def test_on_the_cpu_logits_are_where_they_always_are(on_cpu: Classifier) -> None:
    assert isinstance(on_cpu.run(batch_of(1), keep_on_device=True), np.ndarray)


# Images


def test_images_go_through_the_bundles_own_preprocessing(on_cpu: Classifier) -> None:
    (red,), (blue,), (grey,) = on_cpu.predict([RED, BLUE, RED[..., 0] // 2], top_k=1)
    assert (red.label, red.index, red.logit) == ("red", 0, 1.0)
    assert blue.label == "blue"
    assert grey.probability == pytest.approx(1 / 3)


def test_a_generator_and_no_images_at_all(on_cpu: Classifier) -> None:
    assert len(on_cpu.predict(image for image in (RED, GREEN))) == 2
    assert on_cpu.predict([]) == []


@pytest.mark.parametrize("count", [1, 2, 9])
def test_many_images_run_in_the_batches_that_the_engine_prefers(tmp_path: Path, count: int) -> None:
    model, engine = on_engine(tmp_path / "b", FakeMachine(), ShapeProfile(1, 4, 8))
    labels = [top[0].label for top in model.predict([RED, BLUE, GREEN] * count)]
    assert labels == ["red", "blue", "green"] * count
    assert set(engine.batches[:-1]) <= {4}
    assert sum(engine.batches) == 3 * count


def test_an_image_that_cannot_be_read_is_named(on_cpu: Classifier) -> None:
    with pytest.raises(DataError, match=r"^image 2: cannot read the image\nUnidentifiedImageErr"):
        on_cpu.predict([RED, BLUE, b"junk"])


def test_the_others_are_answered_all_the_same(on_cpu: Classifier) -> None:
    given: list[Any] = [b"junk", RED, b"", *[BLUE] * 9, b"junk", GREEN]
    outcomes = list(on_cpu.predict_each(given, top_k=1))
    labels = [None if isinstance(each, DataError) else each[0].label for each in outcomes]
    assert labels == [None, "red", None, *["blue"] * 9, None, "green"]


def test_only_unreadable_images(on_cpu: Classifier) -> None:
    outcomes = list(on_cpu.predict_each([b"junk"] * 10))
    assert len(outcomes) == 10
    assert all(isinstance(each, DataError) for each in outcomes)


def test_a_wrong_call_fails_before_the_first_image(on_cpu: Classifier) -> None:
    with pytest.raises(UsageError, match="top_k=0"):
        on_cpu.predict_each([RED], top_k=0)
    with pytest.raises(UsageError, match="image 1 is of type int"):
        on_cpu.predict_each([RED, 7])  # type: ignore[list-item]  # the mistake


# The golden sample


def test_the_golden_sample_agrees(on_cpu: Classifier) -> None:
    found = on_cpu.self_test()
    assert isinstance(found, BatchComparison)
    assert found.batch == 2
    assert found.agreement == 1


@pytest.mark.filterwarnings("error::deploykit.runtime.inputs.BatchSplitWarning")
def test_the_golden_sample_is_split_without_a_word(tmp_path: Path) -> None:
    model, engine = on_engine(tmp_path / "b", FakeMachine(), ShapeProfile(1, 1, 1))
    model.self_test()
    assert engine.batches == [1, 1]


def test_a_model_that_is_wrong_says_so(tmp_path: Path) -> None:
    model, _ = on_engine(tmp_path / "b", FakeMachine(offset=0.5))
    with pytest.raises(ValidationError, match="the golden sample gives other logits than at exp"):
        model.self_test()


@pytest.mark.parametrize(("precision", "passes"), [(Precision.INT8, True), (Precision.FP16, False)])
def test_each_precision_has_its_own_limits(
    tmp_path: Path, precision: Precision, passes: bool
) -> None:
    """Half the noise of INT8 is more than FP16 may have."""
    folder = write_bundle(tmp_path / "b", engine_record(), precision=precision)
    sample = batch_of(2) + np.float32(1)
    logits = colours_of(sample)
    np.savez(folder / GOLDEN, input=sample, logits=logits * np.array([1.1, 1.0, 1.0]))
    _sign(folder)
    model = load(folder, device="cuda", machine=FakeMachine()())
    if passes:
        model.self_test()
    else:
        with pytest.raises(ValidationError, match="largest error"):
            model.self_test()


def _sign(folder: Path) -> None:
    """Make the manifest fit the golden sample that lies there."""
    manifest = Bundle.open(folder).manifest
    files = {**manifest.files, GOLDEN: sha256_of(folder / GOLDEN)}
    (folder / MANIFEST).write_text(manifest_text(replace(manifest, files=files)))


def test_the_sample_is_that_of_the_bundle_that_was_loaded(folder: Path, on_cpu: Classifier) -> None:
    before = on_cpu.self_test()
    (folder / GOLDEN).write_bytes(b"")
    assert on_cpu.self_test() == before
    shutil.rmtree(folder)
    assert on_cpu.self_test() == before


def test_a_sample_that_was_changed_before(folder: Path) -> None:
    (folder / GOLDEN).write_bytes(b"")
    with load(folder, device="cpu") as model:
        assert model.run(batch_of(2)).shape[0] == 2
        for _ in range(2):
            with pytest.raises(IntegrityError, match=r"golden.npz has sha256"):
                model.self_test()


# Its life


def calls(model: Classifier) -> list[Callable[[], object]]:
    return [
        lambda: model.run(batch_of(2)),
        lambda: model.run_timed(batch_of(2)),
        lambda: model.predict([RED]),
        lambda: model.predict_each([RED]),
        model.self_test,
        model.__enter__,
    ]


def test_closing_twice_is_harmless_and_use_after_it_is_not(folder: Path) -> None:
    with load(folder, device="cpu") as model:
        model.close()
    model.close()
    for call in calls(model):
        with pytest.raises(UsageError, match=r"^colours-fp32 is closed\nload it again: deployk"):
            call()


def test_closed_between_two_batches(folder: Path) -> None:
    model = load(folder, device="cpu")
    outcomes = model.predict_each([RED] * 20)
    next(outcomes)
    model.close()
    with pytest.raises(UsageError, match="is closed"):
        list(outcomes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_to_load_its_own(on_cpu: Classifier) -> None:
    on_cpu.run(batch_of(1))
    child = os.fork()
    if child == 0:
        os._exit(_uses_of_parent(on_cpu))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert on_cpu.run(batch_of(1)).shape == (1, 3)


def _uses_of_parent(model: Classifier) -> int:
    """In the child: how many calls did not say that the model was loaded by the parent."""
    wrong = 0
    feeds = {"input": batch_of(1)}
    uses: list[Callable[[], object]] = [*calls(model), lambda: model.runner.run(feeds)]
    for call in uses:
        try:
            call()
        except UsageError as error:
            parent = f"by process {os.getppid()}, this is its fork {os.getpid()}\n"
            wrong += parent not in str(error)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            wrong += 1
        else:
            wrong += 1
    model.close()
    return wrong


@pytest.mark.parametrize("where", ["cpu", "engine"])
def test_each_of_32_threads_gets_its_own_answers(tmp_path: Path, where: str) -> None:
    if where == "cpu":
        model = load(write_bundle(tmp_path / "b"), device="cpu")
    else:
        model, _ = on_engine(tmp_path / "b", FakeMachine(), ShapeProfile(2, 3, 64))
    start = threading.Barrier(32)

    def ask(number: int) -> None:
        random = np.random.default_rng(number)
        start.wait()
        for _ in range(20):
            batch = random.normal(size=(int(random.integers(1, 6)), 3, SIZE, SIZE))
            given = batch.astype(np.float32)
            np.testing.assert_allclose(model.run(given), colours_of(given), atol=1e-6)
        colour = number % 3
        ((top, *_),) = model.predict([(RED, GREEN, BLUE)[colour]])
        assert top.index == colour

    with model, ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))


def test_the_public_names_are_these_classes(on_cpu: Classifier) -> None:
    assert isinstance(on_cpu, deploykit.Classifier)
    assert deploykit.BatchSplitWarning is BatchSplitWarning

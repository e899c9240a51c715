"""`deploykit.load` of a bundle's engine, the whole way down to the driver."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends import Compiler, EngineHeader
from deploykit.backends.trt.compiler import TENSORRT, TENSORRT_RTX
from deploykit.bundle.manifest import MODEL
from deploykit.core import environment
from deploykit.core.artifacts import UNPROVEN, sha256_of
from deploykit.core.errors import EngineIncompatibleError, UsageError
from deploykit.core.sizes import ShapeProfile
from deploykit.runtime.choice import Machine
from deploykit.runtime.inputs import BatchSplitWarning
from deploykit.runtime.loading import load
from tests.bundles import SIZE, colours_of, engine_record, write_bundle
from tests.device_arrays import ByDlpack, ByInterface
from tests.fakes.runtime_fake import FakeRuntime
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.runtime.classifier import Classifier
    from tests.fakes.runtime_fake import Script

PROFILE = ShapeProfile(2, 3, 5)


def batch_of(count: int) -> NDArray[np.float32]:
    return np.asarray(normal(count, 3, SIZE, SIZE, seed=count), np.float32)


def bundle_with_engine(folder: Path, *, rtx: bool, warnings: tuple[str, ...] = ()) -> Path:
    """The engine is the bundle's own graph, which is what the fake runtime takes for a plan."""
    plan = (write_bundle(folder) / MODEL).read_bytes()
    record = engine_record(
        sha256=sha256_of(folder / MODEL),
        compiler=TENSORRT_RTX if rtx else TENSORRT,
        compiler_version=FakeRuntime.__version__,
        compute_capabilities=(environment.gpus()[0].compute_capability,),
        profile=PROFILE,
        warnings=warnings,
    )
    write_bundle(folder, record)
    (folder / record.file).write_bytes(plan)
    return folder


def machine(script: Script, *, rtx: bool) -> Machine:
    return Machine(
        load_compiler=lambda name: Compiler(
            name, FakeRuntime.__version__, FakeRuntime(script, rtx=rtx), name == TENSORRT_RTX
        ),
        cuda_major=lambda _: 13,
        read_header=lambda _plan, _compiler: EngineHeader("unknown", ""),
    )


@pytest.fixture(params=[False, True], ids=["tensorrt", "tensorrt-rtx"])
def model(request: pytest.FixtureRequest, script: Script, tmp_path: Path) -> Iterator[Classifier]:
    folder = bundle_with_engine(tmp_path / "colours", rtx=request.param)
    with load(folder, machine=machine(script, rtx=request.param)) as loaded:
        yield loaded


def test_auto_takes_the_engine(model: Classifier) -> None:
    assert model.device == "cuda"
    assert model.choice.endswith("the engine that fits")
    model.self_test()


@pytest.mark.filterwarnings("ignore::deploykit.runtime.inputs.BatchSplitWarning")
@pytest.mark.parametrize("count", [1, 2, 5, 6, 12])
def test_any_batch_gives_true_numbers(model: Classifier, count: int) -> None:
    for _ in range(3):  # eager, captured, replayed
        logits = model.run(batch_of(count))
        np.testing.assert_allclose(logits, colours_of(batch_of(count)), atol=1e-6)
    _, times = model.run_timed(batch_of(count))
    assert times.compute_ms is not None


def test_a_split_is_said(model: Classifier) -> None:
    with pytest.warns(BatchSplitWarning, match="a batch of 6 is run in parts: .* takes 5 at once"):
        model.run(batch_of(6))


def test_logits_stay_on_the_gpu_and_are_taken_from_there(model: Classifier) -> None:
    logits = model.run(batch_of(3), keep_on_device=True)
    assert logits.shape == (3, 3)
    assert not isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits.numpy(), colours_of(batch_of(3)), atol=1e-6)
    with pytest.raises(UsageError, match=r"given as float32 \(3, 3\), the model takes"):
        model.run(logits)


def test_images_are_classified(model: Classifier) -> None:
    pixels = np.zeros((7, SIZE, SIZE, 3), np.uint8)
    pixels[np.arange(7), ..., np.arange(7) % 3] = 255
    found = [top[0].label for top in model.predict(list(pixels))]
    assert found == [("red", "green", "blue")[number % 3] for number in range(7)]


@pytest.mark.filterwarnings("ignore::deploykit.runtime.inputs.BatchSplitWarning")
def test_each_of_32_threads_gets_its_own_answers(model: Classifier) -> None:
    def ask(number: int) -> None:
        for count in (1 + number % 7, 3, 5):
            batch = normal(count, 3, SIZE, SIZE, seed=number)
            np.testing.assert_allclose(model.run(batch), colours_of(batch), atol=1e-6)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))


def test_an_engine_that_does_not_load_is_told_with_the_runtimes_words(
    script: Script, tmp_path: Path
) -> None:
    script.refuses.add("deserialize_cuda_engine")
    folder = bundle_with_engine(tmp_path / "colours", rtx=False)
    with pytest.raises(
        EngineIncompatibleError, match=r"no engine of colours-fp32 .*\n.*the reason"
    ):
        load(folder, device="cuda", machine=machine(script, rtx=False))
    with load(folder, machine=machine(script, rtx=False)) as fallen_back:
        assert fallen_back.device == "cpu"
        assert "the reason" in fallen_back.choice


def test_an_unproven_engine_is_tried_on_the_golden_sample(script: Script, tmp_path: Path) -> None:
    folder = bundle_with_engine(tmp_path / "colours", rtx=True, warnings=(UNPROVEN,))
    with load(folder, machine=machine(script, rtx=True)) as loaded:
        assert loaded.choice.endswith("unproven, but it computes the golden sample")
    assert script.computed > 0


@pytest.mark.parametrize("form", [ByDlpack, ByInterface])
def test_arrays_that_lie_on_the_gpu(model: Classifier, form: Callable[[Any], Any]) -> None:
    np.testing.assert_allclose(model.run(form(batch_of(4))), colours_of(batch_of(4)), atol=1e-6)
    with pytest.raises(
        UsageError, match=r"a batch of 6 with arrays that stay on the GPU: .* 2 to 5"
    ):
        model.run(form(batch_of(6)))

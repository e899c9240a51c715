from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit import images, onnx_graph
from deploykit.backends.ort import OrtRunner
from deploykit.calibrators import METHODS
from deploykit.errors import DataError, UsageError
from deploykit.histograms import RunningHistogram
from deploykit.images import ArrayImages, FileImages
from deploykit.specs import Preprocessing, SilentProgress, TensorSpec
from deploykit.stages.calibrate import (
    CalibrationData,
    calibrate,
    choose_images,
    collect,
    few_images_warning,
    split_holdout,
)
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.artifacts import OnnxArtifact
    from deploykit.calibration import CalibrationTable

    Images = NDArray[np.float32]

PLAIN = Preprocessing(crop=(6, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

NET = """
net (float[{batch}, 3, 6, 6] x) => (float[{batch}, 4] logits) {{
    a = Conv(x, w)
    b = Relu(a)
    c = Neg(b)
    dead = Relu(c)
    p = GlobalAveragePool(b)
    logits = Flatten(p)
}}
"""
NAMES = ("x", "a", "b", "dead")


class Steps:
    """Keeps what the stage says."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.seen.append((done, total))


def artifact_in(folder: Path, batch: str | int = "N") -> OnnxArtifact:
    weight = {"w": normal(4, 3, 3, 3, seed=5)}
    path = save(graph(NET.format(batch=batch), weight), folder / "net.onnx")
    return onnx_graph.read_artifact(path)


def photographs(count: int, seed: int = 0) -> ArrayImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)
    return ArrayImages(pixels)


def data_of(count: int) -> CalibrationData:
    return CalibrationData(photographs(count), PLAIN, range(count), seed=0)


def run(
    artifact: OnnxArtifact, data: CalibrationData, names: Sequence[str] = NAMES
) -> CalibrationTable:
    return calibrate(artifact, names, data, open_runner=OrtRunner, task=Steps())


def inputs_of(data: CalibrationData) -> Images:
    found = images.batches(data.source, data.preprocessing, len(data.indices), data.indices)
    return next(found)[0]


def expected(artifact: OnnxArtifact, inputs: Images) -> dict[str, dict[str, float]]:
    """All activations at once, and each method on their histogram."""
    graph_bytes = onnx_graph.expose_outputs(onnx_graph.read_model(artifact.path))[0]
    weight = normal(4, 3, 3, 3, seed=5)
    values = {"x": inputs, **run_ort(graph_bytes, {"x": inputs})}
    values["a"] = _convolution(inputs, weight)
    values["b"] = np.maximum(values["a"], 0)
    values["dead"] = np.zeros_like(values["b"])
    return {name: _by_all_methods(values[name]) for name in NAMES}


def _convolution(inputs: Images, weight: Images) -> Images:
    windows = np.lib.stride_tricks.sliding_window_view(inputs, (3, 3), axis=(2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, weight), np.float32)


def _by_all_methods(values: Images) -> dict[str, float]:
    running = RunningHistogram()
    running.add(values)
    return {method: function(running.freeze()) for method, function in METHODS.items()}


@pytest.mark.parametrize("batch", ["N", 1, 4, 16])
def test_ranges_are_those_of_all_activations_at_once(tmp_path: Path, batch: str | int) -> None:
    artifact, data = artifact_in(tmp_path, batch), data_of(11)
    table = run(artifact, data)
    wanted = expected(artifact_in(tmp_path), inputs_of(data))
    assert tuple(table.amax) == NAMES
    for name in NAMES:
        assert table.amax[name] == pytest.approx(wanted[name], rel=2e-3)
    assert table.amax["x"]["max"] == wanted["x"]["max"]
    assert (table.images, table.skipped) == (11, ())


def test_a_tensor_of_zeros_gets_a_range(tmp_path: Path) -> None:
    table = run(artifact_in(tmp_path), data_of(3))
    assert table.amax["dead"] == dict.fromkeys(METHODS, 1.0)


def test_the_same_call_gives_the_same_table(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    assert run(artifact, data_of(9)).digest == run(artifact, data_of(9)).digest
    assert run(artifact, data_of(9)).digest != run(artifact, data_of(8)).digest


def test_the_key_tells_what_the_table_was_made_for(tmp_path: Path) -> None:
    artifact, data = artifact_in(tmp_path), data_of(5)
    table = run(artifact, data)
    assert table.matches(data.key(artifact.sha256), NAMES) == ""
    assert table.matches(data.key("0" * 64)) == "the model is another one"
    other = CalibrationData(photographs(5, seed=1), PLAIN, range(5), 0)
    assert table.matches(other.key(artifact.sha256)) == "the images are others"
    fewer = CalibrationData(data.source, PLAIN, range(4), 0)
    assert table.matches(fewer.key(artifact.sha256)) == "the settings differ: choice, images"
    turned = CalibrationData(data.source, PLAIN, [4, 3, 2, 1, 0], 7)
    assert table.matches(turned.key(artifact.sha256)) == "the settings differ: choice, seed"
    closer = CalibrationData(data.source, Preprocessing(crop=(6, 6)), range(5), 0)
    assert table.matches(closer.key(artifact.sha256)) == "the preprocessing is another one"


def test_progress_counts_images(tmp_path: Path) -> None:
    steps = Steps()
    calibrate(artifact_in(tmp_path), NAMES, data_of(4), open_runner=OrtRunner, task=steps)
    assert steps.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_unknown_tensors_are_refused_before_the_first_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="computes no FP32 value 'z'"):
        run(artifact_in(tmp_path), data_of(2), ["a", "z"])


def test_no_images(tmp_path: Path) -> None:
    data = CalibrationData(photographs(3), PLAIN, [], 0)
    with pytest.raises(DataError, match=r"no images to calibrate with\nexpected at least 1"):
        run(artifact_in(tmp_path), data)


# --- corrupt images


def files_in(folder: Path, count: int, corrupt: Sequence[int]) -> CalibrationData:
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if number in corrupt:
            path.write_bytes(b"\x89PNG torn")
        else:
            Image.fromarray(photographs(1, seed=number).pixels[0]).save(path)
    return CalibrationData(FileImages(tuple(paths)), PLAIN, range(count), 0)


@pytest.mark.parametrize("batch", ["N", 8])
@pytest.mark.parametrize("corrupt", [[0], [57], [199], [0, 199], [98, 99]])
def test_few_corrupt_images_are_left_out_and_named(
    tmp_path: Path, corrupt: list[int], batch: str | int
) -> None:
    artifact, data = artifact_in(tmp_path, batch), files_in(tmp_path, 200, corrupt)
    table = run(artifact, data)
    assert table.images == 200 - len(corrupt)
    assert table.skipped == tuple(str(tmp_path / f"{number:03}.png") for number in corrupt)
    rest = [number for number in range(200) if number not in corrupt]
    again = run(artifact, CalibrationData(data.source, PLAIN, rest, 0))
    assert again.amax == table.amax


def test_more_than_one_percent_corrupt_is_an_error(tmp_path: Path) -> None:
    data = files_in(tmp_path, 150, [3, 80])
    with pytest.raises(
        DataError,
        match=r"^2 of 150 images cannot be read: \S+003.png, \S+080.png\nat most 1 % may",
    ):
        run(artifact_in(tmp_path), data)


def test_the_error_comes_with_the_first_image_that_is_too_many(tmp_path: Path) -> None:
    steps = Steps()
    with pytest.raises(DataError, match=r"^5 of 30 images cannot .*000.png, .*002.png \.\.\.\n"):
        calibrate(
            artifact_in(tmp_path),
            NAMES,
            files_in(tmp_path, 30, range(5)),
            open_runner=OrtRunner,
            task=steps,
        )
    assert steps.seen == []


def test_nothing_but_corrupt_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^2 of 2 images cannot be read: \S+, \S+\nat most"):
        run(artifact_in(tmp_path), files_in(tmp_path, 2, [0, 1]))


def test_only_the_chosen_files_are_part_of_the_key(tmp_path: Path) -> None:
    data = files_in(tmp_path, 4, [])
    some = CalibrationData(data.source, PLAIN, [2, 0], 0)
    key = some.key("m")
    (tmp_path / "003.png").unlink()
    assert some.key("m") != CalibrationData(data.source, PLAIN, [0, 1], 0).key("m")
    fresh = CalibrationData(FileImages((tmp_path / "000.png",) * 3), PLAIN, [2, 0], 0)
    assert key.difference(fresh.key("m")) == "the images are others"
    with pytest.raises(DataError, match=r"cannot read .*003.png"):
        CalibrationData(data.source, PLAIN, [3], 0).key("m")


# --- collecting


class Scripted:
    """Gives the outputs that each image number asks for: ``values`` (N, K) by image."""

    def __init__(self, values: Images, batch: int | str = "N") -> None:
        self.inputs = (TensorSpec("x", "float32", (batch, 1)),)
        self.outputs = (TensorSpec("y", "float32", (batch, values.shape[1])),)
        self.threads: set[int] = set()
        self._values = values

    def run(self, feeds: Any) -> dict[str, Any]:
        self.threads.add(threading.get_ident())
        rows = self._values[feeds["x"][:, 0].astype(int)]
        return {"y": rows, "whole": rows.reshape(-1)}

    def run_timed(self, feeds: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None: ...


def numbered(count: int, batch: int) -> Iterator[tuple[Images, list[int]]]:
    for start in range(0, count, batch):
        indices = list(range(start, min(start + batch, count)))
        yield np.array(indices, np.float32)[:, None], indices


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("place", [0, 6, 9])
def test_values_that_are_not_finite_name_tensor_and_image(
    broken: float, batch: int, place: int
) -> None:
    values = normal(10, 7)
    values[place, 3] = broken
    with pytest.raises(
        DataError, match=rf"^y is NaN or infinite for image {place}\ncheck the weights, and that"
    ):
        collect(Scripted(values), ["x", "y"], numbered(10, batch), task=Steps())


def test_a_tensor_that_does_not_lie_image_by_image() -> None:
    values = normal(3, 7)
    values[1, 0] = np.nan
    with pytest.raises(DataError, match=r"^whole is NaN or infinite for one of image 0, image 1, "):
        collect(Scripted(values), ["whole"], numbered(3, 3), task=Steps())


def test_images_are_named_as_the_caller_names_them() -> None:
    values = np.full((1, 2), np.nan, np.float32)
    with pytest.raises(DataError, match=r"for photographs/0.jpg\n"):
        collect(
            Scripted(values),
            ["y"],
            numbered(1, 1),
            task=Steps(),
            name_of="photographs/{}.jpg".format,
        )


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_every_value_is_counted_once(batch: int) -> None:
    values = normal(10, 7, scale=40)
    found = collect(Scripted(values), ["y", "x"], numbered(10, batch), task=Steps())
    assert tuple(found) == ("y", "x")
    assert (found["y"].total, found["y"].amax) == (70, float(np.abs(values).max()))
    assert (found["x"].total, found["x"].amax) == (10, 9.0)


def test_the_filling_of_a_fixed_batch_is_not_counted() -> None:
    values = normal(10, 7)
    found = collect(Scripted(values, 4), ["y"], numbered(10, 4), task=Steps())
    assert found["y"].total == 70


def test_the_model_runs_in_the_callers_thread() -> None:
    runner = Scripted(normal(5, 2))
    collect(runner, ["y"], numbered(5, 1), task=Steps())
    assert runner.threads == {threading.get_ident()}
    assert not [t for t in threading.enumerate() if t.name.startswith("deploykit-histograms")]


def test_nothing_to_collect_from() -> None:
    found = collect(Scripted(normal(1, 2)), ["y"], iter([]), task=Steps())
    assert found["y"].total == 0


def test_batches_are_let_go() -> None:
    """However many come, no more than the one being counted and the one being made are held."""
    alive: list[int] = []
    values = normal(30, 2)

    class Counted(Scripted):
        def run(self, feeds: Any) -> dict[str, Any]:
            found = super().run(feeds)
            owner = _Counted(found["y"], alive)
            return {"y": owner}

    collect(Counted(values), ["y"], numbered(30, 1), task=Steps())
    assert max(alive) <= 3


class _Counted(np.ndarray[Any, Any]):
    """An array that keeps count of its kind."""

    _living = 0

    def __new__(cls, values: Images, log: list[int]) -> _Counted:
        made = values.copy().view(cls)
        cls._living += 1
        made.log = log  # type: ignore[attr-defined]  # only those made here have one
        log.append(cls._living)
        return made

    def __del__(self) -> None:
        if hasattr(self, "log"):
            type(self)._living -= 1


# --- which images


def test_the_choice_is_fixed_by_the_seed() -> None:
    assert choose_images(1000, 5, seed=0) == [402, 993, 40, 186, 583]
    assert choose_images(1000, 5, seed=1) != choose_images(1000, 5, seed=0)


@pytest.mark.parametrize(("available", "wanted"), [(10, 10), (10, 50), (1, 1), (0, 5), (100, 7)])
def test_images_are_chosen_once_each(available: int, wanted: int) -> None:
    chosen = choose_images(available, wanted, seed=3)
    assert len(chosen) == len(set(chosen)) == min(available, wanted)
    assert set(chosen) <= set(range(available))


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    assert choose_images(500, 64, seed=2) == choose_images(500, 512, seed=2)[:64]


def test_the_choice_spreads_over_folders_sorted_by_class() -> None:
    chosen = np.array(choose_images(10_000, 1000, seed=0)) // 1000
    assert np.bincount(chosen, minlength=10).min() > 60


@pytest.mark.parametrize("wanted", [0, -3])
def test_at_least_one_image_is_wanted(wanted: int) -> None:
    with pytest.raises(UsageError, match=rf"^{wanted} calibration images were asked\nexpected at"):
        choose_images(10, wanted, seed=0)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(512, 0.2, 102), (10, 0.2, 2), (2, 0.2, 1), (3, 0.9, 2), (5, 0, 1)]
)
def test_some_images_are_held_out(count: int, share: float, held: int) -> None:
    indices = choose_images(count, count, seed=0)
    seen, held_out = split_holdout(indices, share)
    assert seen + held_out == indices
    assert len(held_out) == held


@pytest.mark.parametrize("indices", [[], [4]])
def test_one_image_cannot_be_split(indices: list[int]) -> None:
    with pytest.raises(DataError, match=rf"^{len(indices)} image is too few to compare .*\ngive"):
        split_holdout(indices)


def test_few_images_are_warned_of() -> None:
    assert few_images_warning(32) is None
    assert "only 31 calibration images" in str(few_images_warning(31))
    assert "at least 32" in str(few_images_warning(1))


def test_silent_progress_will_do(tmp_path: Path) -> None:
    with SilentProgress().step("calibrate") as task:
        table = calibrate(
            artifact_in(tmp_path), ["x"], data_of(2), open_runner=OrtRunner, task=task
        )
    assert list(table.amax) == ["x"]

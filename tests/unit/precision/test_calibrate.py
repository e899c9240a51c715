from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.backends.ort import OrtRunner
from deploykit.core.errors import DataError, UsageError
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import Preprocessing
from deploykit.graph import LoadedGraph, read_artifact, read_model
from deploykit.images import ArrayImages, FileImages
from deploykit.precision.calibration.calibrators import METHODS, RunningHistogram
from deploykit.precision.calibration.collection import calibrate
from deploykit.precision.calibration.data import CalibrationData
from tests.graphs import expose_outputs, graph, normal, run_ort, save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.precision.calibration.table import CalibrationTable

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
    return read_artifact(path)


def photographs(count: int, seed: int = 0) -> ArrayImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)
    return ArrayImages(pixels)


def data_of(count: int) -> CalibrationData:
    return CalibrationData(photographs(count), PLAIN, range(count), seed=0)


def run(
    artifact: OnnxArtifact, data: CalibrationData, names: Sequence[str] = NAMES
) -> CalibrationTable:
    return calibrate(LoadedGraph(artifact), names, data, open_runner=OrtRunner, task=Steps())


def inputs_of(data: CalibrationData) -> Images:
    found = images.batches(data.source, data.preprocessing, len(data.indices), data.indices)
    return next(found)[0]


def expected(artifact: OnnxArtifact, inputs: Images) -> dict[str, dict[str, float]]:
    """All activations at once, and each method on their histogram."""
    graph_bytes = expose_outputs(read_model(artifact.path))[0]
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
    calibrate(
        LoadedGraph(artifact_in(tmp_path)),
        NAMES,
        data_of(4),
        open_runner=OrtRunner,
        task=steps,
    )
    assert steps.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_unknown_tensors_are_refused_before_the_first_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="computes no FP32 value 'z'"):
        run(artifact_in(tmp_path), data_of(2), ["a", "z"])


def test_no_images(tmp_path: Path) -> None:
    data = CalibrationData(photographs(3), PLAIN, [], 0)
    with pytest.raises(DataError, match=r"no images to calibrate with\nexpected at least 1"):
        run(artifact_in(tmp_path), data)


# --- corrupt images


@cache
def picture(number: int) -> bytes:
    """A photograph as a file; many tests have the same ones."""
    file = BytesIO()
    Image.fromarray(photographs(1, seed=number).pixels[0]).save(file, "PNG")
    return file.getvalue()


def files_in(folder: Path, count: int, corrupt: Sequence[int]) -> CalibrationData:
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"\x89PNG torn" if number in corrupt else picture(number))
    return CalibrationData(FileImages(tuple(paths)), PLAIN, range(count), 0)


@pytest.mark.parametrize("batch", ["N", 8])
@pytest.mark.parametrize("corrupt", [[0], [57], [99], [0, 199], [98, 99]])
def test_few_corrupt_images_are_left_out_and_named(
    tmp_path: Path, corrupt: list[int], batch: str | int
) -> None:
    count = 100 * len(corrupt)  # as few as may have so many
    artifact, data = artifact_in(tmp_path, batch), files_in(tmp_path, count, corrupt)
    table = run(artifact, data)
    assert table.images == count - len(corrupt)
    assert table.skipped == tuple(str(tmp_path / f"{number:03}.png") for number in corrupt)
    rest = [number for number in range(count) if number not in corrupt]
    again = run(artifact, CalibrationData(data.source, PLAIN, rest, 0))
    assert again.amax == table.amax


def test_more_than_one_percent_corrupt_is_an_error(tmp_path: Path) -> None:
    data = files_in(tmp_path, 150, [3, 80])
    with pytest.raises(
        DataError,
        match=r"^2 of 150 images cannot be used: \S+003.png, \S+080.png\n"
        r"the first one: cannot read \S+003.png.*\nat most 1 % may",
    ):
        run(artifact_in(tmp_path), data)


def test_the_error_comes_with_the_first_image_that_is_too_many(tmp_path: Path) -> None:
    steps = Steps()
    with pytest.raises(DataError, match=r"^5 of 30 images cannot .*000.png, .*002.png \.\.\.\n"):
        calibrate(
            LoadedGraph(artifact_in(tmp_path)),
            NAMES,
            files_in(tmp_path, 30, range(5)),
            open_runner=OrtRunner,
            task=steps,
        )
    assert steps.seen == []


def test_nothing_but_corrupt_images(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^2 of 2 images cannot be used: \S+, \S+\nthe first one: cannot read"
    ):
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


def test_images_smaller_than_the_crop_count_as_corrupt(tmp_path: Path) -> None:
    data = files_in(tmp_path, 150, [])
    Image.new("RGB", (6, 5)).save(tmp_path / "007.png")
    table = run(artifact_in(tmp_path), data)
    assert table.skipped == (str(tmp_path / "007.png"),)
    Image.new("RGB", (5, 6)).save(tmp_path / "003.png")
    with pytest.raises(
        DataError,
        match=r"^2 of 150 images cannot be used: \S+003.png, \S+007.png\n"
        r"the first one: an image of 5 x 6 pixels is smaller than the crop of 6 x 6\nat most",
    ):
        run(artifact_in(tmp_path), files_in_again(data))


def files_in_again(data: CalibrationData) -> CalibrationData:
    """The same files with another content: the digest is kept by the set of images."""
    assert isinstance(data.source, FileImages)
    return CalibrationData(FileImages(data.source.paths), PLAIN, data.indices, 0)


# --- held-out images


def held_out_of(count: int, held: int) -> CalibrationData:
    indices = range(count)
    return CalibrationData(photographs(count), PLAIN, indices[:-held], 0, indices[-held:])


def test_trial_ranges_do_not_come_from_the_held_out_images(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    table = run(artifact, held_out_of(11, 3))
    assert table.amax == run(artifact, data_of(11)).amax
    first = CalibrationData(photographs(11), PLAIN, range(8), 0)
    assert table.trial_amax == run(artifact, first).amax
    assert table.images == 11


def test_without_held_out_images_trials_take_the_final_ranges(tmp_path: Path) -> None:
    table = run(artifact_in(tmp_path), data_of(4))
    assert table.trial_amax == {}
    assert table.select_trial("mse") == table.select("mse")


def test_what_is_held_out_is_part_of_the_key(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    table = run(artifact, held_out_of(11, 3))
    assert table.matches(held_out_of(11, 3).key(artifact.sha256), NAMES) == ""
    other = table.matches(held_out_of(11, 4).key(artifact.sha256))
    assert other == "the settings differ: held_out"


def test_progress_goes_on_with_the_held_out_images(tmp_path: Path) -> None:
    steps = Steps()
    artifact = artifact_in(tmp_path)
    calibrate(
        LoadedGraph(artifact),
        NAMES,
        held_out_of(4, 2),
        open_runner=OrtRunner,
        task=steps,
    )
    assert steps.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_silent_progress_will_do(tmp_path: Path) -> None:
    with SilentProgress().step("calibrate") as task:
        table = calibrate(
            LoadedGraph(artifact_in(tmp_path)),
            ["x"],
            data_of(2),
            open_runner=OrtRunner,
            task=task,
        )
    assert list(table.amax) == ["x"]

"""Top images, occlusion and maximisation against brute force."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.core.errors import DataError, UsageError
from deploykit.core.progress import SilentProgress
from deploykit.images import ArrayImages, FileImages, preprocess_array
from deploykit.visualization.maximisation import Ascent, maximise
from deploykit.visualization.occlusion import Square, occlusion_map
from deploykit.visualization.of_images import Covered, scores_of, spread_images
from deploykit.visualization.top_images import LayerPeaks, find_top_images
from tests.unit.visualization.networks import Plain, network_of, noise, seeded

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.progress import ProgressTask
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.top_images import TopImages

SIZE, COUNT = 8, 41


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    drawn = np.random.default_rng(3).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    drawn[7] = drawn[3]  # of two that are alike the first one stays the first
    return drawn


@pytest.fixture(scope="module")
def network() -> ShownNetwork:
    return network_of(seeded(Plain()), SIZE)


@pytest.fixture
def task() -> ProgressTask:
    with SilentProgress().step("test") as shown:
        return shown


def top_of(network: ShownNetwork, pixels: np.ndarray, names: list[str], batch: int) -> TopImages:
    with SilentProgress().step("test") as task:
        layers = network.chosen(names)
        return find_top_images(network, layers, ArrayImages(pixels), batch=batch, task=task)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("name", ["conv1", "relu", "head"])
def test_the_top_nine_by_looking_at_all(
    network: ShownNetwork, pixels: np.ndarray, name: str, batch: int
) -> None:
    (layer,) = network.chosen([name])
    prepared = np.stack([preprocess_array(one, network.preprocessing) for one in pixels])
    with torch.no_grad():
        every = network.up_to(layer, torch.from_numpy(prepared)).clone().numpy()
    every = every.reshape(COUNT, layer.channels, -1)
    found = top_of(network, pixels, [name, "conv2"], batch)
    assert (found.images, found.unreadable) == (COUNT, 0)
    for channel in range(layer.channels):
        strongest = every[:, channel].max(1)
        peaks = found.peaks[name].of(channel)
        wanted = np.sort(strongest)[::-1][:9]
        np.testing.assert_allclose([peak.activation for peak in peaks], wanted, atol=1e-5)
        assert len({peak.image for peak in peaks}) == 9
        for peak in peaks:
            place = peak.row * layer.shape[-1] + peak.column if layer.is_map else 0
            assert every[peak.image, channel, place] == pytest.approx(peak.activation, abs=1e-5)


def test_of_images_that_are_alike_the_first_comes_first(
    network: ShownNetwork, pixels: np.ndarray
) -> None:
    peaks = top_of(network, pixels[[3, 7]], ["conv1"], 1).peaks["conv1"]
    assert peaks.images.tolist() == [[0] * 4, [1] * 4]


def test_memory_is_that_of_nine_images_per_filter() -> None:
    held = LayerPeaks.nothing(3)
    for start in range(0, 1000, 10):
        values = np.random.default_rng(start).normal(size=(10, 3)).astype(np.float32)
        at = np.broadcast_to(np.arange(start, start + 10)[:, None], (10, 3))
        held = held.with_batch(LayerPeaks(values, at, at, at), 9)
        assert held.activations.shape == (min(9, start + 10), 3)
    every = [np.random.default_rng(start).normal(size=(10, 3)) for start in range(0, 1000, 10)]
    wanted = np.sort(np.concatenate(every).astype(np.float32), axis=0)[::-1][:9]
    np.testing.assert_array_equal(held.activations, wanted)


def test_filters_are_spread_over_those_that_answer() -> None:
    values = np.array([[1, 0, 2, -1, 3, 4, 5]], np.float32)
    zeros = np.zeros(values.shape, np.int64)
    peaks = LayerPeaks(values, zeros, zeros, zeros)
    assert peaks.spread(3) == (0, 4, 6)
    assert peaks.spread(20) == (0, 2, 4, 5, 6)
    dead = LayerPeaks(-values * 0, zeros, zeros, zeros)
    assert dead.spread(2) == (0, 6)
    assert LayerPeaks.nothing(5).spread(2) == (0, 4)


def test_an_image_that_cannot_be_read_is_left_out(
    network: ShownNetwork, pixels: np.ndarray, tmp_path: Path, task: ProgressTask
) -> None:
    from PIL import Image

    for index in range(3):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    images = FileImages(tuple(sorted(tmp_path.iterdir())))
    found = find_top_images(network, network.chosen(["relu"]), images, batch=2, task=task)
    assert (found.images, found.unreadable) == (2, 1)
    assert set(found.peaks["relu"].images.ravel().tolist()) == {0, 2}
    broken = FileImages((tmp_path / "1.png",))
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        find_top_images(network, network.chosen(["relu"]), broken, batch=2, task=task)


def test_the_next_image_stands_in_for_one_that_cannot_be_read(
    network: ShownNetwork, pixels: np.ndarray, tmp_path: Path
) -> None:
    from PIL import Image

    for index in range(16):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index:02}.png")
    for index in (0, 2, 3, 15):  # 0, 2, 4, 6, 9, 11, 13 and 15 are spread evenly
        (tmp_path / f"{index:02}.png").write_bytes(b"no image")
    files = tuple(sorted(tmp_path.iterdir()))
    covered = Covered(FileImages(files), network.preprocessing, None)
    chosen = spread_images(covered)
    assert chosen.indices == (1, 4, 6, 9, 11, 13)
    assert chosen.text == "6 of 16 images, spread evenly; 4 cannot be read"
    none = Covered(FileImages(files[:1]), network.preprocessing, None)
    with pytest.raises(DataError, match=r"cannot read .*00\.png"):
        spread_images(none)


def test_a_layer_that_gives_nan_is_told(pixels: np.ndarray) -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    nn.init.constant_(module[0].weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 gives NaN for image 0"):
        top_of(network_of(module, SIZE), pixels, ["1"], 4)


# --- occlusion


def brute_force(module: nn.Module, image: np.ndarray, answer: int, square: Square) -> np.ndarray:
    """Every square that lies on the image at the steps, and the last ones at its edges."""
    _, height, width = image.shape
    tops, lefts = (
        sorted({*range(0, size - square.side + 1, square.step), size - square.side})
        for size in (height, width)
    )
    with torch.no_grad():
        whole = float(module(torch.from_numpy(image[None]))[0, answer])
        drops: list[list[list[float]]] = [[[] for _ in range(width)] for _ in range(height)]
        for top in tops:
            for left in lefts:
                other = image.copy()
                other[:, top : top + square.side, left : left + square.side] = 0
                score = float(module(torch.from_numpy(other[None]))[0, answer])
                for row in range(top, top + square.side):
                    for column in range(left, left + square.side):
                        drops[row][column].append(whole - score)
    return np.array([[np.mean(each) for each in row] for row in drops])


@pytest.mark.parametrize("square", [Square(3, 2), Square(1, 1), Square(4, 3)])
def test_occlusion_by_brute_force(square: Square) -> None:
    module = seeded(Plain())
    image = noise(1, 8, 10)[0]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = module(torch.from_numpy(images)).numpy()
        return found

    found = occlusion_map(scores_of(run, "it"), image, 1, square)
    np.testing.assert_allclose(found, brute_force(module, image, 1, square), atol=1e-5)
    assert np.abs(found).max() > 0


def test_occlusion_needs_scores() -> None:
    scores = scores_of(lambda images: np.zeros((len(images), 2, 2), np.float32), "net")
    with pytest.raises(UsageError, match=r"net gives float32 \(1, 2, 2\): occlusion needs a score"):
        scores(noise(1, 4))
    numbers = scores_of(lambda images: np.zeros((len(images), 1), np.int64), "net")
    with pytest.raises(UsageError, match=r"net gives int64 \(1, 1\)"):
        numbers(noise(1, 4))


# --- maximisation


@pytest.mark.parametrize("name", ["conv1", "relu", "head"])
def test_maximisation_raises_the_activation(
    network: ShownNetwork, name: str, task: ProgressTask
) -> None:
    (layer,) = network.chosen([name])
    ascent = Ascent(steps=24)
    channels = tuple(range(layer.channels))
    made = maximise(network, layer, channels, seed=0, task=task, ascent=ascent)
    with torch.no_grad():
        every = network.up_to(layer, torch.from_numpy(made.images)).flatten(1)
        every = every.reshape(len(channels), layer.channels, -1)
    wanted = [float(every[at, channel].mean()) for at, channel in enumerate(channels)]
    np.testing.assert_allclose(made.after, wanted, atol=1e-5)
    rises = [after > before for before, after in zip(made.before, made.after, strict=True)]
    assert sum(rises) >= len(rises) - 1  # a filter that answers to nothing has no way up
    # Black and white are the ends.
    low = (0 - np.array(network.preprocessing.mean)) / network.preprocessing.std
    high = (1 - np.array(network.preprocessing.mean)) / network.preprocessing.std
    assert (made.images >= low[None, :, None, None] - 1e-5).all()
    assert (made.images <= high[None, :, None, None] + 1e-5).all()


def test_maximisation_is_of_its_seed(network: ShownNetwork, task: ProgressTask) -> None:
    (layer,) = network.chosen(["relu"])
    ascent = Ascent(steps=6)

    def made(seed: int, *channels: int) -> np.ndarray:
        found = maximise(network, layer, channels, seed=seed, task=task, ascent=ascent)
        return found.images

    np.testing.assert_array_equal(made(1, 0, 2), made(1, 0, 2))
    np.testing.assert_allclose(made(1, 2)[0], made(1, 0, 2)[1], atol=1e-5)
    assert np.abs(made(1, 0) - made(2, 0)).max() > 0.01

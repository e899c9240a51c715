"""How many images each step of an INT8 export looks at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.core.errors import DataError
from deploykit.core.specs import Preprocessing
from deploykit.graph import LoadedGraph, read_artifact
from deploykit.images import ArrayImages
from deploykit.precision.calibration.data import CalibrationData
from deploykit.precision.int8 import multiply_adds_of
from deploykit.precision.quantization.choice import most_sensitive
from deploykit.precision.quantization.noise import PROBE_MULTIPLY_ADDS, affordable_probes
from deploykit.precision.quantization.sampling import first_images, load_images
from tests.graphs import graph, normal, save

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import OnnxArtifact

NETWORK = """net (float[{batch}, 3, 8, 8] x) => (float[{batch}, 20] logits) {{
    [conv] a = Conv <pads = [1,1,1,1]> (x, w1)
    [pool] p = GlobalAveragePool (a)
    [flat] f = Flatten (p)
    [gemm] logits = Gemm <transB = 1> (f, w3)
}}"""
WEIGHTS = {"w1": normal(16, 3, 3, 3, seed=1), "w3": normal(20, 16, seed=3)}
CONV, GEMM = 16 * 8 * 8 * 27, 20 * 16


def artifact_in(folder: Path, batch: str | int = "N") -> OnnxArtifact:
    model = graph(NETWORK.format(batch=batch), WEIGHTS)
    return read_artifact(save(model, folder / "net.onnx"))


def data_of(count: int) -> CalibrationData:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return CalibrationData(ArrayImages(pixels), Preprocessing(crop=(8, 8)), range(count), 0)


def sizes(batches: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> list[int]:
    return [len(batch) for batch in batches]


@pytest.mark.parametrize(
    ("batch", "pixels", "expected"),
    [("N", 10**6, [1, 2, 5, 12]), ("N", 3 * 64, [1, 2]), ("N", 1, [1]), (6, 10**6, [6, 6, 6])],
)
def test_as_many_images_as_are_affordable(
    tmp_path: Path, batch: str | int, pixels: int, expected: list[int]
) -> None:
    loaded = load_images(data_of(20), range(20), artifact_in(tmp_path, batch), pixels)
    assert sizes(loaded) == expected


def test_many_small_images_are_not_one_batch(tmp_path: Path) -> None:
    loaded = load_images(data_of(150), range(150), artifact_in(tmp_path), 10**6)
    assert sizes(loaded) == [1, 2, 5, 56, 64, 22]


def test_a_fixed_batch_is_filled_even_where_fewer_are_affordable(tmp_path: Path) -> None:
    assert sizes(load_images(data_of(20), range(20), artifact_in(tmp_path, 6), 1)) == [6]


def test_fewer_images_than_a_fixed_batch(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^4 held-out images are too few for the model's batch of 6\n.* least 30 "
    ):
        load_images(data_of(4), range(4), artifact_in(tmp_path, 6), 10**6)


@pytest.mark.parametrize(
    ("batch", "count", "expected"),
    [
        ("N", 8, [1, 2, 5]),
        ("N", 4, [1, 2, 1]),
        ("N", 1, [1]),
        ("N", 99, [1, 2, 5, 12]),
        (6, 13, [6, 6]),
        (6, 1, [6]),
    ],
)
def test_the_first_images_and_their_logits(
    tmp_path: Path, batch: str | int, count: int, expected: list[int]
) -> None:
    artifact = artifact_in(tmp_path, batch)
    loaded = load_images(data_of(20), range(20), artifact, 10**6)
    numbers = [{"y": np.arange(len(part), dtype=np.float32)[:, None]} for part in loaded]
    found, answers = first_images(loaded, numbers, count, artifact)
    assert sizes(found) == [len(one["y"]) for one in answers] == expected
    together = np.concatenate(loaded)[: sum(expected)]
    np.testing.assert_array_equal(np.concatenate(found), together)


@pytest.mark.parametrize("batch", ["N", 6])
def test_multiply_adds_are_of_one_image(tmp_path: Path, batch: str | int) -> None:
    assert multiply_adds_of(LoadedGraph(artifact_in(tmp_path, batch)), (8, 8)) == {
        "conv": CONV,
        "gemm": GEMM,
    }


def test_open_images_are_counted_at_the_size_that_is_given(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    text = NETWORK.format(batch="N").replace("float[N, 3, 8, 8]", "float[N, 3, H, W]")
    open_graph = replace(artifact, path=save(graph(text, WEIGHTS), tmp_path / "open.onnx"))
    assert multiply_adds_of(LoadedGraph(open_graph), (8, 16)) == {
        "conv": 2 * CONV,
        "gemm": GEMM,
    }


def test_a_graph_whose_shapes_cannot_be_told_is_not_probed(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path)
    path = tmp_path / "open.onnx"
    text = NETWORK.format(batch="N").replace("float[N, 3, 8, 8]", "float[A, B, C, D, E]")
    open_graph = replace(artifact, path=save(graph(text, WEIGHTS), path))
    assert multiply_adds_of(LoadedGraph(open_graph), (8, 8)) == {}
    assert affordable_probes({}, insist=True) == 0


def test_probes_fit_in_their_budget() -> None:
    costs = {"a": 3_000_000, "b": 2_000_000}
    count = affordable_probes(costs, insist=False)
    assert count == PROBE_MULTIPLY_ADDS // (2 * 5_000_000)
    heavy = dict.fromkeys(costs, PROBE_MULTIPLY_ADDS)
    assert affordable_probes(heavy, insist=False) == 0
    assert affordable_probes(heavy, insist=True) == 2


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"a": 1.0, "b": 2.0, "c": 3.0}, ("c", "b")),
        ({"a": 1.0, "b": 0.0, "c": -1.0}, ("a",)),
        ({"a": 0.0, "b": -0.5}, ()),
        ({"large": 9.0, "a": 0.1}, ("a",)),
        ({}, ()),
    ],
)
def test_the_most_sensitive_layers_fit_in_an_eighth(
    gains: dict[str, float], expected: tuple[str, ...]
) -> None:
    costs = {"a": 5, "b": 5, "c": 5, "large": 85}
    assert most_sensitive(gains, costs) == expected

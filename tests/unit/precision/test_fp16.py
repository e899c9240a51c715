from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from deploykit.backends.ort import OrtRunner
from deploykit.core.artifacts import OnnxArtifact, sha256_of
from deploykit.core.errors import ModelFileError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import TensorSpec
from deploykit.graph import Extremes, LoadedGraph, read_artifact, read_model, tidy, write_model
from deploykit.precision.fp16 import HEADROOM, HalfResult, convert_to_fp16, largest_magnitudes
from tests.graphs import graph, normal, run_ort, run_reference, save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Updates:
    """A progress task that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None, str]] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:
        self.seen.append((done, total, detail))


def fp32(source: onnx.ModelProto, folder: Path) -> OnnxArtifact:
    model = read_model(save(source, folder / "source.onnx"))
    tidy(model, rename=False)
    return write_model(model, folder / "fp32.onnx", Precision.FP32, ("origin",))


def convert(
    artifact: OnnxArtifact, images: Sequence[NDArray[np.float32]], path: Path
) -> HalfResult:
    with SilentProgress().step("fp16") as task:
        return convert_to_fp16(
            LoadedGraph(artifact), images, path, open_runner=OrtRunner, task=task
        )


def network(scale: float) -> onnx.ModelProto:
    """A convolution, a factor up and the same factor down, and a classifier."""
    return graph(
        """net (float[batch,3,8,8] x) => (float[batch,5] y) {
            c = Conv <pads = [1,1,1,1]> (x, w)
            u = Mul (c, up)
            d = Mul (u, down)
            l = LRN <size = 3> (d)
            p = GlobalAveragePool (l)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, m)
        }""",
        {
            "w": normal(4, 3, 3, 3, scale=0.2),
            "m": normal(5, 4),
            "up": np.full((1, 1, 1, 1), scale, np.float32),
            "down": np.full((1, 1, 1, 1), 1 / scale, np.float32),
        },
    )


def test_the_artifact_continues_the_chain(tmp_path: Path) -> None:
    source = fp32(network(2.0), tmp_path)
    path = tmp_path / "fp16.onnx"
    result = convert(source, [normal(2, 3, 8, 8)], path)
    assert result.artifact == read_artifact(path)
    assert result.artifact.parents == (source.sha256, "origin")
    assert result.artifact.precision is Precision.FP16
    assert result.artifact.inputs == source.inputs
    assert result.artifact.outputs == source.outputs
    assert sha256_of(source.path) == source.sha256


def test_only_what_must_be_stays_fp32(tmp_path: Path) -> None:
    images = [normal(2, 3, 8, 8)]
    result = convert(fp32(network(2.0), tmp_path), images, tmp_path / "h.onnx")
    assert result.kept_fp32 == {"LRN": "its intermediate squares overflow"}
    assert (result.halved, result.kept_heavy) == (6, 0)
    assert result.to_dict() == {
        "halved": 6,
        "kept_fp32": {"LRN": "its intermediate squares overflow"},
        "kept_heavy": 0,
    }


def test_activations_beyond_fp16_keep_their_nodes_and_the_result_right(tmp_path: Path) -> None:
    images = normal(4, 3, 8, 8)
    source = fp32(network(3e4), tmp_path)
    result = convert(source, [images[:2], images[2:]], tmp_path / "h.onnx")
    assert set(result.kept_fp32) == {"Mul", "Mul_2", "LRN"}
    expected = run_ort(onnx.load(source.path), {"x": images})["y"]
    got = run_reference(onnx.load(result.artifact.path), {"x": images})["y"]
    reference = run_reference(onnx.load(source.path), {"x": images})["y"]
    np.testing.assert_allclose(got, reference, atol=1e-2 * float(np.abs(expected).max()))


def test_a_heavy_node_that_stays_is_counted(tmp_path: Path) -> None:
    source = graph(
        "g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) { y = Conv (x, w) }",
        {"w": np.full((4, 3, 1, 1), 7e4, np.float32)},
    )
    result = convert(fp32(source, tmp_path), [normal(1, 3, 8, 8)], tmp_path / "h.onnx")
    assert (result.halved, result.kept_heavy) == (0, 1)
    assert result.kept_fp32 == {"Conv": "w reaches 7e+04"}


def test_every_image_counts(tmp_path: Path) -> None:
    source = fp32(graph("g (float[batch,2] x) => (float[batch,2] y) { y = Neg (x) }"), tmp_path)
    low, high = np.ones((3, 2), np.float32), np.array([[1, -3e4]], np.float32)
    with_high = convert(source, [low, high, low], tmp_path / "a.onnx")
    without = convert(source, [low, low], tmp_path / "b.onnx")
    assert with_high.kept_fp32 == {"Neg": "x reaches 3e+04"}
    assert without.kept_fp32 == {}
    assert HEADROOM * 3e4 > 65504


def test_infinite_activations_in_fp32_are_not_blamed_on_fp16(tmp_path: Path) -> None:
    source = graph(
        """g (float[batch,2] x) => (float[batch,2] y) {
            fine = Relu (x)
            broken = Log (fine)
            y = Add (broken, x)
        }"""
    )
    path = tmp_path / "h.onnx"
    with pytest.raises(
        ValidationError, match=r"^broken is NaN or infinite already in FP32\ncheck the weights"
    ):
        convert(fp32(source, tmp_path), [np.zeros((1, 2), np.float32)], path)
    assert not path.exists()


def test_images_with_nan_are_found_as_such(tmp_path: Path) -> None:
    source = fp32(graph("g (float[batch,2] x) => (float[batch,2] y) { y = Neg (x) }"), tmp_path)
    with pytest.raises(ValidationError, match=r"^x is NaN or infinite already in FP32"):
        convert(source, [np.full((1, 2), np.nan, np.float32)], tmp_path / "h.onnx")


def test_a_damaged_artifact_is_refused(tmp_path: Path) -> None:
    source = fp32(network(2.0), tmp_path)
    source.path.write_bytes(source.path.read_bytes()[:100])
    with pytest.raises(ModelFileError, match=r"fp32\.onnx is truncated or not an ONNX file"):
        convert(source, [normal(1, 3, 8, 8)], tmp_path / "h.onnx")


class Scripted:
    """A runner that doubles its input and returns nothing of interest beside."""

    def __init__(self, batch: int | str) -> None:
        self.inputs = (TensorSpec("x", "float32", (batch, 2)),)
        self.batches: list[int] = []

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(feeds["x"]))
        found = {"most": feeds["x"].max() * 2, "least": feeds["x"].min() * 2, "broken": 0.0}
        return {name: np.array(value, np.float32) for name, value in found.items()}


@pytest.mark.parametrize(("batch", "batches"), [("batch", [1, 1, 1]), (2, [2, 1])])
def test_magnitudes_are_absolute_and_over_all_images(batch: int | str, batches: list[int]) -> None:
    images = [np.array([[1, -5], [2, 3]], np.float32), np.array([[4, 0]], np.float32)]
    runner, task = Scripted(batch), Updates()
    extremes = {"y": Extremes("most", "least", "broken")}
    found = largest_magnitudes(runner, images, extremes, task)  # type: ignore[arg-type]  # enough of one
    assert found.amax == {"x": 5.0, "y": 10.0}
    assert runner.batches == batches
    assert [done for done, *_ in task.seen] == list(range(1, len(batches) + 1))
    assert {total for _, total, _ in task.seen} == {len(batches)}


@pytest.mark.parametrize("batch", ["N", "2"])
def test_outputs_with_every_value_rounded_are_kept_by_batch(batch: str, tmp_path: Path) -> None:
    shape = f"float[{batch},3,4,4]"
    source = graph(
        f"g ({shape} x) => ({shape} y) {{ [scale] y = Mul (x, third) }}",
        {"third": np.array(1 / 3, np.float32)},
    )
    images = [normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)]
    result = convert(fp32(source, tmp_path), images, tmp_path / "half.onnx")
    for got, given in zip(result.outputs or (), images, strict=True):
        expected = given.astype(np.float16) * np.float16(1 / 3)
        assert np.array_equal(got, expected.astype(np.float32))

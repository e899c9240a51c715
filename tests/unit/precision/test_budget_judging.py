"""The loss of a graph on images, counted again by numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.comparison.reference import Reference
from deploykit.core.errors import DataError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.specs import Preprocessing
from deploykit.graph import LoadedGraph, read_model, tidy, write_model
from deploykit.heads.multiclass import MULTICLASS
from deploykit.heads.raw import RAW
from deploykit.images import ArrayImages, FileImages
from deploykit.precision.budget.judging import Judge, digest_of_judges, labels_of
from deploykit.precision.budget.request import Budget, Judges
from tests.graphs import graph, normal, run_ort, save

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.heads import Head

    Floats = NDArray[np.float32]

COUNT = 150
CLASSES = 5
PLAIN = Preprocessing(resize=4, crop=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
NETWORK = """net (float[N, 3, 4, 4] x) => (float[N, 5] y) {
    [conv] a = Conv (x, w1)
    [relu] b = Relu (a)
    [flat] f = Flatten (b)
    [last] y = Gemm <transB = 1> (f, w2)
}"""
FIXED = NETWORK.replace("N,", "4,")


def network(folder: Path, seed: int, text: str = NETWORK) -> LoadedGraph:
    """The same network with weights that are a little different for each seed."""
    first, second = normal(8, 3, 3, 3), normal(CLASSES, 32, seed=1)
    first = first + normal(8, 3, 3, 3, seed=seed, scale=0.1) * bool(seed)
    model = read_model(save(graph(text, {"w1": first, "w2": second}), folder / "raw.onnx"))
    tidy(model, rename=False)
    return LoadedGraph(write_model(model, folder / f"{seed}.onnx", Precision.FP32), model)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (COUNT, 4, 4, 3), np.uint8)


def answers(graph_: LoadedGraph, pixels: NDArray[np.uint8]) -> Floats:
    inputs = ((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    found = run_ort(graph_.artifact.path.read_bytes(), {"x": inputs})
    return np.asarray(found["y"], np.float32)


def reference_of(graph_: LoadedGraph, head: Head = MULTICLASS) -> Reference:
    outputs: Any = [np.zeros((2, CLASSES), np.float32)]
    return Reference(
        graph_, [], outputs, "torch", None, {"name": "net"}, {}, PLAIN, head=head  # type: ignore[arg-type]  # nobody reads the report
    )  # fmt: skip


def judged(folder: Path, reference: Reference, source: ArrayImages, candidate: LoadedGraph) -> Any:
    chosen = Judges(source, range(100))
    judge = Judge(reference, chosen, source.labels, folder)
    with SilentProgress().step("judge") as task:
        judge.prepare(task)
        return judge.loss_of(candidate, task, "one")


def test_changed_answers_are_counted(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    first, second = network(tmp_path, 0), network(tmp_path, 7)
    found = judged(tmp_path, reference_of(first), ArrayImages(pixels), second)
    one, other = (answers(each, pixels)[:100].argmax(1) for each in (first, second))
    assert (found.measure, found.images) == ("answers", 100)
    assert found.lost == (one != other).sum() > 0
    same = judged(tmp_path, reference_of(first), ArrayImages(pixels), first)
    assert same.lost == 0


def test_with_labels_lost_and_gained_images_are_counted(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    first, second = network(tmp_path, 0), network(tmp_path, 7)
    # FP32 gets two thirds right, and the other what it has of the rest.
    one, other = (answers(each, pixels).argmax(1) for each in (first, second))
    labels = np.where(np.arange(COUNT) % 3 == 0, other, one).astype(np.int64)
    found = judged(tmp_path, reference_of(first), ArrayImages(pixels, labels), second)
    was, now = (answers(each, pixels)[:100].argmax(1) == labels[:100] for each in (first, second))
    assert found.measure == "top1"
    assert (found.lost, found.gained) == ((was & ~now).sum(), (now & ~was).sum())
    assert found.lost > 0
    assert found.gained > 0


def test_other_heads_lose_by_their_own_measure(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    first, second = network(tmp_path, 0), network(tmp_path, 7)
    found = judged(tmp_path, reference_of(first, RAW), ArrayImages(pixels), second)
    one, other = (answers(each, pixels)[:100] for each in (first, second))
    error = np.sqrt(((one - other) ** 2).mean(1) / (one**2).mean(1))
    assert found.measure == "error"
    assert found.lost == pytest.approx(np.minimum(error, 1).sum(), rel=1e-5)


def test_a_fixed_batch_is_filled_up_and_the_filling_is_not_counted(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    (tmp_path / "fixed").mkdir()
    first, second = (network(tmp_path / "fixed", seed, FIXED) for seed in (0, 7))
    open_ones = [network(tmp_path, seed) for seed in (0, 7)]
    source = ArrayImages(pixels[:98])
    chosen = Judges(source, range(98))
    judge = Judge(reference_of(first), chosen, None, tmp_path)
    with SilentProgress().step("judge") as task:
        judge.prepare(task)
        found = judge.loss_of(second, task, "one")
    one, other = (answers(each, pixels[:98]).argmax(1) for each in open_ones)
    assert (found.images, found.lost) == (98, (one != other).sum())


def test_no_image_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    source: Any = FileImages((tmp_path / "broken.png",))
    with pytest.raises(ValidationError, match="none of the images that judge the loss can be read"):
        judged_files(tmp_path, source)


def judged_files(folder: Path, source: Any) -> None:
    first = network(folder, 0)
    judge = Judge(reference_of(first), Judges(source, [0]), None, folder)
    with SilentProgress().step("judge") as task:
        judge.prepare(task)
        judge.loss_of(first, task, "one")


def test_an_output_of_another_shape_is_an_error(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    first = network(tmp_path, 0)
    text = NETWORK.replace("[N, 5] y", "[N, 32] y").replace(
        "[last] y = Gemm <transB = 1> (f, w2)", "[last] y = Relu (f)"
    )
    (tmp_path / "wide").mkdir()
    other = network(tmp_path / "wide", 0, text)
    with pytest.raises(ValidationError, match="output 'y' has shape"):
        judged(tmp_path, reference_of(first), ArrayImages(pixels), other)


def labelled(folder: Path, labels: NDArray[np.int64]) -> tuple[Budget, Judges]:
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=labels)
    judges = Judges(ArrayImages(pixels, labels), range(len(labels)))
    return Budget(0.1, data=folder / "data.npz"), judges


def test_labels_must_be_the_models_classes(tmp_path: Path) -> None:
    reference = reference_of(network(tmp_path, 0))
    budget, judges = labelled(tmp_path, np.array([0, 4, 2]))
    found = labels_of(budget, judges, reference, None)
    assert found is not None
    assert found.tolist() == [0, 4, 2]
    budget, judges = labelled(tmp_path, np.array([0, 5]))
    with pytest.raises(DataError, match="has the label 5, the model tells 5 classes apart"):
        labels_of(budget, judges, reference, None)
    assert labels_of(budget, judges, reference_of(network(tmp_path, 0), RAW), None) is None
    assert labels_of(Budget(0.1), judges, reference, None) is None


def test_folders_of_other_classes_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / "1.png")
    reference = reference_of(network(tmp_path, 0))
    from deploykit.images import open_images

    judges = Judges(open_images(tmp_path / "data"), range(2))
    with pytest.raises(DataError, match="cannot be numbered as the model's classes"):
        labels_of(Budget(0.1, data=tmp_path / "data"), judges, reference, None)


def test_the_digest_is_of_images_order_and_labels(pixels: NDArray[np.uint8]) -> None:
    source = ArrayImages(pixels)
    labels = np.zeros(COUNT, np.int64)
    digests = {
        digest_of_judges(Judges(source, [1, 2]), None),
        digest_of_judges(Judges(source, [2, 1]), None),
        digest_of_judges(Judges(source, [1, 2]), labels),
        digest_of_judges(Judges(ArrayImages(pixels + 1), [1, 2]), None),
    }
    assert len(digests) == 4
    assert digest_of_judges(Judges(ArrayImages(pixels), [1, 2]), None) in digests

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError, UsageError, ValidationError
from deploykit.core.specs import Preprocessing
from deploykit.heads.multiclass import Prediction, best_classes
from deploykit.runtime.classifier import PreparedImages, require_top_k
from tests.bundles import PLAIN
from tests.graphs import normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STEPS = Preprocessing(crop=(24, 20), resize=30)
EXPECTED = (
    "expected paths, encoded bytes, Pillow images or uint8 arrays "
    r"\(H, W, 3\), \(H, W, 1\) or \(H, W\)"
)


def prepared(given: Sequence[Any], steps: Preprocessing = STEPS) -> list[NDArray[np.float32]]:
    found = []
    for each in PreparedImages(given, steps).prepared(ahead=2):
        assert not isinstance(each, DataError), each
        found.append(each)
    return found


def photograph() -> Path:
    source = images.sample_images()
    assert isinstance(source, images.FileImages)
    return source.paths[0]


# Images


def test_every_form_of_an_image_is_prepared_alike() -> None:
    path = photograph()
    pixels = np.asarray(images.decode(path))
    expected = images.preprocess(images.decode(path), STEPS)
    forms = [path, str(path), path.read_bytes(), Image.open(path), pixels, Image.fromarray(pixels)]
    for each in (*prepared(forms), *prepared(forms[:1])):
        np.testing.assert_array_equal(each, expected)


def test_a_batch_of_pixels_is_a_list_of_images() -> None:
    pixels = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in (0, 51, 255)])
    found = prepared(pixels, PLAIN)  # type: ignore[arg-type]  # iterates as a sequence
    assert [float(each.mean()) for each in found] == pytest.approx([0.0, 0.2, 1.0])


def test_grey_pixels_are_three_equal_colours() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (found,) = prepared([grey], PLAIN)
    np.testing.assert_array_equal(found, np.stack([grey.astype(np.float32) / 255] * 3))
    (again,) = prepared([grey[..., None]], PLAIN)
    np.testing.assert_array_equal(again, found)


def test_pixels_in_any_order_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (found,) = prepared([np.asfortranarray(pixels)[::-1]], PLAIN)
    expected = pixels[::-1].transpose(2, 0, 1).astype(np.float32) / 255
    np.testing.assert_array_equal(found, expected)


def test_one_image_object_many_times() -> None:
    """Pillow would read one file from several threads at once."""
    image = Image.open(photograph())
    first, *others = prepared([image] * 16)
    assert all(np.array_equal(first, other) for other in others)


def test_a_pillow_image_is_turned_as_its_file_is(tmp_path: Path) -> None:
    sideways = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by 90 degrees
    sideways.save(tmp_path / "turned.png", exif=exif)
    of_file, of_image = prepared(
        [tmp_path / "turned.png", Image.open(tmp_path / "turned.png")], PLAIN
    )
    np.testing.assert_array_equal(of_file, of_image)
    turned = np.rot90(np.asarray(sideways), -1).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(of_image, turned)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_pillow_images_of_any_mode(mode: str) -> None:
    (found,) = prepared([Image.new(mode, (8, 8))], PLAIN)
    assert found.shape == (3, 8, 8)


def truncated(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda folder: folder / "missing.jpg", "cannot read .*missing.jpg\nFileNotFoundError"),
        (lambda folder: folder, "cannot read .*\nIsADirectoryError"),
        (lambda _: b"no image at all", "cannot read the image\nUnidentifiedImageError"),
        (lambda _: truncated(photograph()), "cannot read the image\nOSError: .*truncated"),
        (
            lambda _: Image.open(io.BytesIO(truncated(photograph()))),
            "cannot read the image\nOSError: .*truncated",
        ),
        (lambda _: Image.new("F", (8, 8)), "cannot read the image\nValueError: floating-point"),
        (lambda _: np.zeros((1, 9000, 3), np.uint8), "9000 x 1 would be scaled to"),
    ],
    ids=["missing", "folder", "junk", "truncated", "lazily truncated", "float", "narrow"],
)
def test_a_bad_image_gives_its_error_in_its_place(tmp_path: Path, bad: Any, reason: str) -> None:
    good = np.zeros((40, 40, 3), np.uint8)
    wide = Preprocessing(crop=(8, 8), resize=256)
    first, error, last = PreparedImages([good, bad(tmp_path), good], wide).prepared(ahead=4)
    assert not isinstance(first, DataError)
    assert not isinstance(last, DataError)
    with pytest.raises(DataError, match=rf"^image 1: .*{reason}"):
        raise error  # type: ignore[misc]  # an error is expected here


@pytest.mark.parametrize(
    "alone",
    [
        "cat.jpg",
        Path("cat.jpg"),
        b"bytes",
        Image.new("RGB", (4, 4)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((8, 8), np.uint8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_single_image_has_to_be_in_a_list(alone: Any) -> None:
    with pytest.raises(UsageError, match=r"taken one by one\na single one: predict\(image\)"):
        PreparedImages(alone, STEPS)


def test_something_else_than_a_list() -> None:
    with pytest.raises(UsageError, match=rf"predict\(\) was given int\n{EXPECTED}, in a list"):
        PreparedImages(7, STEPS)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (None, "of type NoneType"),
        (["cat.jpg"], "of type list"),
        (torch.zeros(3, 8, 8), "of type Tensor"),
        (np.zeros((8, 8, 3), np.float32), r"float32 \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \(3, 8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \(8, 8, 4\)"),
        (np.zeros((8,), np.uint8), r"uint8 \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \(0, 8, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"uint8 \(1, 8, 8, 3\)"),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused_before_any_work(bad: Any, what: str) -> None:
    with pytest.raises(UsageError, match=rf"^image 1 is {what}\n{EXPECTED}$"):
        PreparedImages(["cat.jpg", bad], STEPS)


# Classes

LABELS = ("cat", "dog", "bird")


def test_the_likeliest_classes_with_the_softmax_of_torch() -> None:
    logits = normal(4, 7, scale=5)
    chances = torch.softmax(torch.from_numpy(logits).double(), dim=1)
    expected = torch.topk(chances, 3, dim=1)
    found = best_classes(logits, None, 3)
    assert [[each.index for each in row] for row in found] == expected.indices.tolist()
    probabilities = [[each.probability for each in row] for row in found]
    found_all = np.array(probabilities, np.float64)
    np.testing.assert_allclose(found_all, expected.values.numpy(), rtol=1e-12)
    assert all(each.logit == logits[i, each.index] for i, row in enumerate(found) for each in row)


def test_labels_go_by_index() -> None:
    ((first, second),) = best_classes(np.array([[0.0, 1.0, 2.0]], np.float32), LABELS, 2)
    assert first == Prediction(2, "bird", first.probability, 2.0)
    assert first.probability == pytest.approx(0.6652409557748219)
    assert second.label == "dog"


def test_without_labels_and_with_too_few() -> None:
    logits = np.array([[0.0, 1.0, 2.0]], np.float32)
    assert best_classes(logits, None, 1)[0][0].label is None
    assert best_classes(logits, LABELS[:2], 1)[0][0].label is None


def test_more_classes_than_there_are() -> None:
    assert len(best_classes(normal(1, 3), LABELS, 9)[0]) == 3


def test_equal_logits_keep_their_order() -> None:
    (row,) = best_classes(np.zeros((1, 4), np.float32), None, 4)
    assert [each.index for each in row] == [0, 1, 2, 3]


def test_huge_logits_do_not_overflow() -> None:
    (row,) = best_classes(np.array([[3e38, -3e38]], np.float32), None, 2)
    assert [each.probability for each in row] == [1.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_no_answer(value: float) -> None:
    with pytest.raises(ValidationError, match=r"logits that are NaN or infinite\nself_test\(\)"):
        best_classes(np.array([[0.0, value]], np.float32), None, 1)


@pytest.mark.parametrize("top_k", [0, -1])
def test_fewer_than_one_class(top_k: int) -> None:
    with pytest.raises(UsageError, match=rf"top_k={top_k} leaves no prediction\nexpected 1 or"):
        require_top_k(top_k)

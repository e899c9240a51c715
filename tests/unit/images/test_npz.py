from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit import images
from deploykit.core.errors import DataError
from deploykit.core.specs import Preprocessing
from deploykit.images import batches, open_images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 1])


def stored(folder: Path, **arrays: NDArray[Any]) -> Path:
    file = folder / "set.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    return file


def test_images_labels_and_classes_are_read(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "owl"])
    source = open_images(stored(tmp_path, images=PIXELS, labels=LABELS, classes=names))
    assert len(source) == 6
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == LABELS.tolist()
    assert source.classes == ("cat", "dog", "owl")
    loaded = source.load(3)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), PIXELS[3])


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
def test_labels_of_any_whole_type_are_read(tmp_path: Path, kind: type[np.generic]) -> None:
    source = open_images(stored(tmp_path, images=PIXELS, labels=LABELS.astype(kind)))
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == LABELS.tolist()
    assert source.classes is None


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    source = open_images(stored(tmp_path, images=PIXELS))
    assert source.labels is None
    assert source.classes is None


def test_upper_case_suffix_and_compression_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=PIXELS)
    packed = (tmp_path / "set.npz").rename(tmp_path / "SET.NPZ")
    np.testing.assert_array_equal(np.asarray(open_images(packed).load(0)), PIXELS[0])


def test_batches_equal_the_arrays(tmp_path: Path) -> None:
    steps = Preprocessing(crop=(5, 4), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    ((batch, _),) = batches(open_images(stored(tmp_path, images=PIXELS)), steps, 6)
    expected = (PIXELS.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(batch, expected, atol=1e-6)


def test_digest_follows_content_and_not_compression(tmp_path: Path) -> None:
    plain = open_images(stored(tmp_path, images=PIXELS, labels=LABELS)).digest
    packed = tmp_path / "packed.npz"
    np.savez_compressed(packed, labels=LABELS.astype(np.uint8), images=np.asfortranarray(PIXELS))
    assert open_images(packed).digest == plain


def test_digest_changes_with_pixels_shape_order_and_labels(tmp_path: Path) -> None:
    other = PIXELS.copy()
    other[0, 0, 0, 0] ^= 1
    contents: list[dict[str, NDArray[Any]]] = [
        {"images": PIXELS},
        {"images": other},
        {"images": PIXELS[::-1]},
        {"images": PIXELS.reshape(6, 4, 5, 3)},
        {"images": PIXELS, "labels": LABELS},
        {"images": PIXELS, "labels": LABELS[::-1]},
    ]
    digests = {open_images(stored(tmp_path, **arrays)).digest for arrays in contents}
    assert len(digests) == len(contents)


def test_images_and_labels_cannot_be_changed(tmp_path: Path) -> None:
    source = open_images(stored(tmp_path, images=PIXELS, labels=LABELS))
    assert isinstance(source, images.sets.ArrayImages)
    assert source.labels is not None
    assert not source.pixels.flags.writeable
    assert not source.labels.flags.writeable


def test_a_file_without_images_lists_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no `images`, it has: x, y\nexpected `images` uint8"):
        open_images(stored(tmp_path, x=PIXELS, y=LABELS))


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no `images`, it has: nothing\nexpected"):
        open_images(stored(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        PIXELS.astype(np.float32),
        PIXELS[..., 0],
        PIXELS.transpose(0, 3, 1, 2),
        PIXELS[:0],
        PIXELS[:, :0],
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_wrong_images_are_refused(tmp_path: Path, wrong: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=rf"`images` of .* is {wrong.dtype} \(.*\)\nexpected"):
        open_images(stored(tmp_path, images=wrong))


@pytest.mark.parametrize(
    "wrong",
    [LABELS[:5], LABELS.astype(np.float32), LABELS[:, None], LABELS.astype(str)],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_wrong_labels_are_refused(tmp_path: Path, wrong: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"`labels` of .* \(.*\) for 6 images\nexpected"):
        open_images(stored(tmp_path, images=PIXELS, labels=wrong))


@pytest.mark.parametrize("wrong", [np.arange(3), np.array("cat"), np.array([b"cat", b"dog"])])
def test_wrong_classes_are_refused(tmp_path: Path, wrong: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"`classes` of .* is .* \(.*\)\nexpected"):
        open_images(stored(tmp_path, images=PIXELS, labels=LABELS, classes=wrong))


@pytest.mark.parametrize("label", [-1, 2**63])
def test_labels_below_zero_are_refused(tmp_path: Path, label: int) -> None:
    labels = np.array([0, 0, label, 0, 0, 0], np.uint64 if label > 0 else np.int64)
    with pytest.raises(DataError, match=r"image 2 of .* has label -\d+\nexpected 0 up"):
        open_images(stored(tmp_path, images=PIXELS, labels=labels))


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    file = stored(tmp_path, images=PIXELS, labels=LABELS, classes=np.array(["cat", "dog"]))
    with pytest.raises(
        DataError, match=r"image 2 of .* has label 2\nexpected 0 to 1, one of 2 classes"
    ):
        open_images(file)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    objects = np.empty(6, object)
    file = tmp_path / "set.npz"
    np.savez(file, images=objects)
    with pytest.raises(
        DataError, match=r"cannot read .*set\.npz: ValueError: .*pickle.*\nexpected"
    ):
        open_images(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x93NUMPY"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "set.npz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*set\.npz: \w+: .*\nexpected `images`"):
        open_images(file)


@pytest.mark.parametrize("place", [2, 60, 200, 300])
def test_damage_inside_is_refused(tmp_path: Path, place: int) -> None:
    file = stored(tmp_path, images=PIXELS)
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz"):
        open_images(file)


def test_a_bare_array_under_the_wrong_name_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", PIXELS)
    file = (tmp_path / "set.npy").rename(tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"cannot read .*set\.npz: .*\nexpected `images`"):
        open_images(file)

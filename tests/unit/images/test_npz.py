from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit import images
from deploykit.core.errors import DataError
from deploykit.core.specs import Preprocessing
from deploykit.images import array_files, batches, open_images

if TYPE_CHECKING:
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
    assert not source.pixels[0].flags.writeable
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
        PIXELS[0],
        PIXELS[0, ..., :1],
        PIXELS[..., :2],
        PIXELS.transpose(0, 3, 1, 2),
        PIXELS[:0],
        PIXELS[:, :0],
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_wrong_images_are_refused(tmp_path: Path, wrong: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=rf"`images` of .* is {wrong.dtype} \(.*\)\nexpected"):
        open_images(stored(tmp_path, images=wrong))


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS[..., :1]])
def test_grey_images_have_one_channel_or_no_axis_for_it(
    tmp_path: Path, pixels: NDArray[Any]
) -> None:
    np.save(tmp_path / "set.npy", pixels)
    for found in (open_images(stored(tmp_path, images=pixels)), open_images(tmp_path / "set.npy")):
        for index, one in enumerate(PIXELS[..., 0]):
            loaded = np.asarray(found.load(index))
            np.testing.assert_array_equal(loaded, np.stack([one] * 3, axis=-1))


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


# --- pixels are read when they are used


PACKED = {"plain": np.savez, "packed": np.savez_compressed}


@pytest.fixture
def unpacks_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "UNPACKED_IN_MEMORY_BYTES", 0)


@pytest.mark.usefixtures("unpacks_to_files")
@pytest.mark.parametrize("save", PACKED.values(), ids=PACKED)
def test_pixels_stay_in_a_file(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "set.npz", labels=LABELS, images=PIXELS)
    source = open_images(tmp_path / "set.npz")
    assert isinstance(source, images.ArrayImages)
    assert isinstance(source.pixels, array_files.PixelFile)
    assert len(source) == 6
    in_memory = images.ArrayImages(PIXELS, LABELS)
    assert source.digest == in_memory.digest
    for index in (3, 0, 5):
        np.testing.assert_array_equal(np.asarray(source.load(index)), PIXELS[index])
    with pytest.raises(IndexError, match="image 6 was asked of 6"):
        source.load(6)


def test_a_large_compressed_file_is_unpacked_once(tmp_path: Path) -> None:
    pixels = np.zeros((3, 4096, 2048, 3), np.uint8)
    pixels[1, 5, 6] = 7
    np.savez_compressed(tmp_path / "set.npz", images=pixels)
    source = open_images(tmp_path / "set.npz")
    (tmp_path / "set.npz").unlink()
    assert isinstance(source, images.ArrayImages)
    assert isinstance(source.pixels, array_files.PixelFile)
    np.testing.assert_array_equal(source.pixels[1], pixels[1])


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 9, 8, 3), np.uint8)
    source = open_images(stored(tmp_path, images=pixels))
    order = np.random.default_rng(2).integers(0, 40, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: np.asarray(source.load(index)), order))
    np.testing.assert_array_equal(np.stack(found), pixels[order])


def test_a_file_that_becomes_shorter_is_refused_at_the_image(tmp_path: Path) -> None:
    file = stored(tmp_path, images=PIXELS)
    source = open_images(file)
    os.truncate(file, 400)
    source.load(0)
    with pytest.raises(
        DataError, match=r"^image 5 of .*set\.npz is cut off: .*\nleave it as it is"
    ):
        source.load(5)
    with pytest.raises(DataError, match="is cut off"):
        assert source.digest


def test_a_file_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    opened = (tmp_path / "pixels").open("wb")
    opened.write(PIXELS.tobytes())
    pixels = array_files.PixelFile(opened, 0, PIXELS.shape, tmp_path / "pixels")
    with pytest.raises(DataError, match=r"^cannot read image 1 of .*pixels: .*Bad file desc"):
        pixels[1]


@pytest.mark.usefixtures("unpacks_to_files")
def test_no_room_for_the_unpacked_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=PIXELS)
    said = r"^cannot unpack the 360 bytes of pixels of .*npz .*No space left.*\nset TMPDIR to a"
    full = Path("/dev/full").open("wb")  # noqa: SIM115 - closed by what is tested
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
    with pytest.raises(DataError, match=said):
        open_images(tmp_path / "set.npz")

    def refused() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(DataError, match=said):
        open_images(tmp_path / "set.npz")


@pytest.mark.usefixtures("unpacks_to_files")
def test_damage_in_what_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=PIXELS)
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[300] ^= 0xFF
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*set\.npz"):
        open_images(tmp_path / "set.npz")


def test_a_header_that_promises_more_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", PIXELS)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", (tmp_path / "images.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"\(6, 5, 4, 3\) takes 360 bytes, there are 359"):
        open_images(tmp_path / "set.npz")


# --- an array of images alone


@pytest.mark.parametrize("pixels", [PIXELS, np.asfortranarray(PIXELS)], ids=["C", "Fortran"])
def test_an_npy_has_images_without_labels(tmp_path: Path, pixels: NDArray[Any]) -> None:
    np.save(tmp_path / "set.npy", pixels)
    source = open_images(tmp_path / "set.npy")
    assert source.labels is None
    assert source.classes is None
    assert source.digest == images.ArrayImages(PIXELS).digest
    np.testing.assert_array_equal(np.asarray(source.load(4)), PIXELS[4])


def test_an_npy_of_another_version(tmp_path: Path) -> None:
    with (tmp_path / "set.npy").open("wb") as file:
        np.lib.format.write_array(file, PIXELS, version=(2, 0))
    np.testing.assert_array_equal(np.asarray(open_images(tmp_path / "set.npy").load(4)), PIXELS[4])


def test_wrong_npy_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "set.npy"
    np.save(file, PIXELS[0])
    with pytest.raises(DataError, match=r"^the array of .*set\.npy is uint8 \(5, 4, 3\)\nexpected"):
        open_images(file)
    np.save(file, np.empty(2, object))
    with pytest.raises(DataError, match=r"^cannot read .*: ValueError: .* a pickle\nexpected one"):
        open_images(file)
    np.save(file, PIXELS)
    os.truncate(file, 300)
    with pytest.raises(DataError, match=r"takes 360 bytes, there are 172\nexpected one array"):
        open_images(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=r"^cannot read .*it is a pipe"):
        open_images(file)


MEASURE = """
import sys
from pathlib import Path
from deploykit.images import open_images
from tests.peak_memory import peak_bytes
small = open_images(Path(sys.argv[1]))
small.digest, small.load(0)  # all loaded once
before = peak_bytes()
source = open_images(Path(sys.argv[2]))
source.digest
for index in range(len(source)):
    source.load(index)
print(peak_bytes() - before)
"""


@pytest.mark.parametrize("kind", ["plain", "packed", "npy"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, kind: str) -> None:
    """96 MiB of pixels, of which 8 are in memory at most."""
    pixels = np.zeros((512, 256, 256, 3), np.uint8)
    files = [tmp_path / f"{name}.{'npy' if kind == 'npy' else 'npz'}" for name in "ab"]
    for file, count in zip(files, (2, len(pixels)), strict=True):
        if kind == "npy":
            np.save(file, pixels[:count])
        else:
            PACKED[kind](file, images=pixels[:count])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 8 * 2**20

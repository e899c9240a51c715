from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLES = Path(images.__file__).parent.parent / "samples"


def save(file: Path, shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (shade, shade, shade)).save(file)
    return file


def shades(source: images.ImageSet, indices: Iterable[int]) -> list[int]:
    return [int(np.asarray(source.load(index))[0, 0, 0]) for index in indices]


def names(source: images.ImageSet) -> list[str]:
    assert isinstance(source, images.FileImages)
    return [path.name for path in source.paths]


def test_a_flat_folder_is_sorted_and_has_no_labels(tmp_path: Path) -> None:
    for number, name in enumerate(["b.png", "a.PNG", "c.bmp"]):
        save(tmp_path / name, number)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("left by another system")
    source = images.open_images(tmp_path)
    assert names(source) == ["a.PNG", "b.png", "c.bmp"]
    assert shades(source, range(3)) == [1, 0, 2]
    assert len(source) == 3
    assert source.labels is None
    assert source.classes is None


PICTURES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".avif",
    ".jp2",
    ".png",
    ".apng",
    ".bmp",
    ".dib",
)
OTHERS = (".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".tga", ".pcx", ".sgi", ".ico")


@pytest.mark.parametrize("suffix", PICTURES + OTHERS)
def test_every_suffix_is_found_and_read(tmp_path: Path, suffix: str) -> None:
    assert suffix in images.image_suffixes()
    size = (16, 16) if suffix == ".ico" else (4, 3)
    (tmp_path / "set").mkdir()
    Image.new("RGB", size).save(tmp_path / f"set/photo{suffix}")
    shutil.copy(tmp_path / f"set/photo{suffix}", tmp_path / f"set/OTHER{suffix.upper()}")
    source = images.open_images(tmp_path / "set")
    assert len(source) == 2
    assert source.load(0).size == source.load(1).size == size
    assert len(images.open_images(tmp_path / f"set/photo{suffix}")) == 1


@pytest.mark.parametrize("suffix", [".eps", ".ps", ".pdf", ".wmf", ".h5", ".mpg", ".txt", ""])
def test_what_pillow_does_not_decode_itself_is_no_image(suffix: str) -> None:
    assert suffix not in images.image_suffixes()


def skipped(source: images.ImageSet) -> list[str]:
    assert isinstance(source, images.FileImages)
    return [path.name for path in source.skipped]


def test_files_that_are_skipped_are_counted_and_named(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / f"flat/{number}.png")
        (tmp_path / f"flat/raw{number}.NEF").touch()
    for name in ("flat/labels.txt", "flat/README", "flat/.DS_Store", "flat/sub/deep.cr2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = images.open_images(tmp_path / "flat")
    assert len(source) == 5
    others = ["README", "labels.txt", *(f"raw{number}.NEF" for number in range(5)), "deep.cr2"]
    assert skipped(source) == others
    (note,) = images.notes_on_data(tmp_path / "flat")
    assert note == (
        "8 files are no images that can be read, and were skipped: 5 .nef (raw0.NEF, raw1.NEF, "
        "raw2.NEF ...), 1 without a suffix (README), 1 .txt (labels.txt), 1 .cr2 (deep.cr2)"
    )
    assert skipped(images.image_files(tmp_path / "flat")) == others
    assert images.notes_on_data(save(tmp_path / "one.png")) == images.notes_on_data(None) == []


def test_files_in_class_folders_that_are_skipped(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / name)
    for name in ("a/x.xcf", "b/deep/y.xcf", "z.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = images.open_images(tmp_path)
    assert source.classes == ("a", "b")
    assert skipped(source) == ["z.md", "x.xcf", "y.xcf"]
    labelled = images.open_labelled(images.LabelledData(tmp_path), images.ModelClasses(2))
    assert skipped(labelled) == ["z.md", "x.xcf", "y.xcf"]


def test_a_folder_of_files_that_cannot_be_read_names_them(tmp_path: Path) -> None:
    for name in ("a/1.svg", "a/2.svg", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"no images in .*a: 2 \.svg \(1\.svg, 2\.svg\)\nexpected some"
    ):
        images.open_images(tmp_path)
    with pytest.raises(
        DataError, match=r"no images in .*a: 2 \.svg \(1\.svg, 2\.svg\)\nexpected files"
    ):
        images.image_files(tmp_path / "a")


def test_class_folders_are_numbered_as_torchvision_numbers_them(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for name in ["dog/2.png", "dog/10.png", "Cat/x.jpg", "10/a.bmp", "2/a.bmp", "2/deep/er/b.png"]:
        save(tmp_path / name)
    for name in ["2/deep/a.png", "2/deep-1/z.png"]:
        save(tmp_path / name)
    for name in ["dog/readme.md", "2/notes.txt", "index.html"]:
        (tmp_path / name).write_text("no image")
    expected = ImageFolder(str(tmp_path))
    source = images.open_images(tmp_path)
    assert isinstance(source, images.FileImages)
    assert source.labels is not None
    assert source.classes == tuple(expected.classes) == ("10", "2", "Cat", "dog")
    found = list(zip(map(str, source.paths), source.labels.tolist(), strict=True))
    assert found == expected.samples
    assert source.labels.dtype == np.int64


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ["a/1.png", "a/.2.png", "a/.thumbs/3.png", ".cache/4.png", "b/5.png"]:
        save(tmp_path / name)
    source = images.open_images(tmp_path)
    assert names(source) == ["1.png", "5.png"]
    assert source.classes == ("a", "b")


def test_linked_class_folders_and_images_are_followed(tmp_path: Path) -> None:
    save(tmp_path / "store/1.png", 7)
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    (folder / "a/link.png").symlink_to(tmp_path / "store/1.png")
    (folder / "b").symlink_to(tmp_path / "store")
    source = images.open_images(folder)
    assert source.classes == ("a", "b")
    assert shades(source, range(2)) == [7, 7]


def test_a_single_image_is_a_set_of_one(tmp_path: Path) -> None:
    source = images.open_images(save(tmp_path / "one.png", 5))
    assert len(source) == 1
    assert shades(source, [0]) == [5]


def test_labels_cannot_be_changed(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    labels = images.open_images(tmp_path).labels
    assert labels is not None
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1


def test_digest_follows_content_and_not_names(tmp_path: Path) -> None:
    save(tmp_path / "one/a/1.png", 1)
    save(tmp_path / "one/b/2.png", 2)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/a/1.png").rename(tmp_path / "two/a/other.png")
    (tmp_path / "two/b").rename(tmp_path / "two/c")
    assert (
        images.open_images(tmp_path / "one").digest == images.open_images(tmp_path / "two").digest
    )


def test_digest_changes_with_pixels_order_and_labels(tmp_path: Path) -> None:
    save(tmp_path / "base/a/1.png", 1)
    save(tmp_path / "base/a/2.png", 2)
    save(tmp_path / "pixels/a/1.png", 1)
    save(tmp_path / "pixels/a/2.png", 3)
    save(tmp_path / "order/a/1.png", 2)
    save(tmp_path / "order/a/2.png", 1)
    save(tmp_path / "labels/a/1.png", 1)
    save(tmp_path / "labels/b/2.png", 2)
    save(tmp_path / "none/1.png", 1)
    save(tmp_path / "none/2.png", 2)
    folders = ["base", "pixels", "order", "labels", "none"]
    assert len({images.open_images(tmp_path / name).digest for name in folders}) == 5


def test_digest_of_a_file_that_went_away(tmp_path: Path) -> None:
    file = save(tmp_path / "1.png")
    source = images.open_images(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*1\.png: No such file"):
        assert source.digest


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images at .*nowhere: it does not exist"):
        images.open_images(tmp_path / "nowhere")


def test_an_unknown_form_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"from .*set\.zip\nexpected a folder, a \.csv .*\n.*\.jpg"):
        images.open_images(tmp_path / "set.zip")


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["a/notes.txt", "b/.hidden.png"]])
def test_a_folder_without_images_is_refused(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"no images in .*\nexpected files ending in .* \.bmp"):
        images.open_images(tmp_path)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"no images in .*b\nexpected some in every sub-folder"):
        images.open_images(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    save(tmp_path / "2.png")
    with pytest.raises(DataError, match="has images both beside and inside sub-folders\nexpected"):
        images.open_images(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a/deep/1.png")
    save(tmp_path / "a/2.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot list .*: .*Permission denied: '.*deep'"):
        images.open_images(tmp_path)


def test_the_samples_are_eight_distinct_photographs() -> None:
    source = images.sample_images()
    assert len(source) == 8
    assert source.labels is None
    small = [np.asarray(source.load(index).resize((16, 16)), np.float32) for index in range(8)]
    for first in range(8):
        assert np.asarray(source.load(first)).std() > 10
        for second in range(first):
            assert np.abs(small[first] - small[second]).mean() > 10


def test_the_samples_are_small_and_explained() -> None:
    source = images.sample_images()
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for index, path in enumerate(sorted(SAMPLES.glob("*.jpg"))):
        assert path.stat().st_size < 40_000
        assert min(source.load(index).size) >= 300
        assert f"| `{path.name}` | " in readme


def test_image_files_are_found_at_any_depth_beside_others(tmp_path: Path) -> None:
    for name in ("b.png", "cats/z.jpg", "cats/young/a.bmp", ".hidden/c.png"):
        save(tmp_path / name)
    (tmp_path / "dogs").mkdir()  # one without images is no class here
    (tmp_path / "notes.txt").write_text("not an image")
    found = [path.relative_to(tmp_path).as_posix() for path in images.image_files(tmp_path).paths]
    assert found == ["b.png", "cats/z.jpg", "cats/young/a.bmp"]


def test_a_folder_without_image_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match=r"no images in .*\nexpected files ending in .* \.bmp"):
        images.image_files(tmp_path)


def test_image_files_of_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot list .*gone: "):
        images.image_files(tmp_path / "gone")

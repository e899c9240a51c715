from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for shade, name in enumerate(["a.png", "b.png", "photos/c, d.png", "photos/plain"]):
        Image.new("RGB", (2, 2), (shade, shade, shade)).save(tmp_path / name, "PNG")
    return tmp_path


def listed(folder: Path, text: str, encoding: str = "utf-8") -> images.ImageSet:
    file = folder / "list.csv"
    file.write_bytes(text.encode(encoding))
    return images.open_images(file)


def shades(source: images.ImageSet) -> list[int]:
    return [int(np.asarray(source.load(index))[0, 0, 0]) for index in range(len(source))]


def labels(source: images.ImageSet) -> list[int]:
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    return list(map(int, source.labels))


@pytest.mark.parametrize("header", ["", "file,label\n", "Image,Class\r\n", "\n \n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_and_numbers_are_read_in_order(folder: Path, header: str, encoding: str) -> None:
    text = f'{header}b.png, 7\n\n"photos/c, d.png",0\na.png,7\nb.png,1\n'
    source = listed(folder, text, encoding)
    assert shades(source) == [1, 2, 0, 1]
    assert labels(source) == [7, 0, 7, 1]
    assert source.classes is None


def test_files_alone_have_no_labels(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    source = listed(folder, "a.png\nb.png,\n")
    assert shades(source) == [0, 1]
    assert source.labels is None
    assert source.classes is None


def test_absolute_paths_are_taken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "list.csv").write_text(f"{folder / 'b.png'},3\n", encoding="utf-8")
    assert shades(images.open_images(elsewhere / "list.csv")) == [1]


def test_a_first_file_without_suffix_is_no_header(folder: Path) -> None:
    assert shades(listed(folder, "photos/plain,0\na.png,1\n")) == [3, 0]


def test_names_are_looked_up_beside_the_list(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\nsnow owl\ndog\n", encoding="utf-8")
    source = listed(folder, "file,label\na.png,dog\nb.png,snow owl\na.png,0\n")
    assert labels(source) == [2, 1, 0]
    assert source.classes == ("cat", "snow owl", "dog")


def test_a_class_may_have_a_number_for_its_name(folder: Path) -> None:
    (folder / "labels.txt").write_text("7\n3\n", encoding="utf-8")
    assert labels(listed(folder, "a.png,3\nb.png,7\n")) == [1, 0]


def test_names_without_a_labels_file_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: unknown label 'dog'\nexpected .*labels\.txt"):
        listed(folder, "a.png,1\nb.png,dog\n")


@pytest.mark.parametrize("label", ["bird", "1.0", "crane", "9" * 30])
def test_unknown_labels_are_refused(folder: Path, label: str) -> None:
    (folder / "labels.txt").write_text("crane\ncat\ncrane\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"line 2: unknown label '{label}'\nexpected a number .* once in .*txt"
    ):
        listed(folder, f"file,label\na.png,{label}\n")


@pytest.mark.parametrize(
    ("label", "message"), [(-1, "has label -1"), (2, "has label 2\nexpected 0 to 1, one of 2")]
)
def test_labels_out_of_range_are_refused(folder: Path, label: int, message: str) -> None:
    (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"image 1 of .*list.csv {message}"):
        listed(folder, f"a.png,0\nb.png,{label}\n")


def test_a_label_on_some_lines_only_is_refused(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 3: no label\nexpected one on every line, or on none"
    ):
        listed(folder, "a.png,0\n\nb.png\n")


@pytest.mark.parametrize("name", ["none.png", "photos", "x" * 5000, "a\\0.png"])
def test_a_missing_file_is_named_with_its_line(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"line 2: there is no file '.*'\nexpected a path relative"):
        listed(folder, f"a.png,0\n{name},1\n")


def test_a_first_line_with_a_missing_image_is_no_header(folder: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: there is no file 'none\.png'"):
        listed(folder, "none.png,0\na.png,1\n")


def test_more_columns_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="line 2: 3 columns\nexpected file,label"):
        listed(folder, "file,label\na.png,0,x\n")


@pytest.mark.parametrize("text", ["", "\n\n", "file,label\n"])
def test_a_list_without_images_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"list\.csv names no images\nexpected lines of file,label"):
        listed(folder, text)


@pytest.mark.parametrize(("text", "encoding"), [("é.png,0\n", "latin-1"), ('"a.png,0\n', "utf-8")])
def test_what_is_no_list_is_refused(folder: Path, text: str, encoding: str) -> None:
    with pytest.raises(
        DataError, match=r"cannot read .*list\.csv: .*\nexpected (UTF-8 text|lines of)"
    ):
        listed(folder, text, encoding)


def test_an_unreadable_labels_file_is_named(folder: Path) -> None:
    (folder / "labels.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(
        DataError, match=r"cannot read .*labels\.txt: .*\nexpected UTF-8 text, .*: one class name"
    ):
        listed(folder, "a.png,0\n")

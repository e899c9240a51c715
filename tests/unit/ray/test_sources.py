"""Listing of images and Parquet at addresses that fsspec knows; no cluster is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deploykit.core.errors import DataError
from deploykit.ray.sources import Part, listing_of, read_part

if TYPE_CHECKING:
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")
pyarrow = pytest.importorskip("pyarrow")


def write_table(path: Path, columns: dict[str, Any], rows_of_a_group: int = 3) -> Path:
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_of_a_group)
    return path


def test_a_folder_is_listed_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "10.jpg", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "_aside").mkdir()
    (tmp_path / "_aside" / "0.png").write_bytes(b"x")
    found = listing_of(str(tmp_path), 2)
    names = [name for part in found.parts for name in part.names]
    assert names == [f"{tmp_path}/10.jpg", f"{tmp_path}/a.jpg", f"{tmp_path}/b/2.PNG"]
    assert [len(part.names) for part in found.parts] == [2, 1]
    assert found.count == 3


def test_an_address_of_another_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/photographs/1.png": b"one", "/photographs/2.png": b"two"})
    (part,) = listing_of("memory://photographs", 8).parts
    assert part.names == ("memory:///photographs/1.png", "memory:///photographs/2.png")
    assert list(read_part(part)) == [b"one", b"two"]


def test_rows_of_parquet_are_parts_of_its_row_groups(tmp_path: Path) -> None:
    rows = [f"image {at}".encode() for at in range(7)]
    table = write_table(tmp_path / "t.parquet", {"image": rows, "label": list(range(7))})
    found = listing_of(str(table), 2)
    assert [(part.group, part.start, part.stop) for part in found.parts] == [
        *((0, 0, 2), (0, 2, 3)),
        *((1, 0, 2), (1, 2, 3)),
        (2, 0, 1),
    ]
    assert [content for part in found.parts for content in read_part(part)] == rows
    assert found.parts[1].names == (f"{table}#0:2",)


def test_images_as_data_sets_publish_them(tmp_path: Path) -> None:
    rows = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "2.png"}]
    table = write_table(tmp_path / "t.parquet", {"image": rows})
    (part,) = listing_of(str(table), 8).parts
    assert list(read_part(part)) == [b"one", "the row has no encoded image"]


def test_a_file_that_is_gone_is_one_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"y")
    (part,) = listing_of(str(tmp_path), 8).parts
    (tmp_path / "a.png").unlink()
    first, second = read_part(part)
    assert str(first).startswith("cannot be read: ")
    assert second == b"y"


def test_a_table_that_is_gone_is_a_reason_for_each_row(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"image": [b"x", b"y"]})
    (part,) = listing_of(str(table), 8).parts
    table.unlink()
    assert [str(each).partition(":")[0] for each in read_part(part)] == ["cannot be read"] * 2


def test_the_digest_is_of_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    first = listing_of(str(tmp_path), 8).digest
    assert listing_of(str(tmp_path), 8).digest == first
    assert listing_of(str(tmp_path), 4).digest != first
    (tmp_path / "a.png").write_bytes(b"xy")
    assert listing_of(str(tmp_path), 8).digest != first


@pytest.mark.parametrize("name", ["a.JPG", "0f3c"])
def test_one_file_may_have_no_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (part,) = listing_of(str(tmp_path / name), 8).parts
    assert list(read_part(part)) == [b"x"]


def test_a_part_goes_to_another_process_as_text() -> None:
    for part in (Part(3, ("a", "b")), Part(0, (), "t.parquet", 1, 2, 5)):
        assert Part.from_text(part.to_text()) == part


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "there is nothing at"),
        ("empty", "holds no images"),
        ("other.parquet", "has no column of images, it has label"),
        ("nowhere://x", "cannot list nowhere://x"),
        ("list.csv", "list.csv is neither an image nor Parquet.*\n.*a folder of images, a Parquet"),
        ("list.txt", "list.txt is neither an image nor Parquet.*\n.*\nof a list of files give the"),
        ("images.npz", "images.npz is neither an image nor Parquet"),
    ],
)
def test_what_cannot_be_listed(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("list.csv", "list.txt", "images.npz"):
        (tmp_path / name).write_text("a.png\n")
    write_table(tmp_path / "other.parquet", {"label": [1]})
    given = source if "://" in source else str(tmp_path / source)
    with pytest.raises(DataError, match=message):
        listing_of(given, 8)

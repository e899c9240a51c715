from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import DataError
from deploykit.precision.calibration.table import (
    SAME,
    CalibrationKey,
    CalibrationTable,
    find_table,
    is_project,
    is_table,
    places_of_table,
    table_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TABLE = CalibrationTable(
    key=CalibrationKey("a" * 64, "b" * 64, {}, {}),
    images=2,
    skipped=(),
    amax={"input": {"max": 1.0}},
    created="2026-11-22T00:00:00+00:00",
)
PROJECT = "[tool.deploykit]\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(reason: str) -> Callable[[CalibrationTable], str]:
    return lambda table: reason


def only_images(count: int) -> Callable[[CalibrationTable], str]:
    return lambda table: "" if table.images == count else f"it is of {table.images} images"


# Places


@pytest.mark.parametrize(
    ("bundle", "places"),
    [
        (None, ["net.calibration.json"]),
        ("bundle", ["net.calibration.json"]),
        ("engines/net-int8", ["engines/net.calibration.json", "net.calibration.json"]),
        ("engines/net-int8/", ["engines/net.calibration.json", "net.calibration.json"]),
        ("../net-int8", ["../net.calibration.json", "net.calibration.json"]),
    ],
)
def test_a_table_lies_beside_the_bundle_or_here(bundle: str | None, places: list[str]) -> None:
    found = places_of_table("net", None if bundle is None else Path(bundle))
    assert [str(path) for path in found] == places


def test_a_users_own_folder_of_that_name_is_left_alone(folder: Path) -> None:
    (folder / "calib").mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "mine"\n', encoding="utf-8")
    assert places_of_table("net", None) == [Path("net.calibration.json")]


@pytest.mark.parametrize("bundle", [None, Path("engines/net-int8")])
def test_a_project_keeps_its_tables_in_one_folder(folder: Path, bundle: Path | None) -> None:
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    assert places_of_table("net", bundle) == [Path("calib/net.json")]


def test_the_table_of_a_bundle_that_is_named_by_dots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = folder / "engines" / "net-fp32" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner.parent)
    beside = folder.resolve() / "engines" / "net.calibration.json"
    assert places_of_table("net", Path())[0] == beside
    monkeypatch.chdir(inner)
    assert places_of_table("net", Path(".."))[0] == beside


def test_a_name_is_no_path() -> None:
    assert places_of_table("../a/net", None) == [Path("..-a-net.calibration.json")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROJECT, True),
        ("[tool.deploykit.more]\nx = 1\n", True),
        ("[tool.ruff]\n", False),
        ("tool = 1\n", False),
        ("[tool]\ndeploykit = 1\n", False),
        ("[tool.deploykit\n", False),
        (b"\xff", False),
        ("", False),
    ],
)
def test_what_marks_a_project(folder: Path, text: str | bytes, expected: bool) -> None:
    body = text if isinstance(text, bytes) else text.encode()
    (folder / "pyproject.toml").write_bytes(body)
    assert is_project(folder) is expected


def test_a_folder_without_a_pyproject_is_no_project(folder: Path) -> None:
    assert not is_project(folder)
    (folder / "pyproject.toml").mkdir()
    assert not is_project(folder)


def test_deploykits_own_folder_is_a_project() -> None:
    assert is_project(Path(__file__).parents[3])


# Finding


def test_without_a_table_a_new_one_goes_to_the_first_place() -> None:
    found = find_table([Path("a.json"), Path("b.json")], told(""))
    assert (found.table, found.path) == (None, Path("a.json"))
    assert found.story == "made now, there was none"


def test_the_first_that_fits_is_used() -> None:
    places = [Path("a.json"), Path("b.json")]
    replace(TABLE, images=1).save(places[0])
    TABLE.save(places[1])
    found = find_table(places, only_images(2))
    assert (found.path, found.story) == (places[1], SAME)
    assert found.table is not None
    assert found.table.images == 2
    assert find_table(places, only_images(1)).path == places[0]


def test_a_table_that_does_not_fit_is_made_anew_with_the_reason() -> None:
    places = [Path("a.json"), Path("b.json")]
    for path in places:
        TABLE.save(path)
    found = find_table(places, told("the images are others"))
    assert (found.table, found.path) == (None, places[0])
    assert found.story == "made anew: the images are others"


def test_a_table_at_another_place_that_does_not_fit_is_left_and_named() -> None:
    places = [Path("a.json"), Path("b.json")]
    TABLE.save(places[1])
    found = find_table(places, told("the images are others"))
    assert (found.table, found.path) == (None, places[0])
    assert found.story == "made now, b.json does not fit: the images are others"


def test_a_table_of_another_version_is_made_anew() -> None:
    place = Path("a.json")
    place.write_text(json.dumps({**json.loads(table_text(TABLE)), "schema_version": 1}))
    found = find_table([place], told(""))
    assert found.table is None
    assert found.story.startswith("made anew: a.json has schema version 1, this deploykit reads")


@pytest.mark.parametrize("content", [b"", b"mine", b"\xff\xd8\xff", b"[1]", b'{"amax": 1}', None])
def test_a_file_that_is_no_table_is_not_replaced(content: bytes | None) -> None:
    place = Path("net.calibration.json")
    place.mkdir() if content is None else place.write_bytes(content)
    assert not is_table(place)
    with pytest.raises(
        DataError,
        match=r"^net.calibration.json exists and is not a calibration table, so it is not replaced"
        r"\nmove it, or .* -o FILE\nan export then takes that table: --calib-table FILE$",
    ):
        find_table([place], told(""))
    assert place.is_dir() if content is None else place.read_bytes() == content


def test_a_file_that_is_no_table_at_another_place_does_not_matter() -> None:
    places = [Path("a.json"), Path("b.json")]
    places[1].write_bytes(b"mine")
    found = find_table(places, told(""))
    assert found.path == places[0]
    assert found.story.startswith("made now, b.json does not fit: b.json is not JSON")
    TABLE.save(places[1])
    places[0].write_bytes(b"mine")
    assert find_table(places, told("")).path == places[1]

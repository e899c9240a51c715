"""Folders of bundles: what is in them, and the way from a wrong path to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit.bundle.folders import bundles_in, way_to_bundle
from deploykit.bundle.listing import list_bundles, listed_to_plain
from deploykit.bundle.manifest import MANIFEST, Bundle
from deploykit.core.errors import BundleError
from deploykit.runtime.loading import load
from tests.bundles import write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two bundles in its ``engines``, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines").mkdir()
    for name in ("good", "poor"):
        write_bundle(tmp_path / "engines" / name)
    (tmp_path / "engines" / "poor" / MANIFEST).write_text("{", encoding="utf-8")
    (tmp_path / "engines" / "README.md").write_text("bundles", encoding="utf-8")
    hidden = tmp_path / "engines" / ".good.x.part"
    hidden.mkdir()
    (hidden / MANIFEST).write_text("{", encoding="utf-8")
    (tmp_path / "own.onnx").write_bytes(b"graph")
    return tmp_path


def test_what_is_in_a_folder(place: Path) -> None:
    assert bundles_in(Path("engines")) == (Path("engines/good"), Path("engines/poor"))
    assert bundles_in(Path("none")) == bundles_in(Path("own.onnx")) == ()


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("engines/good/model.onnx", "give the folder that it lies in: engines/good"),
        ("own.onnx", "make a bundle of it: deploykit export own.onnx"),
        ("engines/README.md", "give the folder"),
        ("engines", "it holds bundles, give one: engines/good, engines/poor"),
        ("good", "did you mean: engines/good"),
        ("other", "make a bundle with: deploykit export ARCHITECTURE"),
        ("x" * 300, "make a bundle with: deploykit export ARCHITECTURE"),
    ],
)
def test_the_way_to_a_bundle(place: Path, path: str, way: str) -> None:
    assert way_to_bundle(Path(path)) == way


@pytest.mark.parametrize("use", [Bundle.open, load])
def test_whoever_opens_a_bundle_says_it(place: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(BundleError, match=r"\ndid you mean: engines/good$"):
        use(Path("good"))
    with pytest.raises(BundleError, match="\nit holds bundles, give one: engines/good"):
        use(Path("engines"))
    with pytest.raises(BundleError, match=r"\nmake a bundle of it: deploykit export own\.onnx$"):
        use(Path("own.onnx"))


def test_many_bundles_are_counted(tmp_path: Path) -> None:
    for number in range(5):
        write_bundle(tmp_path / f"b{number}")
    assert way_to_bundle(tmp_path).endswith("b2 and 2 more")


def test_the_list(place: Path) -> None:
    good, poor = list_bundles(Path("engines"))
    written = place / "engines" / "good"
    assert good.size_bytes == sum(path.stat().st_size for path in written.iterdir())
    manifest = Bundle.open(written).manifest
    assert (good.model, good.precision) == (manifest.model["name"], str(manifest.precision))
    assert good.problem is None
    assert poor.problem is not None
    assert listed_to_plain(good)["bytes"] == good.size_bytes
    assert [one.folder for one in list_bundles(written)] == [written]


def test_a_folder_without_bundles(place: Path) -> None:
    with pytest.raises(BundleError, match="there is no folder none\nexpected a folder of"):
        list_bundles(Path("none"))
    with pytest.raises(BundleError, match="there is no folder good\ndid you mean: engines/good"):
        list_bundles(Path("good"))
    Path("empty").mkdir()
    with pytest.raises(BundleError, match="there are no bundles in empty\nmake a bundle with"):
        list_bundles(Path("empty"))

"""HEIC, which Pillow reads where `pillow-heif` is installed; a stand-in for it here."""

from __future__ import annotations

import sys
from io import BytesIO
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from deploykit import images
from deploykit.core.errors import DataError
from deploykit.images import decoding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


class StandIn(ImageFile.ImageFile):
    """A picture that begins as HEIC does, with a PNG behind its first box."""

    format = "HEIF"

    def _open(self) -> None:
        assert self.fp is not None
        with Image.open(BytesIO(self.fp.read()[len(HEADER) :])) as inner:
            inner.load()
            self._mode, self._size = inner.mode, inner.size
            self.im = inner.im
        self.tile: list[Any] = []

    def load(self) -> Any:
        return self.im.pixel_access(self.readonly)


def write_heic(path: Path) -> Path:
    buffer = BytesIO()
    Image.new("RGB", (4, 3), (10, 200, 30)).save(buffer, "PNG")
    path.write_bytes(HEADER + buffer.getvalue())
    return path


def register() -> None:
    Image.register_open("HEIF", StandIn, lambda start: start[4:12] == b"ftypheic")
    Image.register_extensions("HEIF", [".heic", ".heif"])


def forget_what_is_known() -> None:
    decoding.readable_formats.cache_clear()
    decoding.image_suffixes.cache_clear()


@pytest.fixture(params=[True, False])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the package is there; what it adds to Pillow's registry is taken out again."""
    Image.init()
    for name in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    if request.param:
        package = ModuleType("pillow_heif")
        package.register_heif_opener = register  # type: ignore[attr-defined]
        package.__spec__ = SimpleNamespace(name="pillow_heif")  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, "pillow_heif", package)
    else:
        monkeypatch.setattr(decoding, "find_spec", lambda _: None)
    forget_what_is_known()
    yield request.param
    monkeypatch.undo()
    forget_what_is_known()


def test_heic_beside_other_images(tmp_path: Path, *, installed: bool) -> None:
    write_heic(tmp_path / "a.heic")
    Image.new("RGB", (4, 3)).save(tmp_path / "b.png")
    source = images.open_images(tmp_path)
    assert len(source) == 1 + installed
    if installed:
        assert np.asarray(source.load(0))[0, 0].tolist() == [10, 200, 30]
        assert images.notes_on_data(tmp_path) == []
    else:
        (note,) = images.notes_on_data(tmp_path)
        assert note == (
            "1 file is no image that can be read, and was skipped: 1 .heic (a.heic); "
            "for HEIC: pip install pillow-heif"
        )


def test_heic_alone(tmp_path: Path, *, installed: bool) -> None:
    (tmp_path / "set").mkdir()
    # Phones and messengers rename: what a file is called does not count.
    files = [write_heic(tmp_path / "set/a.heic"), write_heic(tmp_path / "photo.jpg")]
    if installed:
        assert len(images.open_images(tmp_path / "set")) == 1
        assert [images.decode(file).size for file in files] == [(4, 3), (4, 3)]
        assert images.decode(files[0].read_bytes()).size == (4, 3)
        return
    with pytest.raises(DataError, match=r"set: 1 \.heic \(a\.heic\); for HEIC: pip install pillow"):
        images.open_images(tmp_path / "set")
    with pytest.raises(DataError, match=r"from .*a\.heic\n.*\n(.*); for HEIC: pip install pillow"):
        images.open_images(files[0])
    for source in (files[0], files[1], files[0].read_bytes()):
        with pytest.raises(
            DataError, match="image that Pillow reads; for HEIC: pip install pillow"
        ):
            images.decode(source)


def test_another_damaged_file_says_nothing_of_heic(tmp_path: Path, *, installed: bool) -> None:
    (tmp_path / "a.png").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    with pytest.raises(DataError, match=r"other image that Pillow reads$"):
        images.decode(tmp_path / "a.png")
    assert installed in (True, False)

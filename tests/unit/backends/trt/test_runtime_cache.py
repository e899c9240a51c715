from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from deploykit.backends.trt.engine import CacheFile
from tests.fakes.runtime_fake import RtxRuntimeConfig, Script

if TYPE_CHECKING:
    from pathlib import Path

KERNELS = Script().cache


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.engine.cache"


def opened(path: Path, script: Script | None = None) -> CacheFile:
    return CacheFile(RtxRuntimeConfig(script or Script()), path)


def test_a_first_cache_is_written_and_everyone_may_read_it(path: Path) -> None:
    opened(path).save()
    assert path.read_bytes() == KERNELS
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_cache_that_was_not_added_to_is_not_written_again(path: Path) -> None:
    path.write_bytes(KERNELS + b" and more")
    before = path.stat()
    opened(path).save()
    assert path.stat() == before


@pytest.mark.parametrize("content", [b"", b"another machine's", KERNELS[:-1]])
def test_a_damaged_or_foreign_cache_is_replaced(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deploykit")
    path.write_bytes(content)
    opened(path).save()
    assert "is damaged or of another machine: kernels are compiled anew" in caplog.text
    assert path.read_bytes() == KERNELS


def test_a_place_that_cannot_be_read_or_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    opened(folder).save()
    assert "cannot read the runtime cache" in caplog.text
    assert "cannot write the runtime cache" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["a folder"]
    opened(tmp_path / "no" / "folder").save()
    assert caplog.text.count("cannot write the runtime cache") == 2


def test_a_runtime_that_takes_no_cache(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for refused in ("set_runtime_cache", "create_runtime_cache"):
        caplog.clear()
        opened(path, Script(refuses={refused})).save()
        assert "the runtime takes no cache: kernels are compiled for each context" in caplog.text
    assert not path.exists()


def test_a_cache_that_cannot_be_written_down(path: Path) -> None:
    opened(path, Script(refuses={"serialize"})).save()
    assert not path.exists()


def test_without_a_file_the_cache_serves_this_process_only(tmp_path: Path) -> None:
    CacheFile(RtxRuntimeConfig(Script()), None).save()
    assert not list(tmp_path.iterdir())

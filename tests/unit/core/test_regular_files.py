from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit.core.artifacts import sha256_of
from deploykit.core.errors import ModelFileError
from deploykit.core.regular_files import (
    NotRegularError,
    is_special,
    open_regular,
    read_regular,
    read_regular_text,
    require_regular,
    require_utf8,
)
from tests.special_files import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = {
    "pipe": "a pipe (FIFO)",
    "zeros": "a device",
    "link": "a pipe (FIFO)",
    "socket": "a socket",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("use", [require_regular, open_regular, read_regular, sha256_of])
def test_what_is_no_regular_file_is_refused_without_a_wait(
    tmp_path: Path, kind: str, use: Callable[[Path], object]
) -> None:
    path = tmp_path / "cat.png"
    SPECIAL[kind](path)
    with pytest.raises(NotRegularError) as caught:
        use(path)
    assert caught.value.strerror == f"it is {WORDS[kind]}, not a regular file"
    assert caught.value.filename == str(path)
    assert is_special(path)


def test_a_writer_at_a_pipe_is_not_released(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    opened = threading.Event()

    def write() -> None:
        descriptor = os.open(path, os.O_WRONLY)
        opened.set()
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(NotRegularError):
        open_regular(path)
    assert not opened.wait(0.1)
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    writer.join()


def test_a_folder_is_refused_as_the_system_does(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    assert not is_special(tmp_path)


def test_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    file, link = tmp_path / "a.txt", tmp_path / "link"
    file.write_bytes("grün".encode())
    link.symlink_to(file)
    assert read_regular(link) == "grün".encode()
    assert read_regular_text(file) == "grün"
    assert not is_special(link)
    with open_regular(link) as opened:
        assert opened.read(2) == b"gr"


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    assert not is_special(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_file_that_becomes_a_pipe_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cat.png"
    os.mkfifo(path)
    monkeypatch.setattr("deploykit.core.regular_files.require_regular", lambda path: None)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotRegularError, match="not a regular file"):
        open_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("name", [b"caf\xe9.onnx", b"\xff/m.onnx", b"a\x80b"])
def test_a_path_that_is_no_utf_8_is_refused_in_words(name: bytes) -> None:
    path = Path(os.fsdecode(name))
    with pytest.raises(ModelFileError, match=r"bytes in its name that are no UTF-8.*\nrename"):
        require_utf8(path)


@pytest.mark.parametrize("name", ["café.onnx", "模型/m.onnx", "a b\n"])
def test_a_path_in_any_language_is_not(name: str) -> None:
    require_utf8(Path(name))

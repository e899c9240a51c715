from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from deploykit.core import sharing
from deploykit.core.atomic import exclusive
from deploykit.core.sharing import lock_of, reading, without_readers

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


def is_held(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_readers_share_a_folder_and_hold_writers_off(folder: Path) -> None:
    with reading(folder), reading(folder):
        assert is_held(folder)
    assert not is_held(folder)


def test_a_writer_waits_until_the_last_reader_is_done(folder: Path) -> None:
    done = threading.Event()

    def read() -> None:
        with reading(folder):
            started.set()
            time.sleep(0.1)
            done.set()

    started = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    started.wait()
    with without_readers(folder):
        assert done.is_set()
    thread.join()


def test_a_reader_lets_a_waiting_writer_go_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_WRITER_S", 0.1)
    with exclusive(folder):
        start = time.monotonic()
        with reading(folder):  # and does not wait for ever
            assert time.monotonic() - start >= 0.1


@pytest.mark.timeout(30)
def test_the_lock_file_of_a_killed_writer_holds_nobody_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_WRITER_S", 60)
    lock_of(folder).touch()
    with reading(folder):
        assert is_held(folder)


def test_a_disk_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with reading(folder), without_readers(folder):
        pass


def test_what_is_not_there_is_for_the_reader_to_say(tmp_path: Path) -> None:
    with reading(tmp_path / "nothing"):
        pass


@pytest.mark.timeout(30)
def test_pipes_in_the_place_of_a_folder_and_of_its_lock_hold_nobody_up(
    folder: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(lock_of(folder))
    with reading(tmp_path / "pipe"), reading(folder):
        assert is_held(folder)

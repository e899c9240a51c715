from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from deploykit.core import atomic
from deploykit.core.atomic import locked

if TYPE_CHECKING:
    from pathlib import Path

WAIT_S = 60


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_file_is_there_while_the_lock_is_held_and_not_longer(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", 0):
        assert names(tmp_path) == ["lock"]
    assert names(tmp_path) == []


def test_an_error_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="x"), locked(tmp_path / "lock", 0):
        raise KeyError("x")
    assert names(tmp_path) == []


def test_a_held_lock_is_refused_in_the_same_process_too(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", 0):
        with (
            pytest.raises(TimeoutError, match=r"others have held its lock .*lock for 0 s"),
            locked(tmp_path / "lock", 0),
        ):
            pass
        assert (tmp_path / "lock").exists()


def test_other_users_can_wait_for_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", 0):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"), locked(tmp_path / "lock", 0):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_whoever_waited_for_a_file_that_was_removed_takes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is opened, then removed by its holder, and another process makes a new one."""
    path = tmp_path / "lock"
    holder = locked(path, 0)
    holder.__enter__()
    newcomer = locked(path, 0)
    try_lock = atomic._try_lock
    tries: list[bool] = []

    def late(descriptor: int) -> bool:
        if not tries:
            tries.append(True)
            monkeypatch.setattr(atomic, "_try_lock", try_lock)
            holder.__exit__(None, None, None)
            newcomer.__enter__()
        return try_lock(descriptor)

    monkeypatch.setattr(atomic, "_try_lock", late)
    with pytest.raises(TimeoutError), locked(path, 0):
        pass
    newcomer.__exit__(None, None, None)
    assert names(tmp_path) == []


def test_what_a_user_removed_and_another_holds_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = locked(path, 0)
    with locked(path, 0):
        path.unlink()
        other.__enter__()
    assert path.exists()
    other.__exit__(None, None, None)
    assert not path.exists()


COUNT = """
import sys
from pathlib import Path
from deploykit.core.atomic import locked
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(300):
    with locked(folder / "lock", 60):
        number = int((folder / "count").read_text())
        (folder / "inside").mkdir()
        (folder / "count").write_text(str(number + 1))
        (folder / "inside").rmdir()
"""


def test_processes_that_race_exclude_one_another(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    processes = [start(COUNT, tmp_path) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=10 * WAIT_S)
    assert [process.returncode for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "1200"
    assert names(tmp_path) == ["count"]


HOLD = """
import sys
from pathlib import Path
from deploykit.core.atomic import locked
with locked(Path(sys.argv[1]), 0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = start(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError), locked(path, 0):
        pass
    got = threading.Event()

    def wait() -> None:
        with locked(path, WAIT_S):
            got.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not got.is_set()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    waiter.join()
    assert got.is_set()
    assert names(tmp_path) == []


def test_a_disk_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="flock not supported"), locked(tmp_path / "lock", 0):
        assert names(tmp_path) == ["lock.held"]
    assert names(tmp_path) == []


def test_another_error_of_the_disk_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock", 0):
        pass


def fail_once(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fstat = os.fstat

    def fail(descriptor: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fstat", fail)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_file_that_another_machine_removed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_once(monkeypatch, number)
    with locked(tmp_path / "lock", 0):
        assert names(tmp_path) == ["lock"]


def test_a_disk_that_cannot_say_which_file_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock", 0):
        pass


def test_windows_has_a_lock_that_removes_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with locked(tmp_path / "lock", 0):
        monkeypatch.undo()
        with pytest.raises(TimeoutError), locked(tmp_path / "lock", 0):
            pass

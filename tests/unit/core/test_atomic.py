from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from deploykit.core import atomic as staging
from deploykit.core.atomic import (
    exclusive,
    restore,
    staged_folder,
    translated_write_errors,
    write_whole,
)
from deploykit.core.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARKER = "manifest.json"


def publish(target: Path, text: str) -> None:
    with staged_folder(target, MARKER) as folder:
        (folder / MARKER).write_text(text, encoding="utf-8")
        (folder / "model").write_text(text, encoding="utf-8")


def stage(target: Path, act: Callable[[Path], object]) -> None:
    with staged_folder(target, MARKER) as folder:
        (folder / MARKER).write_text("new", encoding="utf-8")
        act(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name)


@contextlib.contextmanager
def running(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# A block that ends well


def test_the_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "engines" / "net"
    with staged_folder(target, MARKER) as folder:
        (folder / MARKER).write_text("1", encoding="utf-8")
        assert folder.parent == target.parent
        assert not target.exists()
    assert (target / MARKER).read_text(encoding="utf-8") == "1"
    assert visible(target.parent) == ["net"]
    assert left_over(target.parent) == []


def test_the_folder_can_be_read_by_other_users(tmp_path: Path) -> None:
    publish(tmp_path / "net", "1")
    assert (tmp_path / "net").stat().st_mode & 0o777 == 0o755


def test_a_bundle_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "net"
    publish(target, "old")
    (target / "old.engine").touch()
    publish(target, "new")
    assert visible(target) == [MARKER, "model"]
    assert (target / "model").read_text(encoding="utf-8") == "new"
    assert left_over(tmp_path) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "net"
    target.mkdir()
    publish(target, "1")
    assert visible(target) == [MARKER, "model"]


def test_a_link_stays_and_the_folder_behind_it_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "net-v1", tmp_path / "current"
    publish(real, "old")
    link.symlink_to(real)
    publish(link, "new")
    assert link.is_symlink()
    assert (real / "model").read_text(encoding="utf-8") == "new"
    assert left_over(tmp_path) == []


def test_names_with_glob_characters_and_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    abandoned = tmp_path / ".net[1]*.abcdefgh.part"
    abandoned.mkdir()
    publish(Path("net[1]*"), "1")
    assert visible(tmp_path) == ["net[1]*"]
    assert left_over(tmp_path) == []


def test_readers_never_miss_a_bundle_that_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "net"
    publish(target, "0")
    done = threading.Event()
    seen: set[str] = set()
    misses: list[OSError] = []

    def poll() -> None:
        while not done.is_set():
            try:
                seen.add((target / MARKER).read_text(encoding="utf-8"))
            except OSError as error:
                misses.append(error)

    reader = threading.Thread(target=poll)
    reader.start()
    for number in range(1, 101):
        publish(target, str(number))
    done.set()
    reader.join()
    assert misses == []
    assert len(seen) > 1


def test_without_an_exchange_two_renames_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    target = tmp_path / "net"
    publish(target, "old")
    publish(target, "new")
    assert (target / "model").read_text(encoding="utf-8") == "new"
    assert visible(tmp_path) == ["net"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["net"]


def test_a_second_rename_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    target = tmp_path / "net"
    publish(target, "old")
    rename = Path.rename

    def refuse_new(self: Path, to: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(BundleError, match=r"cannot write .*net: Input/output error\nnothing half"):
        publish(target, "new")
    assert (target / "model").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["net"]


# A block that does not


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_an_error_or_interruption_leaves_everything_as_it_was(
    tmp_path: Path, kind: type[BaseException], existing: bool
) -> None:
    target = tmp_path / "net"
    if existing:
        publish(target, "old")

    def interrupt(_: Path) -> None:
        raise kind

    with pytest.raises(kind):
        stage(target, interrupt)
    assert visible(tmp_path) == (["net"] if existing else [])
    assert left_over(tmp_path) == []
    if existing:
        assert (target / "model").read_text(encoding="utf-8") == "old"


STOP_HALFWAY = """
import sys
from pathlib import Path
from deploykit.core.atomic import staged_folder
with staged_folder(Path(sys.argv[1]), "manifest.json") as folder:
    (folder / "manifest.json").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_nothing_visible_and_the_next_call_cleans(tmp_path: Path) -> None:
    target = tmp_path / "net"
    with running(STOP_HALFWAY, str(target)) as process:
        folder = Path(wait_for_line(process))
        assert (folder / MARKER).is_file()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert visible(tmp_path) == []
    assert folder.exists()
    publish(target, "1")
    assert names(tmp_path) == ["net"]


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "net"
    with running(STOP_HALFWAY, str(target)) as process:
        folder = Path(wait_for_line(process))
        publish(target, "mine")
        assert (folder / MARKER).is_file()
        process.communicate("")
        assert process.returncode == 0
    assert (target / MARKER).read_text(encoding="utf-8") == "half"
    assert left_over(tmp_path) == []


def test_the_folder_of_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".net.v2.abcdefgh.part"
    other.mkdir()
    publish(tmp_path / "net", "1")
    assert other.exists()


def test_a_folder_whose_lock_is_held_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".net.abcdefgh.part"
    other.mkdir()
    with FileLock(f"{other}.lock"):
        publish(tmp_path / "net", "1")
        assert other.exists()
    publish(tmp_path / "net", "2")
    assert not other.exists()


PUBLISH_OFTEN = """
import sys
from pathlib import Path
from deploykit.core.atomic import staged_folder
print("ready", flush=True)
sys.stdin.readline()
for turn in range(40):
    word = f"{sys.argv[2]}-{turn}"
    with staged_folder(Path(sys.argv[1]), "manifest.json") as folder:
        for name in ("manifest.json", "a", "b", "c"):
            (folder / name).write_text(word)
        (folder / word).touch()
"""


def test_two_processes_at_once_each_publish_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "net"
    with (
        running(PUBLISH_OFTEN, str(target), "one") as first,
        running(PUBLISH_OFTEN, str(target), "two") as second,
    ):
        for process in (first, second):
            assert wait_for_line(process) == "ready"
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        while first.poll() is None or second.poll() is None:
            with contextlib.suppress(FileNotFoundError), exclusive(target):
                assert_one_origin(target)
        assert [process.communicate()[1] for process in (first, second)] == ["", ""]
        assert (first.returncode, second.returncode) == (0, 0)
    assert assert_one_origin(target) in {"one-39", "two-39"}
    assert names(tmp_path) == ["net"]


def assert_one_origin(target: Path) -> str:
    word = (target / MARKER).read_text(encoding="utf-8")
    assert visible(target) == sorted(["a", "b", "c", MARKER, word])
    assert {(target / name).read_text(encoding="utf-8") for name in "abc"} == {word}
    return word


# A place that cannot be used


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "net"
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match=r"net exists and is not a bundle.*\nchoose another"):
        publish(target, "1")
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "net"
    target.mkdir()
    (target / "thesis.txt").touch()
    with pytest.raises(BundleError, match="exists and is not a bundle, so it is not replaced"):
        publish(target, "1")
    assert visible(target) == ["thesis.txt"]


def test_what_was_put_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "net"

    def come_first(_: Path) -> None:
        target.mkdir()
        (target / "thesis.txt").touch()

    with pytest.raises(BundleError, match="exists and is not a bundle"):
        stage(target, come_first)
    assert visible(target) == ["thesis.txt"]
    assert left_over(tmp_path) == []


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"cannot write .*net: (Not a directory|File exists)"):
        publish(tmp_path / "file" / "net", "1")


def test_a_read_only_disk(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "ro") as disk,
        pytest.raises(BundleError, match=r"cannot write .*net: Read-only file system"),
    ):
        publish(disk / "net", "1")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot write .*: File name too long"):
        publish(tmp_path / ("n" * 300), "1")


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from deploykit.core.errors import BundleError
from deploykit.core.atomic import staged_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with staged_folder(Path(sys.argv[1]), "manifest.json") as folder:
        (folder / "manifest.json").write_text("{}")
        (folder / "model.onnx").write_bytes(bytes(100_000))
except BundleError as error:
    print(error)
"""


def test_a_write_that_the_system_refuses_halfway(tmp_path: Path) -> None:
    target = tmp_path / "net"
    publish(target, "old")
    with running(FILL_THE_DISK, str(target)) as process:
        output, errors = process.communicate()
    assert output.splitlines() == [
        f"cannot write {target}: File too large",
        "nothing half-written was left; free some space or choose another place with -o",
    ]
    assert errors == ""
    assert (target / "model").read_text(encoding="utf-8") == "old"
    assert left_over(tmp_path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        with pytest.raises(BundleError, match=r"cannot write .*net: No space left on device"):
            stage(disk / "net", lambda folder: (folder / "model").write_bytes(bytes(1 << 20)))
        assert visible(disk) == []
        assert left_over(disk) == []


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "true", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    ran = subprocess.run(command, capture_output=True, check=False)
    if not mount or not umount or ran.returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


def test_an_error_without_words_still_has_a_message(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="cannot write net: strange\nnothing half-written"),
        translated_write_errors(Path("net")),
    ):
        raise OSError("strange")


# The lock


def test_the_lock_excludes_other_processes_through_any_name(tmp_path: Path) -> None:
    real, link = tmp_path / "net", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    with exclusive(link):
        lock = FileLock(tmp_path / ".net.lock", timeout=0)
        with pytest.raises(TimeoutError):
            lock.acquire()


def test_a_lock_that_never_comes_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "LOCK_TIMEOUT_S", 0.01)
    with (
        FileLock(tmp_path / ".net.lock"),
        pytest.raises(BundleError, match=r"cannot write .*net: others have held its lock .*0.01 s"),
    ):
        publish(tmp_path / "net", "1")
    assert visible(tmp_path) == []


def test_no_lock_is_left_beside_a_bundle(tmp_path: Path) -> None:
    publish(tmp_path / "net", "old")
    publish(tmp_path / "net", "new")
    with pytest.raises(ValueError, match="no"), exclusive(tmp_path / "net"):
        raise ValueError("no")
    assert names(tmp_path) == ["net"]


def test_the_lock_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".net.lock").touch()
    (tmp_path / ".net.abcdefgh.part.lock").touch()
    publish(tmp_path / "net", "1")
    assert names(tmp_path) == ["net"]


# Power may fail at any time


class Disk:
    """Watches what is done to the disk, in its order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def watched_fsync(descriptor: int) -> None:
            self.events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            fsync(descriptor)

        def watched(real: Any) -> Any:
            def call(source: Any, target: Any, **kwargs: Any) -> None:
                self.events.append(f"rename {Path(target).name}")
                real(source, target, **kwargs)

            return call

        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(os, "replace", watched(replace))
        patch.setattr(os, "rename", watched(rename))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads names in /proc")
def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    target = tmp_path / "bundle"
    with staged_folder(target, MARKER) as folder:
        (folder / MARKER).write_text("x")
        (folder / "sub").mkdir()
        (folder / "sub/inner").write_text("y")
        (folder / "link").symlink_to(MARKER)
    at = disk.events.index("rename bundle")
    assert {f"fsync {MARKER}", "fsync inner"} <= set(disk.events[:at])
    assert [event.rsplit(".")[-1] for event in disk.events[at - 1 : at]] == ["part"]
    assert disk.events[at + 1 :] == [f"fsync {tmp_path.name}"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads names in /proc")
def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    write_whole(tmp_path / "table.json", "{}")
    written, renamed, kept = disk.events
    assert written.startswith("fsync .table.json.")
    assert (renamed, kept) == ("rename table.json", f"fsync {tmp_path.name}")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_cannot_keep_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / MARKER).write_text("old")

    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with (
        pytest.raises(BundleError, match=f"cannot write .*bundle: {os.strerror(number)}\nnothing"),
        staged_folder(target, MARKER) as folder,
    ):
        (folder / MARKER).write_text("new")
    assert (target / MARKER).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_lock_that_cannot_be_removed_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    unlink = os.unlink

    def refuse(path: Any, **kwargs: Any) -> None:
        if str(path).endswith(".lock"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        publish(target, "old")
        publish(target, "new")
    assert (target / "model").read_text(encoding="utf-8") == "new"
    publish(target, "newer")
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_knows_no_fsync_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with staged_folder(tmp_path / "bundle", MARKER) as folder:
        (folder / MARKER).write_text("new")
    assert (tmp_path / "bundle" / MARKER).read_text() == "new"


KILLED_BETWEEN = """
import os, sys
from pathlib import Path
sys.platform = "a system without an exchange"
from deploykit.core.atomic import staged_folder

target, turn = Path(sys.argv[1]), int(sys.argv[2])
rename, calls = os.rename, 0

def call(*args, **kwargs):
    global calls
    calls += 1
    if calls == turn:
        os._exit(9)
    rename(*args, **kwargs)

with staged_folder(target, "manifest.json") as folder:
    (folder / "manifest.json").write_text("new")
    os.rename = call
"""


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_swap_in_two_steps_that_is_killed_is_undone_or_done(tmp_path: Path, turn: int) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    command = [sys.executable, "-c", KILLED_BETWEEN, str(target), str(turn)]
    assert subprocess.run(command, check=False).returncode == 9
    assert target.exists() == (turn != 2)
    restore(target)
    assert (target / "manifest.json").read_text() == ("new" if turn == 3 else "old")
    with staged_folder(target, "manifest.json") as folder:  # which removes what was left
        (folder / "manifest.json").write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (target / "manifest.json").read_text() == "newer"

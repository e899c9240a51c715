"""Files and folders that are there whole or not at all, and the locks of who writes them."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from deploykit.core.errors import BundleError
from deploykit.core.sharing import lock_of, without_readers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_POLL_S: Final = 0.05


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file ``path``, which is there only as long as somebody holds it.

    The system frees the lock of a process that is killed; its file stays until the next holder
    removes it. `FileLock` alone leaves its file on Unix: removed by its holder, a process that had
    opened it before would lock a file that is not there any more, beside one that made a new file.
    So here the holder removes the file while it has the lock, and whoever gets the lock looks
    whether its file is still the one at ``path``, and else begins again.

    The file lies at ``path`` and in no folder for temporary files, because other users must see it,
    and other machines where the disk is shared. On NFS another machine may take a removed file for
    one that is there until it asks the server again; such two hold the lock together.

    Raises:
        TimeoutError: others have held the lock for ``timeout_s``; it is an ``OSError``.
    """
    with ExitStack() as stack:
        if sys.platform == "win32":
            stack.enter_context(FileLock(path, timeout=timeout_s))  # removes its file there
        else:
            _enter(stack, path, timeout_s)
        yield


def _enter(stack: ExitStack, path: Path, timeout_s: float) -> None:
    try:
        stack.callback(_release, _acquire(path, timeout_s), path)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        # A disk without flock, as Lustre may be mounted: FileLock then makes and removes a file.
        path.unlink(missing_ok=True)
        stack.enter_context(FileLock(f"{path}.held", timeout=timeout_s))


def _acquire(path: Path, timeout_s: float) -> int:
    """The descriptor of the locked file."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            got = _try_lock(descriptor)
            if got and _lies_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if got:
            continue  # the holder before removed this file: begin again with the one that is there
        if time.monotonic() >= deadline_s:
            raise TimeoutError(
                errno.ETIMEDOUT, f"others have held its lock {path} for {timeout_s:g} s"
            )
        time.sleep(_POLL_S)


def _release(descriptor: int, path: Path) -> None:
    try:
        with suppress(OSError):  # what cannot be removed does no harm
            if _lies_at(path, descriptor):  # and not another's, where a user removed ours
                path.unlink()
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    import fcntl  # not on Windows

    with suppress(OSError):  # the umask would keep other users out; only the owner may
        os.fchmod(descriptor, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # both are said of a lock that another holds
        return False
    return True


def _lies_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError as exc:
        if exc.errno not in {errno.ENOENT, errno.ESTALE}:  # NFS says the second of a removed file
            raise
        return False


LOCK_TIMEOUT_S: Final = 60
"""A lock is held for a rename or two; longer means a stuck process or a strange file system."""

_PART: Final = ".part"
_RETIRED: Final = ".old"
_RANDOM_CHARACTERS: Final = 8  # of a name that tempfile makes
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def staged_folder(
    target: Path, marker: str, look_again: Callable[[], object] | None = None
) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well.

    An error, an interruption or a kill leaves ``target`` as it was; what a killed process left
    behind is removed by the next call for the same target. Two processes at once each publish a
    whole folder; the later one stays. An existing ``target`` is replaced only if it is empty or
    holds the file ``marker``; where it is a symbolic link, the folder behind the link is replaced.
    ``look_again`` is called under the target's lock right before the swap, which it stops by an
    error: others may have put something else there since the caller looked.

    Raises:
        BundleError: the place cannot be written to, or holds something else.
    """
    with translated_write_errors(target):
        target = Path(os.path.realpath(target))
        restore(target)
        _require_replaceable(target, marker)
    with temporary_folder(target) as folder, translated_write_errors(target):
        yield folder
        sync(folder)
        with exclusive(target):
            _require_replaceable(target, marker)  # whoever put something there meanwhile
            if look_again is not None:
                look_again()
            _publish(folder, target)
            sync(target.parent, whole=False)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` for what will be in it or take its place; gone afterwards.

    What killed processes left of such folders for the same target is removed first.

    Raises:
        BundleError: the place cannot be written to.
    """
    with ExitStack() as cleanup:
        with translated_write_errors(target):
            target = Path(os.path.realpath(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Under the target's lock, so that nobody takes the new folder for an abandoned one.
            with exclusive(target):
                _remove_abandoned(target)
                folder = _new_folder(target)
                alive = FileLock(f"{folder}.lock")
                # At once: an interruption may come while the target's lock is given back.
                cleanup.callback(_discard, folder, alive)
                alive.acquire()
        yield folder


def _discard(folder: Path, alive: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # What cannot be removed is removed by the next call, and what was published stays published.
    with suppress(OSError):
        alive.release()
    with suppress(OSError):
        Path(alive.lock_file).unlink(missing_ok=True)


def beside(target: Path) -> Path:
    """The folder that ``target`` lies in; of a symbolic link, that of what it points to."""
    return Path(os.path.realpath(target)).parent


@contextmanager
def translated_write_errors(
    target: Path, remedy: str = "free some space or choose another place with -o"
) -> Iterator[None]:
    """Turn the operating system's refusals into one error that names ``target``.

    Raises:
        BundleError: in place of any ``OSError`` of the block.
    """
    try:
        yield
    except OSError as exc:
        raise BundleError(
            f"cannot write {target}: {exc.strerror or exc}\nnothing half-written was left; {remedy}"
        ) from exc


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; folders are made where they are missing.

    Raises:
        BundleError: the place cannot be written to; a file that was there is as it was.
    """
    with translated_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there; an `OSError` leaves nothing behind."""
    # In the same folder, as a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp's 0o600 would keep a service's own user out
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent, whole=False)


def sync(folder: Path, *, whole: bool = True) -> None:
    """Have the disk keep a folder's names, and with ``whole`` all that is in it.

    Without it a rename may survive a loss of power that the content of the file does not.

    Raises:
        OSError: the disk could not; then nothing may be made of what was written.
    """
    for path in sorted(folder.rglob("*")) if whole else ():
        if not path.is_symlink() and path.is_file():
            _sync(path)
    if sys.platform != "win32":  # which keeps names by itself and opens no folders
        _sync(folder)


def _sync(path: Path) -> None:
    # Windows wants a descriptor that may write; a folder cannot be opened for writing anywhere.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.ENOTSUP}:  # a disk that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the lock of ``target`` among all processes; its file is gone afterwards.

    Raises:
        TimeoutError: another process has held it for `LOCK_TIMEOUT_S`; it is an ``OSError``.
    """
    with locked(lock_of(target), LOCK_TIMEOUT_S):
        yield


def _require_replaceable(target: Path, marker: str) -> None:
    if not target.exists() or (target / marker).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise BundleError(
            f"{target} exists and is not a bundle, so it is not replaced\nchoose another with -o"
        )


def _new_folder(target: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PART, dir=target.parent))
    folder.chmod(0o755)  # mkdtemp's 0o700 would keep a service's own user out
    return folder


def _publish(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    with without_readers(target):
        _exchange(folder, target)  # the old content goes with the temporary folder


def _exchange(folder: Path, target: Path) -> None:
    """Swap two folders; in one step where the system can, so that readers never see a gap."""
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc from 2.28 on
        paths = os.fsencode(folder), os.fsencode(target)
        if rename and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    retired = folder.with_suffix(_RETIRED)
    target.rename(retired)
    try:
        folder.rename(target)
    except OSError:
        retired.rename(target)
        raise
    retired.rename(folder)


def restore(target: Path) -> None:
    """Put back the folder that an interrupted swap in two steps set aside, if there is one.

    Raises:
        BundleError: it cannot be put back.
    """
    target = Path(os.path.realpath(target))
    if target.exists() or not _leftovers(target, _RETIRED):
        return
    with translated_write_errors(target), exclusive(target):
        retired = _leftovers(target, _RETIRED)
        if retired and not target.exists():
            max(retired, key=lambda folder: folder.stat().st_mtime_ns).rename(target)


def _leftovers(target: Path, suffix: str) -> list[Path]:
    """Folders and files beside a target with the names that temporary ones have.

    Of this target only: the folder of a target "x.y" is not one of "x".
    """
    pattern = f".{glob.escape(target.name)}.{'?' * _RANDOM_CHARACTERS}{suffix}"
    return list(target.parent.glob(pattern))


def _remove_abandoned(target: Path) -> None:
    folders = {*_leftovers(target, _PART)}
    # A process that was killed while it removed its folder leaves the lock alone.
    folders |= {path.with_suffix("") for path in _leftovers(target, f"{_PART}.lock")}
    for folder in folders:
        lock = FileLock(f"{folder}.lock")
        # What cannot be removed does no harm here either.
        with suppress(Timeout, OSError), lock.acquire(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
    if target.exists():  # and nobody swaps it now, whose lock is held here
        for folder in _leftovers(target, _RETIRED):
            shutil.rmtree(folder, ignore_errors=True)

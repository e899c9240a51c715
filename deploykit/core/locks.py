"""Locks among processes that leave no file behind."""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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

"""Writing a folder so that it is there whole, or not at all."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from deploykit.core.errors import BundleError
from deploykit.core.locks import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT_S: Final = 60
"""A lock is held for a rename or two; longer means a stuck process or a strange file system."""

_RANDOM_CHARACTERS: Final = 8  # of a name that tempfile makes
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def staged_folder(target: Path, marker: str) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well.

    An error, an interruption or a kill leaves ``target`` as it was; what a killed process left
    behind is removed by the next call for the same target. Two processes at once each publish a
    whole folder; the later one stays. An existing ``target`` is replaced only if it is empty or
    holds the file ``marker``; where it is a symbolic link, the folder behind the link is replaced.

    Raises:
        BundleError: the place cannot be written to, or holds something else.
    """
    with translated_write_errors(target):
        target = Path(os.path.realpath(target))
        _require_replaceable(target, marker)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Under the target's lock, so that nobody takes the new folder for an abandoned one.
        with exclusive(target):
            _remove_abandoned(target)
            folder = _new_folder(target)
            alive = FileLock(f"{folder}.lock")
            alive.acquire()
    try:
        with translated_write_errors(target):
            yield folder
            with exclusive(target):
                _require_replaceable(target, marker)  # whoever put something there meanwhile
                _publish(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        alive.release()
        Path(alive.lock_file).unlink(missing_ok=True)


@contextmanager
def translated_write_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one error that names ``target``.

    Raises:
        BundleError: in place of any ``OSError`` of the block.
    """
    try:
        yield
    except OSError as exc:
        raise BundleError(
            f"cannot write {target}: {exc.strerror or exc}\n"
            "nothing half-written was left; free some space or choose another place with -o"
        ) from exc


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; folders are made where they are missing.

    Raises:
        BundleError: the place cannot be written to; a file that was there is as it was.
    """
    with translated_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)  # mkstemp's 0o600 would keep other users out
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the lock of ``target`` among all processes; its file is gone afterwards.

    Raises:
        TimeoutError: another process has held it for `LOCK_TIMEOUT_S`; it is an ``OSError``.
    """
    place = Path(os.path.realpath(target))
    with locked(place.parent / f".{place.name}.lock", LOCK_TIMEOUT_S):
        yield


def _require_replaceable(target: Path, marker: str) -> None:
    if not target.exists() or (target / marker).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise BundleError(
            f"{target} exists and is not a bundle, so it is not replaced\nchoose another with -o"
        )


def _new_folder(target: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    folder.chmod(0o755)  # mkdtemp's 0o700 would keep a service's own user out
    return folder


def _publish(folder: Path, target: Path) -> None:
    if target.exists():
        _exchange(folder, target)  # the old content goes with the temporary folder
    else:
        folder.rename(target)


def _exchange(folder: Path, target: Path) -> None:
    """Swap two folders; in one step where the system can, so that readers never see a gap."""
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc from 2.28 on
        paths = os.fsencode(folder), os.fsencode(target)
        if rename and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    retired = folder.with_suffix(".old")
    target.rename(retired)
    try:
        folder.rename(target)
    except OSError:
        retired.rename(target)
        raise
    retired.rename(folder)


def _remove_abandoned(target: Path) -> None:
    # Of this target only: the folder of a target "x.y" is not one of "x".
    pattern = f".{glob.escape(target.name)}.{'?' * _RANDOM_CHARACTERS}.part"
    folders = {*target.parent.glob(pattern)}
    # A process that was killed while it removed its folder leaves the lock alone.
    folders |= {path.with_suffix("") for path in target.parent.glob(f"{pattern}.lock")}
    for folder in folders:
        lock = FileLock(f"{folder}.lock")
        with suppress(Timeout), lock.acquire(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)

"""Locks by which those who read a folder and those who swap it give way to one another.

Nothing depends on them but how long somebody waits: not every disk has such locks. Whoever reads
notices a swap and reads again; whoever swaps waits no longer than a moment.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

READERS_S: Final = 5.0
"""Readers hold a bundle's folder while they load it, some seconds; a swap does not wait longer."""

_WRITER_S: Final = 0.5
_POLL_S: Final = 0.002


def lock_of(target: Path) -> Path:
    """The lock file of whoever writes ``target``; there as long as somebody holds it."""
    place = Path(os.path.realpath(target))
    return place.parent / f".{place.name}.lock"


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Read ``folder``: who swaps it waits a moment; one who waits already goes first."""
    descriptor = None if sys.platform == "win32" else _shared(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def without_readers(folder: Path) -> Iterator[None]:
    """Swap ``folder`` when nobody reads it, or after `READERS_S` anyway."""
    descriptor = None
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        _wait_for_lock(descriptor, READERS_S, exclusive=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _shared(folder: Path) -> int | None:
    _let_writer_pass(lock_of(folder))
    deadline_s = time.monotonic() + _WRITER_S
    while time.monotonic() < deadline_s:
        try:
            # A pipe in its place would make this wait until somebody writes.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # whoever reads it says what is wrong
            return None
        _wait_for_lock(descriptor, _WRITER_S, exclusive=False)
        if _lies_at(folder, descriptor):
            return descriptor
        os.close(descriptor)
    return None


def _let_writer_pass(lock: Path) -> None:
    """Wait for a writer: readers that follow one another would never leave it a gap."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe of a stranger
    except OSError:
        return
    try:
        _wait_for_lock(descriptor, _WRITER_S, exclusive=False)
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, timeout_s: float, *, exclusive: bool) -> None:
    """Lock it, if that is possible within the time."""
    import fcntl  # not on Windows

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
        except OSError:  # a disk without such locks
            return
        else:
            return


def _lies_at(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False

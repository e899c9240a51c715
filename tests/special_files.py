"""Things in a file system that are no regular files."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def pipe(path: Path) -> None:
    """A FIFO that nobody writes to: whoever opens it waits."""
    os.mkfifo(path)


def zeros(path: Path) -> None:
    """A link to a device that never ends."""
    path.symlink_to("/dev/zero")


def link_to_pipe(path: Path) -> None:
    hidden = path.with_name(f".{path.name}.pipe")
    os.mkfifo(hidden)
    path.symlink_to(hidden)


def unix_socket(path: Path) -> None:
    """Bound by its name alone: the path of a test may be longer than a socket's address."""
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": pipe,
    "zeros": zeros,
    "link": link_to_pipe,
    "socket": unix_socket,
}

"""Regular files, the only kind that is read: no pipes, devices, sockets or folders.

A pipe that is named as an image makes its reader wait until somebody writes, and ``/dev/zero``
never ends. All that a stranger may have named or put into a folder is opened here.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from deploykit.core.errors import ModelFileError

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

_KINDS: Final = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """A pipe, a device or a socket, or a link to one, where a file is expected."""


def require_regular(path: Path) -> None:
    """Refuse what is there but is no regular file, before anything opens it.

    It is for readers of other packages that take a path; our own use `open_regular`.

    Raises:
        NotRegularError: a pipe, a device or a socket, or a link to one.
        OSError: a folder, nothing is there, or it may not be looked at.
    """
    _require(path, path.stat())


def require_utf8(path: Path) -> None:
    """Refuse a path that onnx and onnxruntime cannot be given: they take text alone.

    Raises:
        ModelFileError: it has bytes that are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ModelFileError(
            f"{path} has bytes in its name that are no UTF-8, onnx and onnxruntime cannot open it\n"
            "rename the file, or the folder that has them"
        ) from None


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading in binary; anything else is refused without a wait.

    Raises:
        NotRegularError: as `require_regular`.
        OSError: it cannot be opened.
    """
    # Before it is opened: that alone already releases a writer at a pipe, and moves some devices.
    require_regular(path)
    # Not blocking, and looked at once more, because another thing may be there by now.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _require(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def is_special(path: Path) -> bool:
    """True for a pipe, a device or a socket, also behind a link; not for what is gone."""
    try:
        require_regular(path)
    except NotRegularError:
        return True
    except OSError:  # whoever reads it says what is wrong with it
        return False
    return False


def is_regular(path: Path) -> bool:
    """True for a regular file or a link to one; not for what no file can be called."""
    try:
        require_regular(path)
    except (OSError, ValueError):
        return False
    return True


def read_regular(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def read_regular_text(path: Path) -> str:
    """The content of a regular file in UTF-8.

    Raises:
        OSError: as `open_regular`.
        UnicodeDecodeError: it is in another encoding.
    """
    return read_regular(path).decode("utf-8")


def _require(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise NotRegularError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))

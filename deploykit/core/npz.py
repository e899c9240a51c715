"""Array files (``.npz``) of strangers, bounded before anything of them is unpacked."""

from __future__ import annotations

from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.core.errors import DataError
from deploykit.core.regular_files import open_regular

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterator
    from pathlib import Path

_LEAST: Final = 256 * 2**20
"""Bytes that any file may unpack to."""

_TIMES: Final = 32
"""Bytes that each byte of a larger file may unpack to.

Deflate reaches 1,032. Photographs reach 2, weights 1.1, and MNIST in three equal channels 12.
"""


@contextmanager
def open_npz(path: Path, content: bytes | None = None) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive, whose arrays are read when they are asked for; pickles are never read.

    A file that `numpy.savez` wrote passes at any size: it is not compressed. ``content`` is that of
    the file where it was read already.

    Raises:
        DataError: its arrays would take far more memory than the file has bytes.
        Exception: whatever numpy, zipfile and zlib raise on damaged bytes.
    """
    # Opened here, because numpy leaves a damaged file open.
    with open_regular(path) if content is None else BytesIO(content) as file:
        bytes_packed = file.seek(0, 2)
        file.seek(0)
        found: Any = np.load(file, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, no archive of arrays")  # noqa: TRY004
        with found as archive:
            _require_bounded(path, bytes_packed, archive.zip)
            yield archive


def _require_bounded(path: Path, bytes_packed: int, archive: zipfile.ZipFile | None) -> None:
    # zipfile gives no more of a member than its entry says, so an entry that lies is cut off.
    members = [] if archive is None else archive.infolist()
    bytes_unpacked = sum(member.file_size for member in members)
    limit = max(_LEAST, _TIMES * bytes_packed)
    if bytes_unpacked > limit:
        raise DataError(
            f"{path} has {bytes_packed:,} bytes, its arrays would take {bytes_unpacked:,}\n"
            f"expected at most {limit:,} of a compressed file; if it is meant so, write it with "
            "numpy.savez, which does not compress"
        )

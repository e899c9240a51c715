"""Sizes of files in the unit that fits."""

from __future__ import annotations


def byte_size(count: int) -> str:
    """Bytes in the decimal unit that fits, as disks and download pages count them.

    >>> byte_size(51_600_000), byte_size(4_210), byte_size(312), byte_size(2_530_000_000)
    ('51.6 MB', '4.2 kB', '312 B', '2.53 GB')
    """
    for limit, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if count >= limit:
            return f"{count / limit:.{digits}f} {unit}"
    return f"{count} B"

"""The peak of a process's memory, for tests that measure one in a process of its own."""

from __future__ import annotations

from pathlib import Path


def peak_bytes() -> int:
    """The most resident memory that this process had since it began.

    Not ``ru_maxrss``, which begins at the peak of the process that started this one: beside the
    hundreds of megabytes of a test run nothing would seem to grow.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024  # in kB

"""``python -m deploykit.costs.cpu_trial THREADS SECONDS``: the rates of this CPU as JSON.

A program of its own, because BLAS reads its number of threads when numpy is first imported.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCT_SIZE: Final = 1536
"""Rows of the matrices: three of 9 MiB and 7.2 GFLOP, long enough for any number of threads."""

COPY_BYTES: Final = 256 * 2**20
"""Bytes of one array, far beyond most caches.

Where a cache holds them the rate is too high, the limit too low, and still a lower bound.
"""

_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30}
_MIN_REPETITIONS: Final = 3


def best_time_s(work: Callable[[], object], seconds: float) -> float:
    """Shortest of the runs that fit in ``seconds``, three at least, after one that warms up."""
    work()
    times: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(times) < _MIN_REPETITIONS:
        begin = perf_counter()
        work()
        times.append(perf_counter() - begin)
    # The shortest, as what disturbs a run only ever makes it longer.
    return min(times)


def product_flop_per_s(seconds: float, size: int = PRODUCT_SIZE) -> float:
    """Rate of an FP32 matrix product, on as many threads as BLAS was started with."""
    random = np.random.default_rng(0)
    left, right = (random.random((size, size), dtype=np.float32) for _ in range(2))
    result = np.empty_like(left)
    # Into an array that exists: a new one for each run would add page faults to its time.
    return 2 * size**3 / best_time_s(lambda: np.matmul(left, right, out=result), seconds)


def memory_bytes_per_s(threads: int, seconds: float, size: int = COPY_BYTES) -> float:
    """Memory rate, the better of a copy (bytes read and written) and a maximum (bytes read)."""
    # Ones and not zeros: untouched pages of np.zeros may all be one page of the system.
    source = np.ones(size // 4, np.float32)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    # Threads are enough: numpy releases the interpreter's lock in both functions.
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), parts))

        def read() -> None:
            list(pool.map(lambda pair: np.max(pair[0]), parts))

        copied = 2 * source.nbytes / best_time_s(copy, seconds)
        return max(copied, source.nbytes / best_time_s(read, seconds))


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the first processor's largest cache; 0 where the system does not report it."""
    sizes = [0]
    for path in folder.glob("index*/size"):
        text = path.read_text("ascii").strip()
        number, unit = text.rstrip("KMG"), text[-1:]
        if number.isdecimal():
            sizes.append(int(number) * _UNITS.get(unit, 1))
    return max(sizes)


def main(threads: int, seconds: float) -> None:
    """Print the rates as one JSON object."""
    report = {
        "numpy": np.__version__,
        "fp32_flop_per_s": product_flop_per_s(seconds),
        "bytes_per_s": memory_bytes_per_s(threads, seconds),
        "cache_bytes": cache_bytes(),
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

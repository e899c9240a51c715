"""``python -m deploykit.backends._product NAME THREADS SECONDS``: rate of its matrix product.

A program of its own, because the libraries share the cores of the process that they run in.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np

from deploykit.backends._backend import CPU, ModuleBackend
from deploykit.backends._registry import backends, find_backend
from deploykit.costs.cpu_trial import PRODUCT_SIZE, best_time_s

if TYPE_CHECKING:
    from collections.abc import Collection


def product_programs(measured: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Module and argument of each trial that fits a run of the backends ``measured``.

    One that runs modules is left out where it is not measured: torch takes seconds to import.
    """
    fitting = (
        each.name
        for each in backends()
        if each.device == CPU
        and each.product is not None
        and (each.name in measured or not isinstance(each, ModuleBackend))
        and not each.problem(())
    )
    return tuple((__name__, name) for name in fitting)


def product_flop_per_s(
    name: str, threads: int, seconds: float, size: int = PRODUCT_SIZE
) -> float | None:
    """Rate of a backend's FP32 product of two (size, size) matrices; ``None`` if it has none."""
    product = find_backend(name).product
    if product is None:
        return None
    random = np.random.default_rng(0)
    left, right = (random.random((size, size), dtype=np.float32) for _ in range(2))
    return 2 * size**3 / best_time_s(product(left, right, threads), seconds)


def main(name: str, threads: int, seconds: float) -> None:
    """Print the rate and what has it as one JSON object."""
    label = find_backend(name).label
    rate = product_flop_per_s(name, threads, seconds)
    sys.stdout.write(json.dumps({"label": label, "fp32_flop_per_s": rate}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

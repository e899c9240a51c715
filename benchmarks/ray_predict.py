"""`deploykit predict --ray` on this machine: time with one and two workers, and memory.

``python -m benchmarks.ray_predict --images 20000``, with nothing else on the machine. It makes
images of 32x32 and a bundle of the tests, whose network costs next to nothing: what is measured is
everything around it. With ``--bundle FOLDER`` a network of one's own is computed, on one thread of
each worker. Memory is the proportional set size of the driver and all its processes,
after each part; flat means that the last third is not above the first. The start of Ray is apart.
Results are in ``results/ray_predict.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psutil
from PIL import Image

from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain
from deploykit.core.specs import Preprocessing
from deploykit.ray.cluster import cluster
from deploykit.ray.predicting import ClusterChoices, predict_on_cluster
from tests.bundles import write_bundle

RESULT: Final = Path(__file__).parent / "results" / "ray_predict.json"
SIDE: Final = 32
WORKERS: Final = (1, 2)


class Watch:
    """Memory after each part, in MB, of this process and of all that it started."""

    def __init__(self) -> None:
        self.memory_mb: list[float] = []

    def update(self, done: float, total: float | None = None, detail: str = "") -> None:  # noqa: ARG002, D102
        if not done:
            return
        found = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with suppress(psutil.Error):  # it ended meanwhile
                found += process.memory_full_info().pss
        self.memory_mb.append(found / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--bundle", type=Path, help="in place of that of the tests")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", asked.images)
        bundle = asked.bundle or write_bundle(
            folder / "bundle", image="H, W", preprocessing=Preprocessing(crop=(SIDE, SIDE))
        )
        with cluster(None):
            rows = [measure(bundle, folder, workers) for workers in WORKERS]
    result = {"images": asked.images, "rows": rows, "environment": to_plain(describe())}
    asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print({key: value for key, value in row.items() if key != "memory_mb"})


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for at in range(count):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{at:06}.png")


def measure(bundle: Path, folder: Path, workers: int) -> dict[str, Any]:
    watch, start = Watch(), time.perf_counter()
    choices = ClusterChoices(device="cpu", workers=workers)
    report = predict_on_cluster(
        bundle, str(folder / "images"), folder / f"out{workers}", choices, watch
    )
    seconds = time.perf_counter() - start
    third = max(1, len(watch.memory_mb) // 3)
    return {
        "workers": workers,
        "rows": report.rows,
        "failed": report.failed,
        "parts": report.parts,
        "seconds": round(seconds, 2),
        "images_per_s": round(report.rows / seconds, 1),
        "memory_first_third_mb": round(median(watch.memory_mb[:third]), 1),
        "memory_last_third_mb": round(median(watch.memory_mb[-third:]), 1),
        "memory_mb": [round(each, 1) for each in watch.memory_mb],
    }


if __name__ == "__main__":
    main()

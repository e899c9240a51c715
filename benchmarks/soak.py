"""One loaded model under 16 threads for ten minutes: every answer compared, memory watched.

Run it from the root of the repository with nothing else on the machine:
``python -m benchmarks.soak BUNDLE``. Each thread calls at random `Classifier.run`,
`Classifier.predict` and a `MicroBatcher` in all its ways, with batches of every size, and now and
then cancels a request or hands over NaN. The right answers are computed beforehand, one image at a
time, by one thread.

With ``--stand-in DIR`` the model runs through the TensorRT runner, on a stand-in for the CUDA
driver (DIR has its ``libcuda.so.1``) and the tests' fake of TensorRT, which computes with
onnxruntime: everything between the call and the GPU is real then. Results are in
``results/soak_cpu.json`` and ``results/soak_stand_in.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL.Image import Image, Transpose

import deploykit
from benchmarks.soak_calls import Material, Subject, work
from deploykit import images
from deploykit.backends._registry import graph_judge
from deploykit.bundle.manifest import Bundle
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from deploykit.core.specs import Preprocessing

RESULTS: Final = Path(__file__).parent / "results"
REAL_DRIVER: Final = Path("/proc/driver/nvidia/version")

IMAGES: Final = 24
LARGEST_BATCH: Final = 8
"""Of the batcher, and of the engine on the stand-in: larger runs are split there."""

WARM_UP: Final = 0.2
"""Share of the time before memory counts: pools, arenas and caches fill up."""

SHOWN: Final = 20
"""Problems that are kept in words; all are counted."""


def watch(seconds: float) -> list[tuple[float, float]]:
    """Resident memory each second: minutes since the start, MiB."""
    start, samples = time.monotonic(), []
    while (passed := time.monotonic() - start) < seconds:
        samples.append((passed / 60, resident_mib()))
        time.sleep(1)
    return samples


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_material(bundle: Bundle) -> Material:
    encoded = [random_jpeg(number) for number in range(IMAGES)]
    preprocessing = bundle.manifest.preprocessing
    batch = np.stack([prepare(upload, preprocessing) for upload in encoded])
    with graph_judge().open_artifact(bundle.manifest.onnx, threads=1) as runner:
        (given,), (wanted, *_) = runner.inputs, runner.outputs
        rows = [runner.run({given.name: image[None]})[wanted.name] for image in batch]
    logits = np.concatenate(rows).astype(np.float32)
    # A tenth of what keeps the two most similar images apart: no answer passes for another's.
    apart = np.abs(logits[:, None] - logits[None]).max(axis=2)
    closest = float(apart[~np.eye(IMAGES, dtype=bool)].min())
    return Material(encoded, batch, logits, tolerance=closest / 10)


def random_jpeg(seed: int) -> bytes:
    random, samples = np.random.default_rng(seed), images.sample_images()
    image: Image = samples.load(seed % len(samples))
    side = int(min(image.size) * random.uniform(0.5, 0.9))
    left = int(random.integers(image.width - side + 1))
    top = int(random.integers(image.height - side + 1))
    cut = image.crop((left, top, left + side, top + side)).resize((256, 256))
    file = BytesIO()
    (cut.transpose(Transpose.FLIP_LEFT_RIGHT) if seed % 2 else cut).save(file, "JPEG", quality=92)
    return file.getvalue()


def prepare(encoded: bytes, preprocessing: Preprocessing) -> NDArray[np.float32]:
    return images.preprocess(images.decode(encoded), preprocessing)


@contextmanager
def on_stand_in(bundle: Bundle) -> Iterator[deploykit.Classifier]:
    """The bundle's graph as an engine of the fake runtime."""
    from deploykit.backends import Compiler
    from deploykit.backends.trt.compiler import TENSORRT
    from deploykit.backends.trt.runner import TrtRunner
    from deploykit.core.sizes import ShapeProfile
    from deploykit.runtime.choice import Chosen
    from deploykit.runtime.inputs import BatchLimits
    from tests.fakes.runtime_fake import FakeRuntime, Script

    profile = ShapeProfile(1, LARGEST_BATCH, LARGEST_BATCH)
    compiler = Compiler(TENSORRT, FakeRuntime.__version__, FakeRuntime(Script()))
    # Its plan is the ONNX file itself.
    with TrtRunner(bundle.model_path, compiler, profile) as runner:
        limits = BatchLimits.of_engine(profile)
        choice = "TensorRT's fake on the stand-in driver"
        chosen = Chosen(runner, "cuda", limits, choice, bundle.model_path.name)
        yield deploykit.Classifier(bundle, chosen)


def soak(model: deploykit.Classifier, material: Material, minutes: float, threads: int) -> Any:
    stop = threading.Event()
    model.self_test()
    with (
        deploykit.MicroBatcher(model, max_batch=LARGEST_BATCH, workers=2) as batcher,
        ThreadPoolExecutor(threads) as pool,
    ):
        subject = Subject(model, batcher, material)
        tallies = [pool.submit(work, subject, seed, stop) for seed in range(threads)]
        try:
            memory = watch(60 * minutes)
        finally:
            stop.set()
        seen = [tally.result() for tally in tallies]
        stats = batcher.stats()
    model.self_test()
    problems = [problem for tally in seen for problem in tally.problems]
    return {
        "calls": dict(sum((tally.calls for tally in seen), Counter())),
        "images": sum(tally.images for tally in seen),
        "problems": len(problems),
        "problems_shown": problems[:SHOWN],
        "batcher": asdict(stats),
        "memory": flatness(memory),
    }


def flatness(samples: list[tuple[float, float]]) -> dict[str, Any]:
    """Least squares through the samples after the warm-up."""
    minutes, mib = np.array(samples).T
    counted = minutes >= WARM_UP * minutes[-1]
    slope, _ = np.polyfit(minutes[counted], mib[counted], 1)
    return {
        "warm_up_min": WARM_UP * minutes[-1],
        "slope_mib_per_min": float(slope),
        "peak_mib": float(mib.max()),
        "mib_by_minute": [[round(when, 3), round(size, 2)] for when, size in samples],
    }


def show(result: dict[str, Any]) -> str:
    memory = result["memory"]
    calls = "\n".join(f"| {name} | {count} |" for name, count in sorted(result["calls"].items()))
    slope, warm_up = memory["slope_mib_per_min"], memory["warm_up_min"]
    return (
        f"| call | times |\n|---|---|\n{calls}\n\n"
        f"{result['images']} images, {result['problems']} problems\n"
        f"memory: {slope:+.2f} MiB/min after {warm_up:.1f} min, "
        f"at most {memory['peak_mib']:.0f} MiB"
    )


def open_model(bundle: Path, *, stand_in: bool) -> AbstractContextManager[deploykit.Classifier]:
    if stand_in:
        return on_stand_in(Bundle.open(bundle))
    return deploykit.load(bundle, device="cpu", threads=1)  # 16 callers fill the cores


def measure(options: argparse.Namespace, *, stand_in: bool) -> dict[str, Any]:
    # Splitting is part of the soak.
    warnings.simplefilter("ignore", deploykit.BatchSplitWarning)
    material = make_material(Bundle.open(options.bundle))
    with open_model(options.bundle, stand_in=stand_in) as model:
        result = soak(model, material, options.minutes, options.threads)
        return {
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": to_plain(describe()),
            "model": model.name,
            "choice": model.choice,
            "minutes": options.minutes,
            "threads": options.threads,
            "tolerance": material.tolerance,
            "largest_logit": float(np.abs(material.logits).max()),
            **result,
        }


def start_on_stand_in(folder: Path) -> int:
    """The same command in a process that finds the stand-in instead of a driver."""
    if REAL_DRIVER.exists():
        sys.exit("this machine has a real driver, which the stand-in must not hide")
    command = [sys.executable, "-m", "benchmarks.soak", *sys.argv[1:]]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(command, env=environment, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--stand-in", type=lambda folder: Path(folder).resolve(), metavar="DIR")
    options = parser.parse_args()
    stand_in = options.stand_in is not None
    if stand_in and os.environ.get("LD_LIBRARY_PATH") != str(options.stand_in):
        sys.exit(start_on_stand_in(options.stand_in))
    result = measure(options, stand_in=stand_in)
    place = RESULTS / f"soak_{'stand_in' if stand_in else 'cpu'}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(show(result))
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()

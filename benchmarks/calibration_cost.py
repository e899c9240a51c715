"""What calibration costs beside a plain pass over the same images: wall time and memory.

Run it with nothing else on the machine: ``python benchmarks/calibration_cost.py MODEL``, where
MODEL is the FP32 ``.onnx`` of ResNet-50 (``deploykit export resnet50 --backend none``). The images
are random cuts of deploykit's sample photographs. Calibration and plain pass alternate, each in a
process of its own, measured from its start to its end; every sample is kept in
``benchmarks/results/calibration_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from PIL.Image import Image, Transpose

from deploykit import images, onnx_graph
from deploykit.backends.ort import OrtRunner
from deploykit.environment import describe
from deploykit.onnx_graph.qdq import plan_qdq
from deploykit.specs import Preprocessing, SilentProgress
from deploykit.stages.calibrate import CalibrationData, calibrate

HERE = Path(__file__).parent
WIDTH, HEIGHT = 500, 375


@dataclass(frozen=True)
class Sample:
    """One run of one process: its wall time and its largest resident memory."""

    what: str
    images: int
    seconds: float
    peak_mib: float


def make_photographs(folder: Path, count: int) -> None:
    """JPEG files of random cuts, half of them mirrored."""
    random = np.random.default_rng(0)
    samples = images.sample_images()
    for number in range(count):
        image = random_cut(samples.load(int(random.integers(len(samples)))), random)
        image.save(folder / f"{number:05}.jpg", quality=90)


def random_cut(image: Image, random: np.random.Generator) -> Image:
    share = random.uniform(0.5, 1)
    width, height = int(image.width * share), int(image.height * share)
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    cut = image.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT))
    return cut.transpose(Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else cut  # noqa: PLR2004


def calibrate_once(model: Path, folder: Path, count: int, threads: int, table: Path) -> None:
    """The whole of a calibration, from the file of the model to that of the table."""
    artifact = onnx_graph.read_artifact(model)
    tensors = plan_qdq(onnx_graph.read_model(model)).tensors
    source = images.open_images(folder)
    preprocessing = Preprocessing(crop=(224, 224), resize=256)
    data = CalibrationData(source, preprocessing, range(count), seed=0)
    open_runner = partial(OrtRunner, threads=threads, spin=False)
    with SilentProgress().step("calibrate") as task:
        found = calibrate(artifact, tensors, data, open_runner=open_runner, task=task)
    found.save(table)
    if "torch" in sys.modules:
        sys.exit("torch was imported: these figures are not what they are said to be")


def measure(what: str, count: int, command: list[str]) -> Sample:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None  # noqa: S101 - PIPE was asked for
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{what} failed:\n{errors.decode()}")
    return Sample(what, count, seconds, usage.ru_maxrss / 1024)


def collect(model: Path, counts: list[int], rounds: int, threads: int) -> list[Sample]:
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        photographs = Path(name) / "images"
        photographs.mkdir()
        make_photographs(photographs, max(counts))
        for done in range(rounds):
            for count in counts:
                print(f"round {done + 1} of {rounds}: {count} images", file=sys.stderr)
                places = [str(model), str(photographs), str(count), str(threads)]
                plain = [sys.executable, str(HERE / "plain_pass.py"), *places]
                ours = [sys.executable, __file__, *places[:1], "--once", *places[1:]]
                samples.append(measure("plain pass", count, plain))
                samples.append(measure("calibration", count, [*ours, f"{name}/table.json"]))
    return samples


def table(samples: list[Sample]) -> str:
    lines = ["| images | command | median s | fastest s | peak MiB |", "|---|---|---|---|---|"]
    for count, what in dict.fromkeys((s.images, s.what) for s in samples):
        mine = [s for s in samples if (s.images, s.what) == (count, what)]
        seconds = [s.seconds for s in mine]
        peak = max(s.peak_mib for s in mine)
        median = statistics.median(seconds)
        lines.append(f"| {count} | {what} | {median:.1f} | {min(seconds):.1f} | {peak:.0f} |")
    return "\n".join(lines)


def ratios(samples: list[Sample]) -> str:
    lines = []
    for count in dict.fromkeys(s.images for s in samples):
        mine = [s for s in samples if s.images == count]
        # They alternate: each calibration is compared with the plain pass just before it.
        pairs = zip(mine[::2], mine[1::2], strict=True)
        each = sorted(ours.seconds / plain.seconds for plain, ours in pairs)
        lines.append(
            f"{count} images: {statistics.median(each):.2f} x the time of a plain pass, "
            f"{each[0]:.2f} to {each[-1]:.2f} in {len(each)} pairs"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--once", nargs=4, metavar=("FOLDER", "COUNT", "THREADS", "TABLE"))
    options = parser.parse_args()
    if options.once:
        folder, count, threads, target = options.once
        calibrate_once(options.model, Path(folder), int(count), int(threads), Path(target))
        return
    samples = collect(options.model, options.counts, options.rounds, options.threads)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe().to_dict(),
        "threads": options.threads,
        "samples": [asdict(sample) for sample in samples],
    }
    place = HERE / "results" / "calibration_cost.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(samples))
    print()
    print(ratios(samples))


if __name__ == "__main__":
    main()

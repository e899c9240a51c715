"""What calibration costs beside a plain pass over the same images: wall time and memory.

Run it with nothing else on the machine: ``python -m benchmarks.calibration_cost MODEL...``, where
each MODEL is an FP32 ``.onnx`` (``deploykit export resnet50 --fp32 --backend none``). The images
are random cuts of deploykit's sample photographs. Calibration and plain pass alternate, each in a
process of its own, measured from its start to its end. ``--export`` adds, in each round,
``deploykit export resnet50`` in FP16 and in INT8, the latter with the largest number of images.
Every sample is kept in ``benchmarks/results/calibration_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL.Image import Image, Transpose

from benchmarks import export_cost
from deploykit import images
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

HERE = Path(__file__).parent
WIDTH, HEIGHT = 500, 375
EXPORTED = "resnet50"


@dataclass(frozen=True)
class Sample:
    """One run of one process: its wall time and its largest resident memory."""

    model: str
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


def measure(model: str, what: str, count: int, command: list[str], folder: str) -> Sample:
    sample = export_cost.measure(what, command, Path(folder))
    return Sample(model, what, count, sample.seconds, sample.peak_mib)


def collect(models: list[Path], counts: list[int], rounds: int, *, export: bool) -> list[Sample]:
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        photographs = Path(name) / "images"
        photographs.mkdir()
        make_photographs(photographs, max(counts))
        for done in range(rounds):
            for model in models:
                for count in counts:
                    asked = f"{model.stem}, {count} images"
                    print(f"round {done + 1} of {rounds}: {asked}", file=sys.stderr)
                    samples += pair(model, photographs, count, name)
            if export:
                samples += exports(photographs, max(counts), name)
    return samples


def pair(model: Path, photographs: Path, count: int, folder: str) -> list[Sample]:
    places = [str(model), str(photographs), str(count), str(os.cpu_count() or 1)]
    plain = [sys.executable, str(HERE / "plain_pass.py"), *places]
    table = Path(folder) / "table.json"
    table.unlink(missing_ok=True)  # it would be used again
    ours = [sys.executable, "-m", "deploykit", "calibrate", str(model)]
    ours += ["--data", str(photographs), "--calib-count", str(count), "-o", str(table)]
    return [
        measure(model.stem, "plain pass", count, plain, folder),
        measure(model.stem, "calibration", count, ours, folder),
    ]


def exports(photographs: Path, count: int, folder: str) -> list[Sample]:
    """What a user waits for: FP16, and INT8 with its calibration."""
    table = Path(folder) / "engines" / f"{EXPORTED}.calibration.json"
    table.unlink(missing_ok=True)  # it would be used again
    bare = [sys.executable, "-m", "deploykit", "export", EXPORTED]
    int8 = [*bare, "--int8", "--calib", str(photographs), "--calib-count", str(count)]
    return [
        measure(EXPORTED, "export --fp16", 0, [*bare, "--fp16"], folder),
        measure(EXPORTED, "export --int8", count, int8, folder),
    ]


def table(samples: list[Sample]) -> str:
    lines = ["| network | images | command | median s | fastest s | peak MiB |"]
    lines.append("|---" * 6 + "|")
    for key in dict.fromkeys((s.model, s.images, s.what) for s in samples):
        mine = [s for s in samples if (s.model, s.images, s.what) == key]
        each = [s.seconds for s in mine]
        peak, median = max(s.peak_mib for s in mine), statistics.median(each)
        asked = " | ".join(map(str, key))
        lines.append(f"| {asked} | {median:.1f} | {min(each):.1f} | {peak:.0f} |")
    return "\n".join(lines)


def ratios(samples: list[Sample]) -> str:
    lines = []
    for model, count in dict.fromkeys(
        (s.model, s.images) for s in samples if s.what == "plain pass"
    ):
        # They alternate: each calibration is compared with the plain pass just before it.
        mine = [s for s in samples if s.model == model]
        plain, ours = seconds(mine, "plain pass", count), seconds(mine, "calibration", count)
        each = [one / other for one, other in zip(ours, plain, strict=True)]
        lines.append(f"{model}, {count} images: {spread(each)} x the time of a plain pass")
    mine = [s for s in samples if s.model == EXPORTED]
    count = max(s.images for s in samples)
    fp16, int8 = seconds(mine, "export --fp16", 0), seconds(mine, "export --int8", count)
    calibrations = seconds(mine, "calibration", count)
    together = [whole / (a + b) for whole, a, b in zip(int8, fp16, calibrations, strict=False)]
    if together:
        lines.append(f"export --int8: {spread(together)} x (calibration + export --fp16)")
    return "\n".join(lines)


def seconds(samples: list[Sample], what: str, count: int) -> list[float]:
    return [s.seconds for s in samples if (s.what, s.images) == (what, count)]


def spread(each: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f} in {len(each)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", type=Path, nargs="+", help="FP32 files; with --export resnet50.onnx too"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--export", action="store_true")
    options = parser.parse_args()
    models = [model.resolve() for model in options.models]
    samples = collect(models, options.counts, options.rounds, export=options.export)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "threads": os.cpu_count(),
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

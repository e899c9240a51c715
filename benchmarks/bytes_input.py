"""Host time of `predict` per image and bytes copied to the GPU: bytes in against prepared images.

``python -m benchmarks.bytes_input --cuda-stand-in DIR``; DIR holds a stand-in ``libcuda.so.1``,
whose device memory is host memory. Two bundles of one small network of 224x224 are exported, one
with ``--input uint8``. Each is loaded as `deploykit.load` does, on the TensorRT runner that is our
own with the tests' fake runtime, which computes nothing: what is left is decoding, preprocessing,
gathering, and the copies into page-locked memory and from there to the "GPU".

Frames are uint8 (256, 256, 3), as a camera gives them, so that nothing is decoded; files are JPEGs
of some 0.1 megapixels. Both bundles are called in turn in each round, in an order that changes.
Beside that, what the orders of the normalisation's steps round. Every sample is kept in
``benchmarks/results/bytes_input.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import deploykit
from deploykit.backends import Compiler
from deploykit.backends.trt.compiler import TENSORRT
from deploykit.backends.trt.runner import TrtRunner
from deploykit.core.environment import describe, gpus
from deploykit.core.serialization import to_plain
from deploykit.core.sizes import ShapeProfile
from deploykit.runtime.choice import Chosen
from deploykit.runtime.classifier import Classifier
from deploykit.runtime.inputs import BatchLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.bundle.manifest import Bundle

HERE = Path(__file__).parent
SIZE, FRAME, BATCH = 224, 256, 8
INPUTS = ("uint8", "float32")
PROFILE = ShapeProfile(1, BATCH, BATCH)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sample:
    """One call of `predict`: milliseconds for each of its images, on the clock and of the cores.

    Other work on a machine lengthens the first alone.
    """

    input: str
    images: str
    batch: int
    wall_ms_per_image: float
    cpu_ms_per_image: float


def export(folder: Path, given: str) -> Bundle:
    from tests.bundles import write_classifier

    original = write_classifier(folder / "net.onnx", image=f"{SIZE}, {SIZE}")
    return deploykit.export(
        original, input=given, mean=MEAN, std=STD, resize=FRAME, backend="none",
        output=folder / given, quiet=True,
    )  # fmt: skip


class Counting(TrtRunner):
    """Our runner, which adds up the bytes that it is fed."""

    fed = 0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """As the runner's own."""
        self.fed += sum(array.nbytes for array in feeds.values())
        return super().run(feeds)


def load(bundle: Bundle, stack: ExitStack) -> Classifier:
    """The bundle on the stand-in driver, with an engine that computes nothing."""
    from tests.fakes.runtime_fake import FakeRuntime, Script

    script = Script(work=ctypes.CDLL(None).free)
    compiler = Compiler(TENSORRT, FakeRuntime.__version__, FakeRuntime(script))
    runner = Counting(bundle.model_path, compiler, PROFILE)
    limits = BatchLimits.of_engine(PROFILE)
    chosen = Chosen(runner, "cuda", limits, "the stand-in", bundle.model_path.name, PROFILE)
    return stack.enter_context(Classifier(bundle, chosen))


def images() -> dict[str, list[Any]]:
    files = sorted((Path(deploykit.__file__).parent / "samples").glob("*.jpg"))[:BATCH]
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (FRAME, FRAME, 3), np.uint8) for _ in range(BATCH)]
    return {"frames": frames, "files": list(files)}


def measure(rounds: int) -> tuple[list[Sample], dict[str, int]]:
    samples, sources = [], images()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        models = {each: load(export(Path(name), each), stack) for each in INPUTS}
        copied = {each: _fed_for_one(model, sources) for each, model in models.items()}
        for number in range(-2, rounds):  # two rounds to warm up
            order = INPUTS if number % 2 else INPUTS[::-1]
            for kind, source in sources.items():
                for count in (1, BATCH):
                    for given in order:
                        wall_ms, cpu_ms = _predict_ms(models[given], source[:count])
                        if number >= 0:
                            samples.append(
                                Sample(given, kind, count, wall_ms / count, cpu_ms / count)
                            )
    return samples, copied


LOOKS = {
    "ImageNet": (MEAN, STD),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def roundings() -> dict[str, float]:
    """Largest error of a normalised pixel against FP64, of all 256, by the order of the steps."""
    worst: dict[str, float] = {}
    for means, stds in LOOKS.values():
        for mean, std in zip(means, stds, strict=True):
            for name, found in _normalised(mean, std).items():
                exact = (np.arange(256) / 255 - mean) / std
                error = float(np.abs(found.astype(np.float64) - exact).max())
                worst[name] = max(worst.get(name, 0.0), error)
    return worst


def _normalised(mean: float, std: float) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    found = {}
    kinds: tuple[Any, ...] = (np.float32, np.float16)
    for kind in kinds:
        x, m, s, name = np.arange(256).astype(kind), kind(mean), kind(std), kind.__name__
        found[f"{name}: x / 255 - mean, / std"] = (x / kind(255) - m) / s
        found[f"{name}: x * scale + shift"] = x * kind(1 / (255 * std)) + kind(-mean / std)
        found[f"{name}: (x - 255 mean) * scale"] = (x - kind(255 * mean)) * kind(1 / (255 * std))
    chosen = found["float32: (x - 255 mean) * scale"]
    return {**found, "float32: (x - 255 mean) * scale, then cast": chosen.astype(np.float16)}


def _fed_for_one(model: Classifier, sources: Mapping[str, list[Any]]) -> int:
    runner: Any = model.runner
    before = runner.fed
    model.predict(sources["frames"][0])
    return int(runner.fed - before)


def _predict_ms(model: Classifier, given: list[Any]) -> tuple[float, float]:
    """On the clock, and of all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    model.predict(given)
    return (time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3


def ratios(samples: list[Sample], kind: str, count: int) -> list[float]:
    """Time of the cores with bytes in over that with prepared images, for each round."""
    by_input = {
        given: [
            s.cpu_ms_per_image
            for s in samples
            if (s.input, s.images, s.batch) == (given, kind, count)
        ]
        for given in INPUTS
    }
    return [left / right for left, right in zip(*by_input.values(), strict=True)]


def interval(values: list[float]) -> tuple[float, float]:
    """Bootstrap interval of the median, 95 %."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (2000, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def table(samples: list[Sample], copied: Mapping[str, int]) -> str:
    lines = [
        "| images | a call | uint8, CPU ms | float32, CPU ms | ratio | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("frames", "files"):
        for count in (1, BATCH):
            of = [s for s in samples if (s.images, s.batch) == (kind, count)]
            medians = [
                statistics.median(s.cpu_ms_per_image for s in of if s.input == given)
                for given in INPUTS
            ]
            found = ratios(samples, kind, count)
            low, high = interval(found)
            lines.append(
                f"| {kind} | {count} | {medians[0]:.3f} | {medians[1]:.3f} "
                f"| {statistics.median(found):.2f} | {low:.2f} to {high:.2f} |"
            )
    lines.append("\nCPU ms: of all cores, for each image, medians")
    sizes = " and ".join(f"{copied[given]:,} ({given})" for given in INPUTS)
    return "\n".join((*lines, "", f"bytes copied to the GPU for an image: {sizes}"))


def restart_on(stand_in: Path) -> None:
    """The dynamic linker reads its path when a process starts."""
    if Path("/proc/driver/nvidia/version").exists():
        sys.exit("there is a real CUDA driver here: this measures on a stand-in only")
    variables = {**os.environ, "LD_LIBRARY_PATH": str(stand_in.resolve())}
    variables["PYTHONPATH"] = str(HERE.parent)
    done = subprocess.run([sys.executable, *sys.argv, "--started"], env=variables, check=False)
    sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda-stand-in", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--results", type=Path, default=HERE / "results" / "bytes_input.json", metavar="FILE"
    )
    parser.add_argument("--started", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.started:
        restart_on(options.cuda_stand_in)
    if not gpus():
        sys.exit(f"{options.cuda_stand_in} holds no libcuda.so.1 that shows a GPU")
    load_before = os.getloadavg()[0]
    samples, copied = measure(options.rounds)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "load_before": load_before,
        "bytes_copied": copied,
        "largest_rounding": roundings(),
        "samples": [asdict(sample) for sample in samples],
    }
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(samples, copied))
    for name, error in roundings().items():
        print(f"{name}: {error:.1e}")


if __name__ == "__main__":
    main()

"""What `deploykit.load` costs in production: start, overhead of a call, installed size.

Run it with nothing else on the machine: ``python benchmarks/load_cost.py``. It exports ResNet-50,
ResNet-18 and a model of one convolution first. Each start is a process of its own. Calls of
`Classifier.run` alternate with those of two bare ``InferenceSession`` of the same file with the
same options; the second one beside the first shows how far equal things are apart here. With
``--size`` two environments are installed from the package index as well, which takes minutes.
Every sample is kept in ``benchmarks/results/load_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
ROOT = HERE.parent
DEPLOYKIT = str(Path(sys.executable).parent / "deploykit")
EXTRAS = {"base and TensorRT for RTX": "rtx", "base and export": "export"}
TOOL_CHAIN = ("torch", "torchvision", "onnx", "onnxscript", "click", "rich", "tensorrt_rtx")

START = """
import json, resource, sys, time
start = time.perf_counter()
import deploykit
imported = time.perf_counter()
deploykit.load
resolved = time.perf_counter()
model = deploykit.load(sys.argv[1], device="cpu")
loaded = time.perf_counter()
import numpy
shape = (1, *model.inputs[0].shape[1:])
model.run(numpy.zeros(shape, numpy.float32))
ran = time.perf_counter()
print(json.dumps({
    "import_s": imported - start,
    "resolve_s": resolved - imported,
    "load_s": loaded - resolved,
    "first_run_s": ran - loaded,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "packages": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


@dataclass(frozen=True)
class Start:
    """One process: ``import deploykit``, what `load` needs beside it, load, and the first batch."""

    import_s: float
    resolve_s: float
    load_s: float
    first_run_s: float
    peak_mib: float
    packages: list[str]


@dataclass(frozen=True)
class Calls:
    """Durations of interleaved calls at batch 1 in microseconds, in their order."""

    model: str
    bare_us: list[float]
    bare_again_us: list[float]
    deploykit_us: list[float]


@dataclass(frozen=True)
class Installed:
    """Bytes that an installation adds to an empty environment, and its largest folders."""

    what: str
    bytes: int
    largest: dict[str, int]


def export(target: str, folder: Path) -> Path:
    command = [DEPLOYKIT, "export", target, "--backend", "none", "-o", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def one_convolution(path: Path) -> Path:
    """The smallest classifier that export takes: 8 x 8 pixels, one 3 x 3 convolution, 4 classes."""
    import onnx

    text = """<ir_version: 9, opset_import: ["" : 20]>
    one_convolution (float[batch, 3, 8, 8] input) => (float[batch, classes] logits)
    { features = Conv(input, weight)  logits = Flatten(features) }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    path.write_bytes(model.SerializeToString())
    return path


def start_once(bundle: Path) -> Start:
    done = subprocess.run(
        [sys.executable, "-c", START, str(bundle)], check=True, capture_output=True, text=True
    )
    found = Start(**json.loads(done.stdout))
    loaded = set(TOOL_CHAIN) & set(found.packages)
    if loaded:
        sys.exit(f"loading imported {', '.join(sorted(loaded))}")
    return found


def compare_calls(name: str, bundle: Path, rounds: int) -> Calls:
    import onnxruntime as ort

    import deploykit

    path = str(bundle / "model.onnx")
    providers = ["CPUExecutionProvider"]
    bare, again = (ort.InferenceSession(path, providers=providers) for _ in range(2))
    with deploykit.load(bundle, device="cpu") as model:
        spec = model.inputs[0]
        batch = np.random.default_rng(0).normal(size=spec.with_batch(1)).astype(np.float32)
        feeds = {spec.name: batch}
        calls: list[Callable[[], Any]] = [
            lambda: bare.run(None, feeds),
            lambda: again.run(None, feeds),
            lambda: model.run(batch),
        ]
        samples = interleave(calls, rounds)
    return Calls(name, *samples)


def interleave(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Each call once per round, in an order drawn anew; a tenth of the rounds is warm-up."""
    samples: list[list[float]] = [[] for _ in calls]
    random = np.random.default_rng(0)
    warm_up = rounds // 10
    for done in range(warm_up + rounds):
        for at in random.permutation(len(calls)).tolist():
            start = time.perf_counter_ns()
            calls[at]()
            duration_us = (time.perf_counter_ns() - start) / 1e3
            if done >= warm_up:
                samples[at].append(round(duration_us, 1))
    return samples


def installed(what: str, extra: str, folder: Path) -> Installed:
    environment = folder / "environments" / extra
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    before = sizes(environment)
    # Installed from a copy: setuptools would leave its own folders in the checkout.
    copy = folder / "source"
    if not copy.exists():
        shutil.copytree(ROOT / "deploykit", copy / "deploykit")
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, copy)
    command = [str(environment / "bin" / "pip"), "install", "-q", f"{copy}[{extra}]"]
    subprocess.run(command, check=True)
    after = sizes(environment)
    added = {name: size - before.get(name, 0) for name, size in after.items()}
    largest = sorted(added.items(), key=lambda item: -item[1])[:12]
    return Installed(what, sum(added.values()), dict(largest))


def sizes(environment: Path) -> dict[str, int]:
    """Bytes of each folder of the site-packages, and of everything else together."""
    found: dict[str, int] = {}
    for file in environment.rglob("*"):
        if file.is_file() and not file.is_symlink():
            parts = file.relative_to(environment).parts
            inside = "site-packages" in parts and parts[0] == "lib"
            name = parts[parts.index("site-packages") + 1] if inside else "other"
            found[name] = found.get(name, 0) + file.stat().st_size
    return found


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    random = np.random.default_rng(0)
    drawn = random.choice(np.asarray(values), (draws, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def describe_overhead(what: str, ours: Sequence[float], bare: Sequence[float]) -> str:
    differences = [a - b for a, b in zip(ours, bare, strict=True)]
    ratios = [a / b - 1 for a, b in zip(ours, bare, strict=True)]
    low, high = interval(differences)
    least, most = interval(ratios)
    return (
        f"| {what} | {statistics.median(bare):.1f} | {statistics.median(differences):+.1f} "
        f"({low:+.1f} to {high:+.1f}) | {statistics.median(ratios):+.2%} "
        f"({least:+.2%} to {most:+.2%}) |"
    )


def report(starts: Sequence[Start], calls: Sequence[Calls], sizes_of: Sequence[Installed]) -> str:
    lines = ["| step | median s | fastest s |", "|---|---|---|"]
    for step in ("import_s", "resolve_s", "load_s", "first_run_s"):
        seconds = [getattr(start, step) for start in starts]
        lines.append(f"| {step} | {statistics.median(seconds):.3f} | {min(seconds):.3f} |")
    peak = max(start.peak_mib for start in starts)
    lines += [f"\npeak {peak:.0f} MiB, {len(starts[0].packages)} top-level modules\n"]
    lines += ["| call | bare us | difference us | ratio |", "|---|---|---|---|"]
    for each in calls:
        lines.append(describe_overhead(each.model, each.deploykit_us, each.bare_us))
        name = f"{each.model}, bare beside bare"
        lines.append(describe_overhead(name, each.bare_again_us, each.bare_us))
    lines += ["", *(f"{size.what}: {size.bytes / 1e9:.2f} GB" for size in sizes_of)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=300, help="of ResNet-18")
    parser.add_argument("--short-rounds", type=int, default=5_000, help="of one convolution")
    parser.add_argument("--size", action="store_true", help="install two environments")
    options = parser.parse_args()
    sizes_of: list[Installed] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        resnet50 = export("resnet50", folder / "resnet50")
        starts = [start_once(resnet50) for _ in range(options.starts)]
        convolution = export(str(one_convolution(folder / "conv.onnx")), folder / "conv")
        calls = [
            compare_calls("ResNet-18", export("resnet18", folder / "resnet18"), options.rounds),
            compare_calls("one convolution", convolution, options.short_rounds),
        ]
        if options.size:
            sizes_of = [installed(what, extra, folder) for what, extra in EXTRAS.items()]
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "starts": [asdict(start) for start in starts],
        "calls": [asdict(each) for each in calls],
        "installed": [asdict(size) for size in sizes_of],
    }
    place = HERE / "results" / "load_cost.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(report(starts, calls, sizes_of))


if __name__ == "__main__":
    main()

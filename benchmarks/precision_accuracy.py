"""Every precision on small trained networks, beside two other tools: accuracy, noise, cost.

    python -m benchmarks.precision_accuracy [DATA] [--networks mobile,vit] [--ways INT8 FP8]
        [--modelopt PYTHON]

Four networks are trained here on scikit-learn's digits (`digit_networks`). DATA has the CIFAR
ResNets and their images, as `int8_accuracy.py` takes it. Each is exported once for each of `OURS`,
by a process of its own and with all choices left to trials, from the same FP32 graph and the same
512 calibration images. The peers get the same, by `peer_quantize`; ModelOpt is left out where no
interpreter that has it is named. All graphs are then judged on images that no export saw: a bundle
by its form for CPUs, which rounds where an engine rounds, a peer's graph by onnxruntime with graph
optimisations off, with FP32 beside its eight bits. The table goes to
``benchmarks/results/precision_accuracy.md``, every figure to the ``.json`` beside it. Rows of other
networks and ways stay there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.backends import GraphOptions
from deploykit.backends._registry import graph_judge
from deploykit.backends.ort import OrtRunner
from deploykit.bundle.manifest import CPU_MODEL, MANIFEST
from deploykit.core import environment
from deploykit.graph import read_model
from deploykit.graph.kernel_costs import describe_layers
from deploykit.graph.qdq import sqnr_db
from deploykit.heads.multiclass import MULTICLASS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    Images = NDArray[np.float32]

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results"
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
DIGITS: Final = ("mobile", "efficient", "vit", "convnext")
OURS: Final = {
    "FP16": ("--fp16",),
    "BF16": ("--bf16",),
    "INT8": ("--int8", "--calib"),
    "INT8, fine-tuned": ("--int8", "--finetune", "--calib"),
    "FP8": ("--fp8", "--calib"),
    "FP8, fine-tuned": ("--fp8", "--finetune", "--calib"),
    # At a batch where more than the starts of kernels counts; half of the images judge the budget.
    "auto, 2 %": (
        *("--precision", "auto", "--max-drop", "2%", "--gpu", "L4"),
        *("--batch", "1,1024,1024", "--calib-count", "256", "--calib"),
    ),
}
"""Arguments of an export; those that end with ``--calib`` get the calibration images."""

PEERS: Final = {
    "onnxruntime MinMax": ("onnxruntime", "MinMax"),
    "onnxruntime Percentile": ("onnxruntime", "Percentile"),
    "ModelOpt INT8 max": ("modelopt", "max"),
    "ModelOpt INT8 entropy": ("modelopt", "entropy"),
    "ModelOpt FP8": ("modelopt-fp8", "max"),
}
PASSED_THROUGH: Final = ("Cast", "Transpose")
"""Between a DequantizeLinear and its reader these change the form of the values only."""


@dataclass(frozen=True)
class Row:
    """One graph on images that no export saw; ``seconds`` and ``peak_mib`` are of making it.

    ``eight_bits`` is the share of the multiply-adds with weights of eight bits. Of fine-tuning
    ``record`` has what the manifest keeps.
    """

    network: str
    way: str
    images: int
    fp32_top1: float
    top1: float
    agreement: float
    mean_kl: float | None
    sqnr_db: float
    eight_bits: float
    seconds: float
    peak_mib: float
    finetune_seconds: float | None = None
    record: dict[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """A network's FP32 bundle, its calibration images, those that judge, and FP32's answers."""

    name: str
    bundle: Path
    source: tuple[str, ...]
    calibration: Path
    images: Images
    labels: NDArray[np.int64]
    exact: Images


@dataclass(frozen=True)
class Cost:
    """Seconds of a process and what it printed, and its peak memory in MiB."""

    seconds: float
    printed: str
    peak_mib: float


@dataclass(frozen=True)
class Made:
    """A graph of eight or sixteen bits, the form of it that a CPU runs, and what making it took."""

    way: str
    graph: Path
    runs: Path
    cost: Cost
    finetune_seconds: float | None = None
    record: dict[str, Any] | None = None


def main() -> None:
    """Export, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--networks", default=",".join(DIGITS))
    parser.add_argument("--ways", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--modelopt", metavar="PYTHON", help="an interpreter that has ModelOpt")
    given = parser.parse_args()
    networks = given.networks.split(",")
    ways = [way for way in given.ways if given.modelopt or not way.startswith("ModelOpt")]
    rows = {(row.network, row.way): row for row in known()}
    for name in networks:
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(name, given.data, Path(folder))
            for row in measure(task, ways, given.modelopt, Path(folder)):
                rows[row.network, row.way] = row
                print(line(row), flush=True)
                write(list(rows.values()))


def make_task(name: str, data: Path | None, folder: Path) -> Task:
    """Train or read the network, and export it in FP32."""
    if name in DIGITS:
        return digits_task(name, folder)
    if data is None:
        sys.exit(f"{name} needs DATA, a folder with cifar10_test1000.npz and the weights")
    with np.load(data / "cifar10_test1000.npz") as kept:
        images, labels = kept["images"], kept["labels"]
    source = (name, "--weights", str(data / f"{name}_cifar10.npz"))
    return task_of(name, source, data / "cifar10_calib512.npz", images, labels, folder)


def digits_task(name: str, folder: Path) -> Task:
    import torch

    from benchmarks import digit_networks as own

    images, labels = own.digits()
    first, last = own.TRAINED_ON, own.TRAINED_ON + own.CALIBRATED_ON
    calibration = folder / "digits.npz"
    np.savez(calibration, images=images[first:last])
    graph = folder / f"{name}.onnx"
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        own.trained(name), (torch.zeros(2, 3, own.SIZE, own.SIZE),), graph, dynamo=True,
        external_data=False, dynamic_shapes=({0: batch},), input_names=["input"],
        output_names=["logits"],
    )  # fmt: skip
    # The digits have the network's size already.
    source = (str(graph), "--resize", str(own.SIZE))
    return task_of(name, source, calibration, images[last:], labels[last:], folder)


def task_of(
    name: str,
    source: tuple[str, ...],
    calibration: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    folder: Path,
) -> Task:
    bundle = folder / "fp32"
    export([*source, "--fp32"], bundle)
    scaled = ((images / 255 - MEAN) / STD).astype(np.float32)
    prepared = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    exact = answers(bundle / "model.onnx", prepared)
    return Task(name, bundle, source, calibration, prepared, labels, exact)


def measure(task: Task, ways: Sequence[str], modelopt: str | None, folder: Path) -> Iterator[Row]:
    """A row for each way."""
    for way in ways:
        place = folder / way.replace(" ", "-")
        if way in OURS:
            yield our_row(task, way, place)
        else:
            python = modelopt if way.startswith("ModelOpt") else sys.executable
            yield peer_row(task, way, str(python), place)


def our_row(task: Task, way: str, place: Path) -> Row:
    flags = OURS[way]
    images = [str(task.calibration)] if flags[-1] == "--calib" else []
    cost = export([*task.source, *flags, *images], place)
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    stages = {each["name"]: each["seconds"] for each in json.loads(cost.printed)["stages"]}
    rounding = place / CPU_MODEL
    return judged(
        task,
        Made(
            way,
            place / "model.onnx",
            rounding if rounding.exists() else place / "model.onnx",
            cost,
            stages.get("fine-tune"),
            (manifest["calibration"] or {}).get("finetuned"),
        ),
    )


def peer_row(task: Task, way: str, python: str, place: Path) -> Row:
    place.mkdir()
    target = place / "model.onnx"
    script, (tool, method) = str(HERE / "peer_quantize.py"), PEERS[way]
    places = [str(each) for each in (task.bundle, task.calibration, target)]
    cost = run([python, script, tool, method, *places])
    return judged(task, Made(way, target, target, cost))


def judged(task: Task, made: Made) -> Row:
    found = answers(made.runs, task.images)
    kl, agreement = MULTICLASS.closeness(found, task.exact)
    return Row(
        network=task.name,
        way=made.way,
        images=len(task.images),
        fp32_top1=float((task.exact.argmax(1) == task.labels).mean()),
        top1=float((found.argmax(1) == task.labels).mean()),
        agreement=agreement,
        mean_kl=kl,
        sqnr_db=sqnr_db(task.exact, found),
        eight_bits=eight_bit_share(made.graph),
        seconds=made.cost.seconds,
        peak_mib=made.cost.peak_mib,
        finetune_seconds=made.finetune_seconds,
        record=made.record,
    )


def export(arguments: Sequence[str], folder: Path) -> Cost:
    """Export in a process of its own."""
    command = [sys.executable, "-m", "deploykit", "export", *arguments]
    return run([*command, "--backend", "none", "--replace", "--json", "-q", "-o", str(folder)])


LAUNCHER: Final = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""A process in between: a child counts the memory of the one that forked it as its own."""


def run(command: Sequence[str]) -> Cost:
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile("r") as peak:
        launched = [sys.executable, "-c", LAUNCHER, peak.name, *command]
        ended = subprocess.run(launched, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            sys.exit(" ".join(command))
        return Cost(time.perf_counter() - start, ended.stdout, int(peak.read()) / 1024)


def answers(path: Path, images: Images) -> Images:
    with OrtRunner(path, GraphOptions(optimise=False)) as runner:
        feed, first = runner.inputs[0].name, runner.outputs[0].name
        batches = np.split(images, range(64, len(images), 64))
        found = [runner.run({feed: batch})[first] for batch in batches]
    return np.concatenate(found).astype(np.float32)


def eight_bit_share(path: Path) -> float:
    """Share of the multiply-adds whose second operand is dequantized from eight bits."""
    model = read_model(path)
    for number, node in enumerate(model.graph):
        node.name = f"node {number}"  # a peer's nodes may have no names
    summary = describe_layers(model, path.name, 1, graph_judge().run_once)
    costs = {layer.name: layer.multiply_adds for layer in summary.layers}
    narrow = {
        str(node.name)
        for node in model.graph
        for value in node.inputs[1:2]
        if is_dequantized(value)
    }
    return sum(count for name, count in costs.items() if name in narrow) / sum(costs.values())


def is_dequantized(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in PASSED_THROUGH:
        before = maker.inputs[0]
        maker = before.producer() if before is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def line(row: Row) -> str:
    kl = "" if row.mean_kl is None else f"{row.mean_kl:.1e}"
    way = row.way if row.record is None or row.record["kept"] else f"{row.way}: left as it was"
    return (
        f"| {row.network} | {way} | {row.top1:.1%} | {row.agreement:.1%} | {kl} "
        f"| {row.sqnr_db:.1f} | {row.eight_bits:.0%} | {row.seconds:.0f} | {row.peak_mib:.0f} |"
    )


def table(rows: Sequence[Row]) -> str:
    head = (
        "| network | way | top-1 | agreement | KL (nats) | SQNR (dB) | in eight bits | s "
        "| peak MiB |\n" + "|---" * 9 + "|\n"
    )
    return head + "".join(f"{line(row)}\n" for row in rows)


def known() -> list[Row]:
    """Rows of earlier runs."""
    path = RESULTS / "precision_accuracy.json"
    if not path.exists():
        return []
    return [Row(**each) for each in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def write(rows: Sequence[Row]) -> None:
    machine = environment.describe()
    plain = {
        "cpu": machine.cpu,
        "packages": dict(machine.packages),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(plain, indent=1) + "\n"
    (RESULTS / "precision_accuracy.json").write_text(text, encoding="utf-8")
    (RESULTS / "precision_accuracy.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What ``--finetune`` gives back: top-1, agreement, KL and SQNR before and after, seconds, memory.

    python -m benchmarks.finetune_accuracy [DATA] [--networks mobile,efficient] [--precisions int8]

Two networks with depthwise convolutions are trained here on scikit-learn's digits
(`finetune_networks`). DATA has the CIFAR ResNets and their images, as `int8_accuracy.py` takes it.
Each is exported twice, by processes of their own, with all choices left to trials: as it is, and
fine-tuned on the same 512 calibration images. Both graphs are then judged on images that no export
saw. The table goes to ``benchmarks/results/finetune_accuracy.md``, every figure to the ``.json``
beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.comparison.reference import Runners
from deploykit.core import environment
from deploykit.graph import read_artifact
from deploykit.graph.qdq import sqnr_db
from deploykit.heads.multiclass import MULTICLASS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Images = NDArray[np.float32]

RESULTS: Final = Path(__file__).parent / "results"
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
DIGITS: Final = ("mobile", "efficient")


@dataclass(frozen=True)
class Row:
    """One graph on images that no export saw; ``seconds`` and ``peak_mib`` are of the export."""

    network: str
    precision: str
    is_finetuned: bool
    images: int
    top1: float
    agreement: float
    mean_kl: float | None
    sqnr_db: float
    seconds: float
    finetune_seconds: float | None
    peak_mib: float
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Task:
    """A network as an .onnx file, its calibration images, and those that judge."""

    name: str
    graph: Path
    calibration: Path
    images: Images
    labels: NDArray[np.int64]


def main() -> None:
    """Export, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--networks", default="mobile,efficient")
    parser.add_argument("--precisions", default="int8,fp8")
    given = parser.parse_args()
    networks, precisions = given.networks.split(","), given.precisions.split(",")
    rows = [
        each
        for each in _known()
        if (each.network, each.precision)
        not in {(network, precision) for network in networks for precision in precisions}
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for name in networks:
            task = _task(name, given.data, Path(temporary))
            for precision in precisions:
                for is_finetuned in (False, True):
                    rows.append(_row(task, precision, Path(temporary), is_finetuned=is_finetuned))
                    print(_line(rows[-1]), flush=True)
                    _write(rows)


def _task(name: str, data: Path | None, folder: Path) -> Task:
    if name in DIGITS:
        return _digits_task(name, folder)
    if data is None:
        sys.exit(f"{name} needs DATA, a folder with cifar10_test1000.npz and the weights")
    weights = data / f"{name}_cifar10.npz"
    _export([name, "--weights", str(weights)], folder / f"{name}-fp32")
    with np.load(data / "cifar10_test1000.npz") as kept:
        images, labels = kept["images"], kept["labels"]
    graph = folder / f"{name}-fp32" / "model.onnx"
    return Task(name, graph, data / "cifar10_calib512.npz", _prepared(images), labels)


def _digits_task(name: str, folder: Path) -> Task:
    import torch

    from benchmarks import finetune_networks as own

    images, labels = own.digits()
    first, last = own.TRAINED_ON, own.TRAINED_ON + own.CALIBRATED_ON
    calibration = folder / "digits.npz"
    np.savez(calibration, images=images[first:last])
    graph = folder / f"{name}.onnx"
    module = own.trained(is_efficient=name == "efficient")
    example = torch.zeros(2, 3, own.SIZE, own.SIZE)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        module, (example,), graph, dynamo=True, external_data=False,
        dynamic_shapes=({0: batch},), input_names=["input"], output_names=["logits"],
    )  # fmt: skip
    return Task(name, graph, calibration, _prepared(images[last:]), labels[last:])


def _prepared(images: NDArray[np.uint8]) -> Images:
    scaled = ((images / 255 - MEAN) / STD).astype(np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class Cost:
    """Seconds of an export and of its stages, and its peak memory in MiB."""

    seconds: float
    stages: dict[str, float]
    peak_mib: float


def _export(arguments: list[str], folder: Path) -> Cost:
    """Export in a process of its own."""
    command = [sys.executable, "-m", "deploykit", "export", *arguments]
    command += ["--backend", "none", "--replace", "--json", "-q", "-o", str(folder)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        said = b"" if process.stdout is None else process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(" ".join(command))
    stages = {each["name"]: each["seconds"] for each in json.loads(said)["stages"]}
    return Cost(time.perf_counter() - start, stages, usage.ru_maxrss / 1024)


def _row(task: Task, precision: str, folder: Path, *, is_finetuned: bool) -> Row:
    place = folder / f"{task.name}-{precision}-{is_finetuned}"
    flags = [str(task.graph), f"--{precision}", "--calib", str(task.calibration)]
    cost = _export([*flags, *(["--finetune"] if is_finetuned else [])], place)
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    record = manifest["calibration"].get("finetuned")
    exact, found = (
        _answers(place / name, task.images) for name in ("reference.onnx", "model.onnx")
    )
    kl, agreement = MULTICLASS.closeness(found, exact)
    return Row(
        network=task.name,
        precision=precision,
        is_finetuned=is_finetuned,
        images=len(task.images),
        top1=float((found.argmax(1) == task.labels).mean()),
        agreement=agreement,
        mean_kl=kl,
        sqnr_db=sqnr_db(exact, found),
        seconds=cost.seconds,
        finetune_seconds=cost.stages.get("fine-tune"),
        peak_mib=cost.peak_mib,
        record=record,
    )


def _answers(path: Path, images: Images) -> Images:
    with Runners().of_artifact(read_artifact(path)) as runner:
        feed, first = runner.inputs[0].name, runner.outputs[0].name
        batches = np.split(images, range(64, len(images), 64))
        found = [runner.run({feed: batch})[first] for batch in batches]
    answers: Images = np.concatenate(found).astype(np.float32)
    return answers


def _line(row: Row) -> str:
    kept = "-"
    if row.record is not None:
        kept = "kept" if row.record["kept"] else "left as it was"
    stage = f"{row.finetune_seconds or 0:.0f}"
    kl = "" if row.mean_kl is None else f"{row.mean_kl:.2e}"
    return (
        f"| {row.network} | {row.precision} | {kept} | {row.top1:.1%} | {row.agreement:.1%} | "
        f"{kl} | {row.sqnr_db:.1f} | {row.seconds:.0f} | {stage} | "
        f"{row.peak_mib:.0f} |"
    )


def _known() -> list[Row]:
    """Rows of earlier runs, which stay beside those of other networks."""
    path = RESULTS / "finetune_accuracy.json"
    if not path.exists():
        return []
    return [Row(**each) for each in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def _write(rows: list[Row]) -> None:
    machine = environment.describe()
    plain = {
        "cpu": machine.cpu,
        "packages": dict(machine.packages),
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(plain, indent=1) + "\n"
    (RESULTS / "finetune_accuracy.json").write_text(text, encoding="utf-8")
    head = (
        "| network | precision | fine-tuned | top-1 | agreement | KL (nats) | SQNR (dB) | "
        "export (s) | fine-tuning (s) | peak (MiB) |\n" + "|---" * 10 + "|\n"
    )
    table = head + "".join(f"{_line(row)}\n" for row in rows)
    (RESULTS / "finetune_accuracy.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()

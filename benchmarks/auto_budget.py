"""What a budget buys: `--precision auto` beside all INT8, INT8 by trials, and a kept first layer.

    python -m benchmarks.auto_budget [DATA] [--gpu L4]

Two networks: a small SqueezeNet of fire modules (Iandola et al. 2016), trained here on the digits
of scikit-learn scaled to 32 by 32 pixels, and, where DATA is given, ResNet-20 on CIFAR-10 with the
files of ``int8_accuracy.py``. Of the images that nobody trained or calibrated on some judge
the budget, the others say what was lost. Every graph answers in its form for CPUs, which
rounds where an engine rounds. ``seconds`` is the whole call of ``deploykit.export`` on a graph
that is there already. Times are predicted for a batch of 1,024.

The table goes to standard output, every figure to ``results/auto_budget.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import deploykit
from benchmarks.int8_accuracy import judge, write_results
from benchmarks.transformer_int8 import outputs
from deploykit.graph import read_model
from deploykit.models import get
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from deploykit.bundle.manifest import Bundle

    Images = NDArray[np.uint8]
    Labels = NDArray[np.int64]

SIDE: Final = 32
TRAINED_ON: Final = 1200
CALIBRATED_ON: Final = 256
JUDGES: Final = 320
"""Of the digits: 299 are the fewest that can show a loss of 1 % to be no larger."""

EPOCHS: Final = 25
BATCH: Final = 64

PREFERRED: Final = (1, 1024, 1024)
"""Of the engine: images so small, and few, take a GPU no time but for the starts of kernels."""

WAYS: Final[dict[str, dict[str, Any]]] = {
    "FP16": {"precision": "fp16"},
    "INT8, by trials": {"precision": "int8"},
    "auto, 2 %": {"precision": "auto", "max_drop": "2%"},
    "auto, 1 %": {"precision": "auto", "max_drop": "1%"},
}


@dataclass(frozen=True)
class Task:
    """A trained network with its images: pixels (N, H, W, 3) and the class of each."""

    name: str
    module: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    calibration: Images
    judges: tuple[Images, Labels]
    others: tuple[Images, Labels]


@dataclass(frozen=True)
class Row:
    """One way for one network; shares between 0 and 1 on images that no choice saw.

    ``predicted_ms`` is the frontier's, only of a budget, and so are ``points``: the milliseconds
    and the upper bound of the loss of each, from the slowest on. ``first_layer`` and
    ``wide_layers`` say which convolutions and matrix products have operands wider than eight bits.
    """

    network: str
    way: str
    fp32_top1: float
    top1: float
    agreement: float
    mean_kl: float
    logits_sqnr_db: float
    predicted_ms: float | None
    points: list[list[Any]]
    bound: float | None
    layers: int
    wide_layers: int
    first_layer: str
    seconds: float


def squeezenet() -> nn.Module:
    """Fire modules, no normalisation: one convolution on the pixels, five of them after it.

    Their widths are those of SqueezeNet 1.1, so that a layer of eight bits has channels enough.
    """
    import torch
    from torch import nn

    class Fire(nn.Module):
        def __init__(self, wide: int, squeezed: int, expanded: int) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(wide, squeezed, 1)
            self.points = nn.Conv2d(squeezed, expanded, 1)
            self.squares = nn.Conv2d(squeezed, expanded, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.squeeze(x))
            return torch.relu(torch.cat([self.points(x), self.squares(x)], 1))

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(),
        Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, 1),
        Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, 1),
        Fire(256, 48, 192), nn.Conv2d(384, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def digits() -> Task:
    """The small SqueezeNet, trained on the first 1,200 images by Adam on one cycle of its rate."""
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images * (255 / 16)).round().astype(np.uint8)
    scaled = [
        Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for each in pixels
    ]
    images = np.repeat(np.stack([np.asarray(each) for each in scaled])[..., None], 3, axis=3)
    labels = data.target.astype(np.int64)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    inputs = torch.from_numpy(((images / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2))
    torch.set_num_threads(1)  # of a shared machine; the network is small
    torch.manual_seed(0)
    module = squeezenet()
    _train(module, inputs[:TRAINED_ON].contiguous(), torch.from_numpy(labels[:TRAINED_ON]))
    held, names = images[TRAINED_ON:], labels[TRAINED_ON:]
    return Task(
        "squeezenet, digits", module.eval(), SIDE, mean, std, images[:CALIBRATED_ON],
        (held[:JUDGES], names[:JUDGES]), (held[JUDGES:], names[JUDGES:]),
    )  # fmt: skip


def _train(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    import torch

    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for each in module.modules():
        if isinstance(each, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(each.weight)
    steps = EPOCHS * (-(-len(inputs) // BATCH))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(inputs))
        for chosen in (order[at : at + BATCH] for at in range(0, len(inputs), BATCH)):
            loss = torch.nn.functional.cross_entropy(module(inputs[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()


def cifar(data: Path, name: str = "resnet20") -> Task:
    spec = get(name)
    module, _ = build_with_weights(spec, str(data / f"{name}_cifar10.npz"), 0)
    with np.load(data / "cifar10_calib512.npz") as file:
        calibration = file["images"]
    with np.load(data / "cifar10_test1000.npz") as file:
        images, labels = file["images"], file["labels"]
    look, middle = spec.preprocessing, len(images) // 2
    return Task(
        f"{name}, CIFAR-10", module, images.shape[1], look.mean, look.std, calibration,
        (images[:middle], labels[:middle]), (images[middle:], labels[middle:]),
    )  # fmt: skip


def measure(task: Task, gpu: str, folder: Path) -> list[Row]:
    """A row for each way."""
    files = _write(task, folder)
    reference = deploykit.export(
        task.module, name=task.name.split(",")[0], input_size=task.size, mean=task.mean,
        std=task.std, backend="none", output=folder / "fp32", quiet=True,
    )  # fmt: skip
    exact = _answers(reference, task)
    rows = []
    for way, arguments in WAYS.items():
        asked = dict(arguments)
        if asked["precision"] != "fp16":
            asked["calib"] = files["calibration"]
        if asked["precision"] == "auto":
            asked |= {"data": files["judges"], "gpu": gpu, "batch": PREFERRED}
        began = perf_counter()
        bundle = deploykit.export(
            reference.folder / "model.onnx", mean=task.mean, std=task.std, backend="none",
            output=folder / way, quiet=True, **asked,
        )  # fmt: skip
        seconds = perf_counter() - began
        rows.append(_row(task, way, bundle, _answers(bundle, task), exact, seconds))
        print(line(rows[-1]), flush=True)
    return rows


def _write(task: Task, folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.npz" for name in ("calibration", "judges")}
    np.savez(files["calibration"], images=task.calibration)
    np.savez(files["judges"], images=task.judges[0], labels=task.judges[1])
    return files


def _answers(bundle: Bundle, task: Task) -> NDArray[np.float32]:
    mean, std = np.array(task.mean, np.float32), np.array(task.std, np.float32)
    scaled = (task.others[0] / np.float32(255) - mean) / std
    inputs = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2).astype(np.float32))
    batches = [inputs[at : at + BATCH] for at in range(0, len(inputs), BATCH)]
    return np.concatenate(outputs(bundle.on_cpu().artifact.path, batches))


def _row(
    task: Task,
    way: str,
    bundle: Bundle,
    got: NDArray[np.float32],
    exact: NDArray[np.float32],
    seconds: float,
) -> Row:
    figures = judge(got, exact, task.others[1])
    figures.pop("expected_agreement")
    narrow = _narrow(bundle.model_path)
    record = bundle.manifest.conversion.get("budget")
    point = record["points"][record["chosen"]] if record else {}
    return Row(
        network=task.name,
        way=way,
        fp32_top1=float((exact.argmax(axis=1) == task.others[1]).mean()),
        predicted_ms=point.get("ms"),
        points=[[each["ms"], each["upper"]] for each in record["points"]] if record else [],
        bound=point.get("upper"),
        layers=len(narrow),
        wide_layers=narrow.count(False),
        first_layer="INT8" if narrow[0] else "wider",
        seconds=round(seconds, 1),
        **figures,
    )


def _narrow(path: Path) -> list[bool]:
    """Whether each convolution and matrix product of weights, in order, has them in eight bits."""
    nodes = read_model(path).graph
    found = []
    for node in nodes:
        if node.op_type in {"Conv", "Gemm", "MatMul"}:
            source = node.inputs[1]
            maker = source.producer() if source is not None else None
            while maker is not None and maker.op_type == "Cast":
                value = maker.inputs[0]
                maker = value.producer() if value is not None else None
            found.append(maker is not None and maker.op_type == "DequantizeLinear")
    return found


HEAD: Final = (
    f"{'network':20} {'way':16} {'top-1':>6} {'agree':>6} {'KL':>7} {'dB':>5} "
    f"{'ms':>7} {'wide':>5} first  {'s':>6}"
)


def line(row: Row) -> str:
    """A row of the table."""
    ms = "" if row.predicted_ms is None else f"{row.predicted_ms:.4f}"
    return (
        f"{row.network:20} {row.way:16} {row.top1:6.1%} {row.agreement:6.1%} {row.mean_kl:7.4f} "
        f"{row.logits_sqnr_db:5.1f} {ms:>7} {row.wide_layers:>2}/{row.layers:<2} "
        f"{row.first_layer:6} {row.seconds:6.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--gpu", default="L4")
    asked = parser.parse_args(arguments)
    tasks = [digits()] + ([cifar(asked.data)] if asked.data else [])
    print(HEAD)
    rows = []
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(task, asked.gpu, Path(folder))
    write_results("auto_budget", rows, gpu=asked.gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())

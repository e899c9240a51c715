"""What INT8 costs in accuracy: top-1 and agreement with FP32, by network, method and options.

    python benchmarks/int8_accuracy.py DATA [--networks resnet20,resnet56] [--methods mse,max]

DATA holds ``<network>_cifar10.npz`` (weights), ``cifar10_calib512.npz`` and
``cifar10_test1000.npz``. Calibrated on the one, judged on the other, executed by onnxruntime on
the CPU with its graph optimisations off. Every graph is judged twice: in the form that rounds
where an engine rounds, and as it is, in FP32 arithmetic beside its Q/DQ pairs. The table of the
first goes to standard output, every figure to ``benchmarks/results/int8_accuracy.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from math import erf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.validation import outputs_of
from deploykit.core.environment import describe
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.graph import read_model
from deploykit.graph.activations import expose_named
from deploykit.graph.external_weights import split
from deploykit.graph.qdq import QdqPolicy
from deploykit.graph.rounding import computes_narrow, rounding_form
from deploykit.heads.multiclass import compare
from deploykit.models import get
from deploykit.precision.calibration.calibrators import METHODS, RunningHistogram
from deploykit.precision.quantization.conversion import (
    Int8Options,
    QuantizationErrors,
    measure_errors,
    plan_int8,
    quantize_to_int8,
)
from deploykit.sources.torch_export import export_module
from deploykit.sources.weights import build_with_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.specs import SplitGraph
    from deploykit.graph import LoadedGraph

    Images = NDArray[np.float32]

HERE = Path(__file__).parent
NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56")
BATCH = 125
CORRECTED_ON = 64
POLICIES = {
    "default": Int8Options(),
    "first layer kept": Int8Options(QdqPolicy(first_layer="keep")),
    "skips kept": Int8Options(QdqPolicy(residual="keep")),
    "first layer and skips kept": Int8Options(QdqPolicy(first_layer="keep", residual="keep")),
    "rest FP32": Int8Options(rest=Precision.FP32),
}
ROUNDED, PLAIN = ARITHMETICS = ("rounded", "plain")
"""As `rounding_form` has it, and as onnxruntime computes the file."""

VARIANTS = {name: (options, False) for name, options in POLICIES.items()} | {
    f"{name}, bias correction": (options, True) for name, options in POLICIES.items()
}


@dataclass(frozen=True)
class Row:
    """One INT8 graph against FP32 on the test images; shares between 0 and 1.

    ``arithmetic`` is one of `ARITHMETICS`. ``expected_agreement`` is what the logits' noise makes
    likely, given every image's margin: it varies far less than the count of a thousand images.
    """

    network: str
    method: str
    variant: str
    arithmetic: str
    fp32_top1: float
    top1: float
    agreement: float
    expected_agreement: float
    mean_kl: float
    logits_sqnr_db: float


@dataclass(frozen=True)
class Trained:
    """A trained network, its images in batches, and what it gives for those of the test in FP32."""

    graph: LoadedGraph
    calibration: list[Images]
    test: list[Images]
    labels: NDArray[np.int64]
    exact: NDArray[np.float32]


def trained(name: str, data: Path, threads: int, folder: Path) -> Trained:
    spec = get(name)
    module, _ = build_with_weights(spec, str(data / f"{name}_cifar10.npz"), 0)
    graph = export_module(spec, module, folder / f"{name}.onnx", "torch.export")
    calibration, _ = load(data / "cifar10_calib512.npz", name)
    test, labels = load(data / "cifar10_test1000.npz", name)
    with OrtRunner(graph.artifact.path, GraphOptions(threads=threads)) as runner:
        exact = np.concatenate(outputs_of(runner, test))
    return Trained(graph, calibration, test, labels, exact)


def write_results(script: str, rows: Sequence[Any], **more: Any) -> None:
    """Every figure, with the machine and the time, in ``benchmarks/results``."""
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        **more,
        "rows": [asdict(row) for row in rows],
    }
    target = HERE / "results" / f"{script}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def load(path: Path, name: str) -> tuple[list[Images], NDArray[np.int64]]:
    spec = get(name).preprocessing
    with np.load(path) as data:
        images, labels = data["images"], data["labels"]
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    inputs = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    batches = [np.ascontiguousarray(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)]
    return batches, labels


def ranges(
    artifact: OnnxArtifact, tensors: Sequence[str], images: Sequence[Images], threads: int = 2
) -> dict[str, dict[str, float]]:
    """Amax of each tensor, by method."""
    histograms = {tensor: RunningHistogram() for tensor in tensors}
    with OrtRunner(
        expose_named(read_model(artifact.path), tensors), GraphOptions(threads=threads)
    ) as runner:
        feed = runner.inputs[0].name
        for batch in images:
            values = {feed: batch, **runner.run({feed: batch})}
            for tensor in tensors:
                histograms[tensor].add(values[tensor].astype(np.float32, copy=False))
    frozen = {tensor: histogram.freeze() for tensor, histogram in histograms.items()}
    return {
        method: {tensor: function(frozen[tensor]) for tensor in tensors}
        for method, function in METHODS.items()
    }


def judge(
    got: NDArray[np.float32], exact: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, float]:
    fresh, rows = compare(got, exact), range(len(got))
    centred = exact - exact.mean(axis=1, keepdims=True)
    error = got - got.mean(axis=1, keepdims=True) - centred
    return {
        "top1": float((got.argmax(axis=1) == labels).mean()),
        "agreement": float(fresh.agreement or 0),
        "expected_agreement": expected_agreement(got, exact),
        "mean_kl": float(np.mean([compare(got[i : i + 1], exact[i : i + 1]).max_kl for i in rows])),
        "logits_sqnr_db": float(10 * np.log10((centred**2).sum() / (error**2).sum())),
    }


def expected_agreement(got: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Mean probability that normal noise of the size measured keeps the first two in order."""
    rows = np.arange(len(exact))
    second, first = np.argsort(exact, axis=1)[:, -2:].T
    margins = exact[rows, first] - exact[rows, second]
    change = got[rows, first] - got[rows, second] - margins
    unsure = margins <= np.quantile(margins, 0.3)
    noise = float(np.sqrt(np.square(change[unsure]).mean()))
    return float(np.mean([0.5 * (1 + erf(m / (noise * sqrt(2)))) for m in margins]))


def form(graph: LoadedGraph, arithmetic: str) -> SplitGraph:
    """The graph for a CPU; one without FP16 values is the same in both."""
    if arithmetic == PLAIN or not computes_narrow(graph.model):
        return graph.split()
    return split(rounding_form(graph.model), graph.artifact.path.name)


def measure(name: str, data: Path, methods: Sequence[str], threads: int, folder: Path) -> list[Row]:
    given = trained(name, data, threads, folder)
    graph, exact, labels = given.graph, given.exact, given.labels
    open_runner = partial(OrtRunner, options=GraphOptions(threads=threads, optimise=False))
    fp32 = float((exact.argmax(axis=1) == labels).mean())
    tensors = plan_int8(graph, QdqPolicy()).tensors
    amax = ranges(graph.artifact, tensors, given.calibration, threads)
    rows = []
    with SilentProgress().step("") as task:
        for method in methods:
            for variant, (options, correct) in VARIANTS.items():
                plan = plan_int8(graph, options.policy)
                errors = QuantizationErrors()
                if correct:
                    few = [given.calibration[0][:CORRECTED_ON]]
                    errors = measure_errors(
                        graph, plan, amax[method], few, open_runner=open_runner, task=task
                    )
                target = folder / f"{name}-int8.onnx"
                made = quantize_to_int8(graph, amax[method], target, options=options, errors=errors)
                for arithmetic in ARITHMETICS:
                    with open_runner(form(made.graph, arithmetic)) as runner:
                        got = np.concatenate(outputs_of(runner, given.test))
                    figures = judge(got, exact, labels)
                    rows.append(Row(name, method, variant, arithmetic, fp32, **figures))
                    print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def line(row: Row) -> str:
    return (
        f"| {row.network} | {row.method} | {row.variant} | {row.arithmetic} | {row.fp32_top1:.1%} "
        f"| {row.top1:.1%} | {row.agreement:.1%} | {row.expected_agreement:.2%} "
        f"| {row.mean_kl:.2e} | {row.logits_sqnr_db:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    methods = given.methods.split(",")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.networks.split(","):
            rows += measure(name, given.data, methods, given.threads, Path(folder))
    write_results("int8_accuracy", rows)
    head = "| network | method | variant | arithmetic | FP32 | INT8 | agreement | expected | KL "
    print(f"{head}| SQNR dB |\n{'|---' * 10}|")
    print("\n".join(line(row) for row in rows if row.arithmetic == ROUNDED))


if __name__ == "__main__":
    main()

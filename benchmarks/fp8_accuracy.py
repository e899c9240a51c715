"""What FP8 and BF16 cost in accuracy: top-1 and agreement with FP32, by network and ranges.

    python -m benchmarks.fp8_accuracy DATA [--networks resnet20,resnet56]

DATA is as `int8_accuracy.py` takes it, and images, rounding and figures are the same. Three ways to
find FP8's ranges stand beside each other: the largest value, 99.99 % of the values, and the clip
with the smallest squared error on FP8's own grid. Graphs are executed by onnxruntime on the CPU
with its graph optimisations off. The table goes to standard output, every figure to
``benchmarks/results/fp8_accuracy.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.int8_accuracy import (
    NETWORKS,
    ROUNDED,
    Row,
    form,
    judge,
    line,
    trained,
    write_results,
)
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.validation import outputs_of
from deploykit.core.precision import Precision
from deploykit.graph import convert_to_half, plan_half, read_model
from deploykit.graph.activations import expose_named
from deploykit.graph.qdq import QdqPolicy, plan_fp8
from deploykit.graph.qdq.plan import FP8
from deploykit.precision.bf16 import convert_to_bf16
from deploykit.precision.calibration.calibrators import METHODS, Histogram, RunningHistogram
from deploykit.precision.quantization.conversion import quantize_by_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.graph import HalfPlan, LoadedGraph

    Images = NDArray[np.float32]

POLICIES = {"default": QdqPolicy(), "skips kept": QdqPolicy(residual="keep")}
CLIPS = 2.0 ** (-np.arange(0, 33) / 8)
"""Candidates of the squared error, as shares of the largest value: down to a sixteenth."""

SQUARED_ERROR = "mse on FP8's grid"


def least_squared_error(histogram: Histogram) -> float:
    """The range with the smallest squared error of rounding to FP8 and clipping."""
    centres = (np.arange(len(histogram.counts)) + 0.5) * histogram.bin_width
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]  # where exact zeros are, which FP8 has

    def error(clip: float) -> float:
        scale = clip * histogram.amax / FP8.largest
        steps = np.minimum(centres / scale, FP8.largest).astype(FP8.dtype.numpy())
        return float((counts * np.square(centres - steps.astype(np.float64) * scale)).sum())

    return float(min(CLIPS, key=error) * histogram.amax)


def ranges(
    graph: LoadedGraph, tensors: Sequence[str], images: Sequence[Images], threads: int
) -> dict[str, dict[str, float]]:
    """Amax of each tensor, by the way it was found."""
    histograms = {tensor: RunningHistogram() for tensor in tensors}
    shown = expose_named(read_model(graph.artifact.path), tensors)
    with OrtRunner(shown, GraphOptions(threads=threads)) as runner:
        feed = runner.inputs[0].name
        for batch in images:
            values = {feed: batch, **runner.run({feed: batch})}
            for tensor in tensors:
                histograms[tensor].add(values[tensor].astype(np.float32, copy=False))
    ways = {
        "max": METHODS["max"],
        "percentile": METHODS["percentile"],
        SQUARED_ERROR: least_squared_error,
    }
    return {
        name: {tensor: way(histograms[tensor].freeze()) for tensor in tensors}
        for name, way in ways.items()
    }


def halve(model: ir.Model) -> tuple[ir.Model, HalfPlan]:
    plan = plan_half(model, {}, 1.0)
    return convert_to_half(model, plan), plan


def measure(name: str, data: Path, threads: int, folder: Path) -> list[Row]:
    given = trained(name, data, threads, folder)
    graph, exact, labels = given.graph, given.exact, given.labels
    open_runner = partial(OrtRunner, options=GraphOptions(threads=threads, optimise=False))
    fp32 = float((exact.argmax(axis=1) == labels).mean())

    def row(method: str, variant: str, made: LoadedGraph) -> Row:
        with open_runner(form(made, ROUNDED)) as runner:
            got = np.concatenate(outputs_of(runner, given.test))
        found = Row(name, method, variant, ROUNDED, fp32, **judge(got, exact, labels))
        print(line(found), file=sys.stderr, flush=True)
        return found

    rows = [row("-", "BF16", convert_to_bf16(graph, folder / f"{name}-bf16.onnx").graph)]
    tensors = plan_fp8(graph.model).tensors
    target = folder / f"{name}-fp8.onnx"
    amax: Mapping[str, dict[str, float]] = ranges(graph, tensors, given.calibration, threads)
    for method, found in amax.items():
        for variant, policy in POLICIES.items():
            plan = plan_fp8(graph.model, policy)
            made = quantize_by_plan(graph, plan, found, target, Precision.FP8, halve=halve)
            rows.append(row(method, f"FP8, {variant}", made.graph))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.networks.split(","):
            rows += measure(name, given.data, given.threads, Path(folder))
    write_results("fp8_accuracy", rows)
    head = "| network | ranges | variant | arithmetic | FP32 | top-1 | agreement | expected | KL "
    print(f"{head}| SQNR dB |\n{'|---' * 10}|")
    print("\n".join(map(line, rows)))


if __name__ == "__main__":
    main()

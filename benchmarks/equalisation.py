"""Whether cross-layer equalisation pays: the logits' noise in INT8 with and without it.

    python -m benchmarks.equalisation DATA [--networks resnet20,resnet56]

Between two convolutions with nothing but a ReLU in between, a channel may be divided by any s > 0
in the first and multiplied by it in the second. Two choices of s are tried:

- weights: sqrt(r1 / r2), with r the largest weight of the channel in each layer (Nagel et al. 2019,
  Data-Free Quantization through Weight Equalization and Bias Correction,
  https://arxiv.org/abs/1906.04721, equation 11);
- activations: the channel's largest activation over the mean of all channels', so that one scale
  fits all of them.

DATA as for ``int8_accuracy.py``. Ranges by MSE, everything in INT8 or the first layer and the skips
kept, no bias correction; judged by onnxruntime with graph optimisations off, in the form that
rounds where an engine rounds. All figures go to ``results/equalisation.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from benchmarks.int8_accuracy import (
    BATCH,
    NETWORKS,
    POLICIES,
    ROUNDED,
    form,
    judge,
    ranges,
    trained,
    write_results,
)
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.validation import outputs_of
from deploykit.core.precision import Precision
from deploykit.graph import LoadedGraph, read_model, write_model
from deploykit.graph.activations import expose_named
from deploykit.graph.qdq import QdqPolicy
from deploykit.precision.quantization.conversion import plan_int8, quantize_to_int8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from deploykit.core.artifacts import OnnxArtifact

    Floats = NDArray[np.float32]
    Factors = Callable[["Pair"], Floats]

KINDS = ("none", "weights", "activations")
TRIED = ("default", "first layer and skips kept")


@dataclass(frozen=True)
class Pair:
    """Two convolutions and the ReLU between them."""

    first: ir.Node
    relu: ir.Node
    second: ir.Node


@dataclass(frozen=True)
class Row:
    """One INT8 graph against FP32 on the test images."""

    network: str
    policy: str
    equalised: str
    pairs: int
    top1: float
    agreement: float
    expected_agreement: float
    mean_kl: float
    logits_sqnr_db: float


def constant(node: ir.Node, index: int) -> Floats:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None  # noqa: PT018, S101
    return np.asarray(value.const_value.numpy(), np.float32)


def pairs_of(model: ir.Model) -> list[Pair]:
    found = []
    for first in model.graph:
        relu = only_reader(first) if first.op_type == "Conv" else None
        second = only_reader(relu) if relu is not None and relu.op_type == "Relu" else None
        if relu is not None and second is not None and second.op_type == "Conv":
            groups = [node.attributes.get_int("group", 1) for node in (first, second)]
            if groups == [1, 1]:
                found.append(Pair(first, relu, second))
    return found


def only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def by_weights(pair: Pair) -> Floats:
    first = np.abs(constant(pair.first, 1)).max(axis=(1, 2, 3))
    second = np.abs(constant(pair.second, 1)).max(axis=(0, 2, 3))
    factors: Floats = np.sqrt(np.maximum(first, 1e-8) / np.maximum(second, 1e-8))
    return factors


def by_activations(pair: Pair, largest: dict[str, Floats]) -> Floats:
    amax = np.maximum(largest[str(pair.relu.outputs[0].name)], 1e-8)
    factors: Floats = amax / amax.mean()
    return factors


def channel_maxima(
    artifact: OnnxArtifact, images: Sequence[Floats], threads: int
) -> dict[str, Floats]:
    model = read_model(artifact.path)
    names = [str(pair.relu.outputs[0].name) for pair in pairs_of(model)]
    with OrtRunner(expose_named(model, names), GraphOptions(threads=threads)) as runner:
        feed = runner.inputs[0].name
        seen = [runner.run({feed: batch}) for batch in images]
    return {
        name: np.max([np.abs(values[name]).max(axis=(0, 2, 3)) for values in seen], axis=0)
        for name in names
    }


def equalise(artifact: OnnxArtifact, target: Path, factors: Factors) -> tuple[OnnxArtifact, int]:
    model = read_model(artifact.path)
    pairs = pairs_of(model)
    for pair in pairs:
        s = factors(pair)
        scale(pair.first, 1, np.float32(1) / s[:, None, None, None])
        if len(pair.first.inputs) > 2:  # noqa: PLR2004 - the bias
            scale(pair.first, 2, np.float32(1) / s)
        scale(pair.second, 1, s[None, :, None, None])
    return write_model(model, target, Precision.FP32), len(pairs)


def scale(node: ir.Node, index: int, factor: Floats) -> None:
    value = node.inputs[index]
    assert value is not None  # noqa: S101
    value.const_value = ir.Tensor(constant(node, index) * factor, name=value.name)


def measure(name: str, data: Path, threads: int, folder: Path) -> list[Row]:
    given = trained(name, data, threads, folder)
    artifact, test, exact = given.graph.artifact, given.test, given.exact
    largest = channel_maxima(artifact, given.calibration, threads)
    factors: dict[str, Factors] = {
        "none": lambda pair: np.ones(len(constant(pair.first, 1)), np.float32),
        "weights": by_weights,
        "activations": partial(by_activations, largest=largest),
    }
    rows = []
    for kind in KINDS:
        graph, pairs = equalise(artifact, folder / f"{name}-{kind}.onnx", factors[kind])
        with OrtRunner(graph.path, GraphOptions(threads=threads)) as runner:
            same = np.concatenate(outputs_of(runner, test))
        np.testing.assert_allclose(same, exact, atol=1e-3)
        tensors = plan_int8(LoadedGraph(graph), QdqPolicy()).tensors
        amax = ranges(graph, tensors, given.calibration, threads)["mse"]
        for policy in TRIED:
            target = folder / f"{name}-int8.onnx"
            made = quantize_to_int8(LoadedGraph(graph), amax, target, options=POLICIES[policy])
            unoptimised = GraphOptions(threads=threads, optimise=False)
            with OrtRunner(form(made.graph, ROUNDED), unoptimised) as runner:
                got = np.concatenate(outputs_of(runner, test))
            rows.append(Row(name, policy, kind, pairs, **judge(got, exact, given.labels)))
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
    write_results("equalisation", rows, images_per_batch=BATCH)
    print("| network | policy | equalised | pairs | top-1 | agreement | expected | SQNR dB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.network} | {row.policy} | {row.equalised} | {row.pairs} | {row.top1:.1%} "
            f"| {row.agreement:.1%} | {row.expected_agreement:.2%} | {row.logits_sqnr_db:.1f} |"
        )


if __name__ == "__main__":
    main()

"""Which part of INT8 costs the most: the logits' noise of weights alone and of activations alone.

    python -m benchmarks.int8_parts DATA [--networks resnet20,resnet56]

Of one INT8 graph the Q/DQ pairs of the activations, or those of the weights, are taken away. DATA
as for ``int8_accuracy.py``. Ranges by MSE, no bias correction, the rest FP32 so that nothing but
INT8 rounds; judged by onnxruntime with graph optimisations off. All figures go to
``results/int8_parts.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.int8_accuracy import POLICIES, judge, ranges, trained, write_results
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.validation import outputs_of
from deploykit.graph.external_weights import split
from deploykit.graph.qdq import QdqPolicy
from deploykit.precision.quantization.conversion import plan_int8, quantize_to_int8

if TYPE_CHECKING:
    import onnx_ir as ir

PARTS = ("both", "weights", "activations")
POLICY = "rest FP32"


@dataclass(frozen=True)
class Row:
    """One INT8 graph against FP32 on the test images; ``rounded`` is the part that is INT8."""

    network: str
    rounded: str
    pairs: int
    top1: float
    agreement: float
    expected_agreement: float
    mean_kl: float
    logits_sqnr_db: float


def with_one_part(model: ir.Model, exact: ir.Model, part: str) -> tuple[ir.Model, int]:
    """A copy with the Q/DQ pairs of one part alone, and how many these are.

    ``exact`` is the FP32 graph, whose nodes have the same names.
    """
    changed = model.clone()
    originals = {node.name: node for node in exact.graph}
    kept = 0
    for node in list(changed.graph):
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        quantizer = node.inputs[0].producer()
        is_weight = quantizer is None
        if part == "both" or is_weight == (part == "weights"):
            kept += 1
            continue
        for reader, index in list(node.outputs[0].uses()):
            given = None if quantizer is None else quantizer.inputs[0]
            if given is None:
                given = originals[reader.name].inputs[index]
                assert given is not None  # noqa: S101
                name = str(given.name)
                if name not in changed.graph.initializers:
                    given = type(given)(
                        name=name, type=given.type, shape=given.shape, const_value=given.const_value
                    )
                    changed.graph.register_initializer(given)
                given = changed.graph.initializers[name]
            reader.replace_input_with(index, given)
    return changed, kept


def measure(name: str, data: Path, threads: int, folder: Path) -> list[Row]:
    given = trained(name, data, threads, folder)
    graph = given.graph
    tensors = plan_int8(graph, QdqPolicy()).tensors
    amax = ranges(graph.artifact, tensors, given.calibration, threads)["mse"]
    made = quantize_to_int8(graph, amax, folder / f"{name}-int8.onnx", options=POLICIES[POLICY])
    rows = []
    for part in PARTS:
        changed, pairs = with_one_part(made.graph.model, graph.model, part)
        unoptimised = GraphOptions(threads=threads, optimise=False)
        with OrtRunner(split(changed, f"{name} {part}"), unoptimised) as runner:
            got = np.concatenate(outputs_of(runner, given.test))
        rows.append(Row(name, part, pairs, **judge(got, given.exact, given.labels)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", default="resnet20,resnet56")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, options.data, options.threads, Path(folder))
        for row in rows[-len(PARTS) :]:
            print(f"{row.network} {row.rounded}: {row.pairs} pairs, {row.logits_sqnr_db:.1f} dB")
    write_results("int8_parts", rows)


if __name__ == "__main__":
    main()

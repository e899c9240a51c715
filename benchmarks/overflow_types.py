"""What FP16 loses where nodes that overflow it are BF16 in place of FP32.

    python -m benchmarks.overflow_types DATA [--network resnet20]

DATA is as `int8_accuracy.py` takes it. No trained network of it overflows FP16, so overflow is
made: in some blocks the first convolution is multiplied by `SCALE` and the second divided by it,
which changes no answer in FP32, and takes the values between them past 65504. Those nodes are kept
from FP16 by the rule that `export` has. They are then FP32, or BF16; beside them stands the whole
network in BF16. All are judged with the rounding of an engine on the test images.

The table goes to standard output, every figure to ``results/overflow_types.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from benchmarks.int8_accuracy import judge, trained, write_results
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.comparison.validation import outputs_of
from deploykit.core.progress import SilentProgress
from deploykit.graph import BF16, OPSET_FOR_BF16, convert_to_half, plan_half, tidy_in_opset
from deploykit.graph.external_weights import split
from deploykit.graph.half import HalfPlan
from deploykit.graph.rounding import computes_narrow, rounding_form
from deploykit.precision.fp16 import HEADROOM, measure_magnitudes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.int8_accuracy import Images, Trained

SCALE: Final = np.float32(1e5)
BLOCKS: Final = (1, 3, 9)
OPTIONS: Final = GraphOptions(optimise=False)


@dataclass(frozen=True)
class Row:
    """One network with so many ``blocks`` beyond FP16, and what its ``kept`` nodes became."""

    network: str
    blocks: int
    kept: int
    kept_as: str
    top1: float
    agreement: float
    expected_agreement: float
    mean_kl: float
    logits_sqnr_db: float


def pairs(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Convolutions with nothing but a Relu, which a positive factor passes, between them."""
    for node in model.graph:
        if node.op_type != "Conv" or len(uses := list(node.outputs[0].uses())) != 1:
            continue
        relu = uses[0].node
        after = list(relu.outputs[0].uses()) if relu.op_type == "Relu" else []
        if len(after) == 1 and after[0].node.op_type == "Conv" and after[0].idx == 0:
            yield node, after[0].node


def beyond_fp16(model: ir.Model, blocks: int) -> ir.Model:
    """The same function of the image, with values past 65504 in so many blocks."""
    scaled = model.clone()
    for first, second in list(pairs(scaled))[:blocks]:
        for value in first.inputs[1:]:
            _multiply(value, SCALE)
        _multiply(second.inputs[1], 1 / SCALE)
    return scaled


def _multiply(value: ir.Value | None, factor: np.float32) -> None:
    if value is not None and value.const_value is not None:
        value.const_value = ir.tensor(value.const_value.numpy() * factor, name=value.name)


def variants(model: ir.Model, images: Sequence[Images]) -> tuple[int, dict[str, ir.Model]]:
    """How many nodes FP16 is not for, and the graphs by what these are."""
    with SilentProgress().step("magnitudes") as task:
        amax = measure_magnitudes(
            model, images, open_runner=lambda graph: OrtRunner(graph, OPTIONS), task=task
        ).amax
    half, whole = plan_half(model, amax, HEADROOM), plan_half(model, {}, HEADROOM, half=BF16)
    fp16 = convert_to_half(model, half)
    mixed = HalfPlan(frozenset(half.kept) & whole.halved, {}, BF16)
    graphs = {
        "FP32": fp16,
        "BF16": convert_to_half(fp16, mixed),
        "BF16, as all the others": convert_to_half(model, whole),
    }
    return len(half.kept), graphs


def measure(name: str, given: Trained, blocks: int) -> list[Row]:
    model = tidy_in_opset(given.graph.model, OPSET_FOR_BF16)
    kept, graphs = variants(beyond_fp16(model, blocks), given.calibration[:1])
    rows = []
    for kept_as, graph in graphs.items():
        assert computes_narrow(graph)  # noqa: S101 - otherwise nothing would be measured
        with OrtRunner(split(rounding_form(graph), name), OPTIONS) as runner:
            got = np.concatenate(outputs_of(runner, given.test))
        rows.append(Row(name, blocks, kept, kept_as, **judge(got, given.exact, given.labels)))
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| blocks beyond FP16 | nodes kept | as | SQNR dB | mean KL | agreement | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.blocks} | {row.kept} | {row.kept_as} | {row.logits_sqnr_db:.1f} "
        f"| {row.mean_kl:.1e} | {row.agreement:.1%} | {row.top1:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", default="resnet20")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = trained(asked.network, asked.data, 2, Path(folder))
        rows = [row for blocks in BLOCKS for row in measure(asked.network, given, blocks)]
    write_results("overflow_types", rows)
    print(table(rows))


if __name__ == "__main__":
    main()

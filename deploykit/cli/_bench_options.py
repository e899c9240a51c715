"""Options of `deploykit bench`; what they ask for is `_bench_asked`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli._bench_asked import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable

_MATRIX = (
    click.option("--all", "everything", is_flag=True, help="Every architecture of `list`."),
    click.option("--models", metavar="A,B", help="Architectures, instead of TARGETs."),
    click.option("--batch", metavar="1,8,32", help="Batches.  [default: 1,8,32; with --quick 1]"),
    click.option(
        "--precision",
        metavar="fp32,fp16,int8",
        help="Precisions.  [default: all on engines, FP32 on CPUs]",
    ),
    click.option("--fp32", is_flag=True, help="As --precision fp32; the three may be combined."),
    click.option("--fp16", is_flag=True),
    click.option("--int8", is_flag=True, help="Architectures get ranges from noise."),
    click.option(
        "--backend",
        metavar="A,B",
        help="tensorrt, tensorrt-rtx, ort-cuda, ort, eager.  [default: what works here]",
    ),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="TEXT",
        help="Only cells whose name (resnet50/ort/fp32/b1) has it, or fits: 'resnet*/b1'.",
    ),
    click.option(
        "--quick",
        is_flag=True,
        help="A first look: short, batch 1, FP32, the best backend; of --all one per family.",
    ),
)
_HOW = (
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="Measure as NVIDIA's trtexec of that version does.",
    ),
    click.option(
        "--scenario",
        type=click.Choice(["single-stream", "offline", "server"]),
        default="single-stream",
        show_default=True,
        help="One query after the other, several at a time, or queries that arrive at random.",
    ),
    click.option("--streams", type=click.IntRange(min=1), metavar="N", help="Queries at a time."),
    click.option(
        "--rate", "rate_per_s", type=float, metavar="N", help="Server: queries per second."
    ),
    click.option(
        "--bound",
        "bound_ms",
        type=float,
        metavar="MS",
        help="Server: find the highest rate with 99 % of the latencies within this.",
    ),
    click.option("--warmup", "warmup_s", type=float, metavar="S", help="At least, until stable."),
    click.option("--duration", "duration_s", type=float, metavar="S", help="At least."),
    click.option("--min-samples", type=click.IntRange(min=1), metavar="N", help="At least."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Of CPU backends."),
    click.option("--graph/--no-graph", "cuda_graph", default=None, help="CUDA graphs."),
    click.option(
        "--transfers/--no-transfers", default=None, help="Copies to and from the GPU count."
    ),
    click.option("--spin/--no-spin", default=None, help="Wait by asking, or asleep."),
    click.option("--seed", default=0, show_default=True, metavar="N", help="Of inputs, arrivals."),
)
_LIMITS = (
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Per cell.  [default: 600; with --quick 90]",
    ),
    click.option(
        "--memory-limit",
        type=click.IntRange(min=1),
        metavar="MIB",
        help="Per cell.  [default: 90 % of the machine's]",
    ),
    click.option(
        "--work",
        type=click.Path(path_type=Path),
        default=Path("engines/bench"),
        show_default=True,
        metavar="FOLDER",
        help="Keeps graphs and engines for the next run.",
    ),
    click.option("--fresh", is_flag=True, help="Do not go on with an interrupted run."),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Results, with reports beside it.  [default: benchmarks/results/bench-TIME.json]",
    ),
)


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add all options of a measurement."""
    for option in reversed((*_MATRIX, *_HOW, *_LIMITS)):
        function = option(function)
    return function

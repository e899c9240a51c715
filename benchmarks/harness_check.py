"""Whether the harness measures what others measure: beside `torch.utils.benchmark` and a bare loop.

Run it from the root of the repository with nothing else on the machine:
``python -m benchmarks.harness_check``. One onnxruntime session of one thread is made for each model
by deploykit's runner. In every round all tools measure it, one after the other, in an order drawn
anew: the harness through that runner, a bare loop and torch's ``Timer`` on the session itself, and
a bare loop on the runner, which shows what the runner adds. A tool's figure of a round is its
median; it is divided by the bare loop's of the same round. The goal is a ratio within 2 % for the
harness. Each round is kept in ``results/harness_check.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.load_cost import export
from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from deploykit.benchmarking.harness.scenarios import benchmark
from deploykit.benchmarking.harness.system import SystemClock
from deploykit.benchmarking.machine.conditions import watch
from deploykit.benchmarking.results import Switches
from deploykit.benchmarking.statistics.ab import ratio_of_pairs
from deploykit.core.environment import describe
from deploykit.core.progress import SilentProgress
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.benchmarking.statistics.comparing import Ratio
    from deploykit.core.specs import Array, Runner

    Tool = Callable[[], "tuple[float, int]"]
    """Measures for a moment: the median in ms and the number of queries."""

RESULTS: Final = Path(__file__).parent / "results"
MODELS: Final = ("resnet18", "resnet20")
THREADS: Final = 1
GOAL: Final = 0.02

BARE: Final = "bare loop"
HARNESS: Final = "deploykit, latency"
HARNESS_WALL: Final = "deploykit, wall"
BARE_ON_RUNNER: Final = "bare loop on the runner"
BLOCKED: Final = "torch blocked_autorange"
ADAPTIVE: Final = "torch adaptive_autorange"
TOOLS: Final = (BARE, HARNESS, HARNESS_WALL, BARE_ON_RUNNER, BLOCKED, ADAPTIVE)


@dataclass(frozen=True)
class Block:
    """What one tool found in one round; ``place`` is its turn in the round."""

    model: str
    round: int
    place: int
    tool: str
    median_ms: float
    queries: int


def feeds_of(runner: Runner, batch: int = 1) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        spec.name: random.normal(size=spec.with_batch(batch)).astype(spec.dtype)
        for spec in runner.inputs
    }


def switches_of(duration_s: float, warmup_s: float, seed: int = 0) -> Switches:
    """One query after the other, on one thread."""
    return Switches(
        scenario="single-stream",
        cuda_graph=False,
        transfers=False,
        streams=1,
        spin=True,
        warmup_s=warmup_s,
        duration_s=duration_s,
        min_samples=1,
        seed=seed,
        threads=THREADS,
    )


def bare_loop(call: Callable[[], Any], block_s: float) -> tuple[float, int]:
    samples_ns: list[int] = []
    until_ns = time.perf_counter_ns() + int(block_s * 1e9)
    while time.perf_counter_ns() < until_ns:
        start_ns = time.perf_counter_ns()
        call()
        samples_ns.append(time.perf_counter_ns() - start_ns)
    return float(np.median(samples_ns)) / 1e6, len(samples_ns)


def harness(
    runner: Runner, feeds: Mapping[str, Array], block_s: float, step: str
) -> tuple[float, int]:
    """The median of one step, ``compute_ms`` being what `deploykit bench` calls latency."""
    switches = switches_of(block_s, warmup_s=0.0)
    with SilentProgress().step("measure") as task:
        samples, _ = benchmark(runner, feeds, switches, clock=SystemClock(), task=task)
    return float(np.median(samples.step(step))), len(samples)


def tools_of(runner: OrtRunner, block_s: float) -> dict[str, Tool]:
    from torch.utils.benchmark import Timer

    feeds = feeds_of(runner)
    session = runner._open().session  # noqa: SLF001  (the very session is what must be equal)
    names = [output.name for output in session.get_outputs()]
    timer = Timer(
        "session.run(names, feeds)", globals={"session": session, "names": names, "feeds": feeds}
    )

    def blocked() -> tuple[float, int]:
        found = timer.blocked_autorange(min_run_time=block_s)
        return found.median * 1e3, len(found.times) * found.number_per_run

    def adaptive() -> tuple[float, int]:
        found = timer.adaptive_autorange(min_run_time=block_s, max_run_time=4 * block_s)
        return found.median * 1e3, len(found.times) * found.number_per_run

    return {
        BARE: lambda: bare_loop(lambda: session.run(names, feeds), block_s),
        HARNESS: lambda: harness(runner, feeds, block_s, "compute_ms"),
        HARNESS_WALL: lambda: harness(runner, feeds, block_s, "wall_ms"),
        BARE_ON_RUNNER: lambda: bare_loop(lambda: runner.run(feeds), block_s),
        BLOCKED: blocked,
        ADAPTIVE: adaptive,
    }


def measure(model: str, tools: Mapping[str, Tool], rounds: int) -> list[Block]:
    """Every tool once a round; a round before the first one warms up."""
    random = np.random.default_rng(0)
    names, blocks = list(tools), []
    for done in range(rounds + 1):
        print(f"{model}: round {done} of {rounds}", file=sys.stderr)
        for place, at in enumerate(random.permutation(len(names)).tolist()):
            median_ms, queries = tools[names[at]]()
            if done:
                blocks.append(Block(model, done, place, names[at], median_ms, queries))
    return blocks


def medians(blocks: Sequence[Block], model: str, tool: str) -> list[float]:
    return [b.median_ms for b in blocks if (b.model, b.tool) == (model, tool)]


def ratio_to_bare(blocks: Sequence[Block], model: str, tool: str) -> Ratio:
    return ratio_of_pairs(medians(blocks, model, BARE), medians(blocks, model, tool))


def table(blocks: Sequence[Block]) -> str:
    lines = [
        "| model | tool | median ms | beside the bare loop | 99 % interval |",
        "|" + "---|" * 5,
    ]
    for model, tool in measured(blocks):
        median_ms = float(np.median(medians(blocks, model, tool)))
        ratio = ratio_to_bare(blocks, model, tool)
        interval = f"{ratio.low - 1:+.2%} to {ratio.high - 1:+.2%}"
        shown = "| |" if tool == BARE else f"| {ratio.value - 1:+.2%} | {interval} |"
        lines.append(f"| {model} | {tool} | {median_ms:.3f} {shown}")
    return "\n".join(lines)


def measured(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    """Models in the order of their measurement, each with every tool."""
    return [(model, tool) for model in dict.fromkeys(b.model for b in blocks) for tool in TOOLS]


def within_goal(blocks: Sequence[Block]) -> bool:
    ours = [(model, tool) for model, tool in measured(blocks) if tool == HARNESS]
    return all(abs(ratio_to_bare(blocks, *each).value - 1) <= GOAL for each in ours)


def collect(models: Mapping[str, Path], rounds: int, block_s: float) -> list[Block]:
    blocks: list[Block] = []
    for model, path in models.items():
        with OrtRunner(path, GraphOptions(threads=THREADS)) as runner:
            blocks += measure(model, tools_of(runner, block_s), rounds)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--block", type=float, default=0.1, metavar="SECONDS")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        models = {each: export(each, Path(name) / each) / "model.onnx" for each in MODELS}
        # From here on: the exports are no work of others.
        blocks, conditions = watch(
            lambda _warm: collect(models, options.rounds, options.block), on_gpu=False
        )
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "load_before": load,
        "conditions": to_plain(conditions),
        "threads": THREADS,
        "block_s": options.block,
        "ratios": [
            {"model": model, "tool": tool, **asdict(ratio_to_bare(blocks, model, tool))}
            for model, tool in measured(blocks)
        ],
        "blocks": [asdict(block) for block in blocks],
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    (RESULTS / "harness_check.json").write_text(text, encoding="utf-8")
    print(table(blocks), *conditions.sentences(), sep="\n")
    sys.exit(0 if within_goal(blocks) else 1)


if __name__ == "__main__":
    main()

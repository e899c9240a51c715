"""What rounding where an engine rounds costs on a CPU: validation, and calls of a bundle.

    python -m benchmarks.rounded_cost [--model resnet50] [--rounds 9] [--calls 40]

The model is exported once in FP16. Then the steps of its validation run once a round, in an order
drawn anew, and `deploykit predict` with and without ``--fast``, a process of its own; in rounds of
their own the calls of a loaded bundle with and without ``fast=True``. Every ratio is taken within a
round. One round more is run first and left out. The steps:

- plain comparison: ``model.onnx`` as onnxruntime computes it, in FP32 arithmetic;
- rounded comparison: the form that rounds what fusion leaves, made, loaded and run;
- overflows: the form that rounds every value, with the extremes of each;
- guards and sums: the least magnitudes and largest sums, where there is something to measure;
- magnitudes: the largest magnitude of each FP32 value, which an export needs with any judge.

The tables go to standard output and to ``benchmarks/results/rounded_cost.md``, every sample to
``benchmarks/results/rounded_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import deploykit
from benchmarks.load_cost import interval
from deploykit.comparison.converted import validate_converted
from deploykit.comparison.validation import outputs_of, validate
from deploykit.core.environment import describe
from deploykit.core.precision import Precision
from deploykit.core.progress import Journal, SilentProgress
from deploykit.core.serialization import to_plain
from deploykit.exporting.steps import ExportOptions, export_bundle
from deploykit.graph import read_graph
from deploykit.images.sets import image_files
from deploykit.models import get
from deploykit.precision.fp16 import find_overflows, measure_magnitudes, measure_unfit
from deploykit.sources.definition import SourceOptions
from deploykit.sources.references import make_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.bundle.manifest import Bundle
    from deploykit.comparison.reference import Reference
    from deploykit.core.progress import ProgressTask

    Call = Callable[[], Any]
    Samples = Mapping[str, Sequence[float]]

HERE = Path(__file__).parent
BATCHES = (1, 8)
NOISE = "fast again"


@dataclass(frozen=True)
class Ratio:
    """What is divided by what, each the sum of the samples of one round."""

    what: str
    above: tuple[str, ...]
    below: tuple[str, ...]

    def of(self, samples: Samples) -> list[float]:
        """One number for each round."""
        sums = [
            [sum(each) for each in zip(*(samples[name] for name in names), strict=True)]
            for names in (self.above, self.below)
        ]
        return [a / b for a, b in zip(*sums, strict=True)]


SEARCHES = ("overflows", "guards and sums")
RATIOS = (
    Ratio("comparison alone", ("rounded comparison",), ("plain comparison",)),
    Ratio(
        "all that is measured and compared",
        ("magnitudes", *SEARCHES, "rounded comparison"),
        ("magnitudes", "plain comparison"),
    ),
    *(Ratio(f"`run`, batch {n}", (f"run {n}",), (f"run {n}, fast",)) for n in BATCHES),
    Ratio("`run`, batch 1, fast beside fast", (f"run 1, {NOISE}",), ("run 1, fast",)),
    Ratio("`predict` of a loaded model, one photograph", ("predict",), ("predict, fast",)),
    Ratio("`deploykit predict`, one photograph", ("command",), ("command, fast",)),
)


def steps(reference: Reference, bundle: Bundle, task: ProgressTask) -> dict[str, Call]:
    """The steps of validation, on what an export would run them on."""
    graph, runners, batches = read_graph(bundle.model_path), reference.runners, reference.batches
    source = reference.graph.model
    measuring: Any = {"open_runner": runners.measuring, "task": task}
    names = "the fp16 graph", reference.made_by
    measured = measure_magnitudes(source, batches, **measuring)
    _, every = find_overflows(graph.model, batches, measured, **measuring)

    def plain() -> None:
        with runners.of_artifact(graph.artifact) as runner:
            outputs = outputs_of(runner, batches)
        report = validate(
            outputs,
            reference.outputs,
            precision=Precision.FP16,
            names=names,
            head=reference.head,
        )
        report.require_pass()

    def rounded() -> None:
        compared = batches, reference.outputs
        report, _ = validate_converted(
            runners, graph, compared, names=names, head=reference.head, every=every
        )
        report.require_pass()

    return {
        "plain comparison": plain,
        "rounded comparison": rounded,
        "overflows": lambda: find_overflows(graph.model, batches, measured, **measuring),
        "guards and sums": lambda: measure_unfit(source, measured.amax, batches, **measuring),
        "magnitudes": lambda: measure_magnitudes(source, batches, **measuring),
    }


def commands(bundle: Bundle, photograph: Path) -> dict[str, Call]:
    """`deploykit predict` from its start to its end, rounded and fast."""
    words = ["-m", "deploykit", "predict", str(bundle.folder), str(photograph), "--device", "cpu"]
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    return {
        "command": partial(run, [sys.executable, *words]),
        "command, fast": partial(run, [sys.executable, *words, "--fast"]),
    }


def calls(bundle: Bundle, photograph: Path, stack: ExitStack) -> dict[str, Call]:
    """Calls of a loaded bundle, rounded and fast."""
    load = partial(deploykit.load, bundle.folder, device="cpu")
    rounded, fast = (stack.enter_context(load(fast=each)) for each in (False, True))
    again = stack.enter_context(load(fast=True))
    random = np.random.default_rng(0)
    found: dict[str, Call] = {}
    for count in BATCHES:
        batch = random.normal(size=rounded.inputs[0].with_batch(count)).astype(np.float32)
        found[f"run {count}"] = partial(rounded.run, batch)
        found[f"run {count}, fast"] = partial(fast.run, batch)
        if count == 1:
            found[f"run 1, {NOISE}"] = partial(again.run, batch)
    found["predict"] = partial(rounded.predict, [photograph])
    found["predict, fast"] = partial(fast.predict, [photograph])
    return found


def interleave(called: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, once a round, in an order drawn anew; the first round is left out."""
    samples: dict[str, list[float]] = {name: [] for name in called}
    random = np.random.default_rng(0)
    for done in range(rounds + 1):
        for name in random.permutation(list(called)).tolist():
            start = time.perf_counter()
            called[name]()
            if done:
                samples[name].append(round(time.perf_counter() - start, 5))
    return samples


def report(samples: Samples) -> str:
    lines = ["| step or call | median s | fastest s |", "|---|---|---|"]
    for name, seconds in samples.items():
        lines.append(f"| {name} | {statistics.median(seconds):.3f} | {min(seconds):.3f} |")
    lines += ["", "| rounded beside plain | ratio | 95 % interval |", "|---|---|---|"]
    for ratio in RATIOS:
        found = ratio.of(samples)
        low, high = interval(found)
        lines.append(f"| {ratio.what} | {statistics.median(found):.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def measure(
    model: str, rounds: int, called: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The samples, and the seconds of the stages of the one export before them."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        options = ExportOptions(Precision.FP16, backend="none", output=folder / "bundle")
        made = export_bundle(model, options)
        photograph = image_files(Path(deploykit.__file__).parent / "samples").paths[0]
        path = folder / "reference.onnx"
        journal = Journal(SilentProgress())
        reference = make_reference(get(model), path, journal, SourceOptions())
        with SilentProgress().step("") as task:
            slow = {**steps(reference, made.bundle, task), **commands(made.bundle, photograph)}
            samples = interleave(slow, rounds)
        samples |= interleave(calls(made.bundle, photograph, stack), called)
        return samples, {stage.name: round(stage.seconds, 3) for stage in made.stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50", help="a definition of `deploykit list`")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=40, help="rounds of a loaded bundle's calls")
    given = parser.parse_args()
    samples, stages = measure(given.model, given.rounds, given.calls)
    here = describe()
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(here),
        "model": given.model,
        "export_stages_s": stages,
        "samples_s": samples,
    }
    target = HERE / "results" / "rounded_cost.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = report(samples)
    counted = f"{given.rounds} rounds of steps and commands, {given.calls} of calls"
    head = f"# {given.model} in FP16, rounded and plain\n\n{here.cpu}; {counted}."
    target.with_suffix(".md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""How often a verdict is right: the same model against itself, and against itself 10 % slower.

Run it from the root of the repository with nothing else on the machine: ``python -m
benchmarks.noise``. ResNet-20 on onnxruntime with one thread, by two methods:

- two sessions of the same file are interleaved in this process (`interleave`, `report_of`), and
  again two of which the second one waits after each query for a tenth of the median that it has;
- three fresh processes load the file and measure it, one after the other, the third one slowed
  down in the same way; the results of the second and the third are compared with the first's
  (`compare`).

The goals of the first are 95 times "no difference" and 90 times "slower". The second, with half
as many tries, shows what the machine does between two measurements. All tries count.
``--minutes`` ends earlier, and the next call goes on where the last one ended. Every ratio with its
interval is kept in ``results/noise.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness_check import THREADS, switches_of
from benchmarks.load_cost import export
from benchmarks.noise_one import MODEL, opened, result_of, rounds_of
from deploykit.benchmarking.results import BenchmarkRun, read_run, write_run
from deploykit.benchmarking.statistics.ab import report_of
from deploykit.benchmarking.statistics.comparing import Verdict, compare
from deploykit.core.atomic import write_whole
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.benchmarking.results import BenchmarkResult
    from deploykit.benchmarking.statistics.comparing import Comparison

RESULTS: Final = Path(__file__).parent / "results" / "noise.json"

SLOWER: Final = 0.1
INTERLEAVED: Final = "interleaved"
PROCESSES: Final = "two processes"
METHODS: Final = (INTERLEAVED, PROCESSES)
WANTED: Final = {0.0: (Verdict.NO_DIFFERENCE, 95), SLOWER: (Verdict.SLOWER, 90)}
"""By the planted slowdown: the right verdict, and how many of 100 must be right."""

SIDE_S: Final = 0.3
RESULT_S: Final = 0.7
WARMUP_S: Final = 0.05
SETTINGS: Final = {"side_s": SIDE_S, "result_s": RESULT_S, "warmup_s": WARMUP_S}


@dataclass(frozen=True)
class Try:
    """One comparison."""

    number: int
    method: str
    slower: float
    verdict: str
    ratio: dict[str, float]
    min_effect: float
    condition: tuple[str, ...]


def tried(
    number: int, method: str, slower: float, found: Comparison, condition: Sequence[str]
) -> Try:
    ratio, verdict = asdict(found.ratio), found.verdict.value
    return Try(number, method, slower, verdict, ratio, found.min_effect, tuple(condition))


def interleaved(model: Path, number: int, slower: float) -> Try:
    switches = switches_of(SIDE_S, WARMUP_S, seed=number)
    with ExitStack() as stack:
        a, b = opened(stack, model), opened(stack, model, slower)
        rounds, condition = rounds_of(a, b, switches)
    return tried(number, INTERLEAVED, slower, report_of(rounds).comparison, condition)


def processes(model: Path, number: int, folder: Path) -> list[Try]:
    """A, A again, and a slower one: both others against the first."""
    slowdowns = (0.0, 0.0, SLOWER)
    first, *others = (fresh_process(model, slower, folder / "one.json") for slower in slowdowns)
    return [
        compared(number, slower, first, other)
        for slower, other in zip(slowdowns[1:], others, strict=True)
    ]


def compared(number: int, slower: float, old: BenchmarkResult, new: BenchmarkResult) -> Try:
    condition = (*old.condition, *new.condition)
    return tried(number, PROCESSES, slower, compare(old, new), condition)


def fresh_process(model: Path, slower: float, place: Path) -> BenchmarkResult:
    command = [sys.executable, "-m", "benchmarks.noise", "--one", str(place)]
    command += ["--model", str(model), "--slower", str(slower)]
    subprocess.run(command, check=True)
    (result,) = read_run(place).results
    return result


def measure_one(model: Path, slower: float, place: Path) -> None:
    """What a fresh process does."""
    with ExitStack() as stack:
        side = opened(stack, model, slower)
        result = result_of(side, switches_of(RESULT_S, WARMUP_S))
    write_run(place, BenchmarkRun((result,)))


def counts(tries: Sequence[Try]) -> dict[tuple[str, float], Counter[str]]:
    """How often each verdict was given, by method and planted slowdown."""
    found = {(method, slower): Counter[str]() for method in METHODS for slower in WANTED}
    for each in tries:
        found[each.method, each.slower][each.verdict] += 1
    return found


def missed(tries: Sequence[Try]) -> list[str]:
    """Slowdowns that interleaving got right less often than is the goal."""
    return [
        f"{method}, {slower:.0%} slower"
        for (method, slower), count in counts(tries).items()
        if method == INTERLEAVED
        and count[WANTED[slower][0]] * 100 < WANTED[slower][1] * count.total()
    ]


def table(tries: Sequence[Try]) -> str:
    lines = ["| method | planted | verdicts | right | goal |", "|---|---|---|---|---|"]
    for (method, slower), count in counts(tries).items():
        right, goal = WANTED[slower]
        shown = ", ".join(f"{verdict} {times}" for verdict, times in count.most_common())
        lines.append(
            f"| {method} | {slower:.0%} slower | {shown} "
            f"| {count[right]} of {count.total()} "
            f"| {f'{goal} of 100' if method == INTERLEAVED else ''} |"
        )
    busy = sum(bool(each.condition) for each in tries)
    return "\n".join([*lines, f"\n{busy} of {len(tries)} comparisons were made on a busy machine"])


def read_tries() -> list[Try]:
    """Those of an earlier call that had to end; none where the last call was complete."""
    if not RESULTS.exists():
        return []
    before = json.loads(RESULTS.read_text(encoding="utf-8"))
    if before["complete"] or before["settings"] != SETTINGS:
        return []
    return [Try(**{**each, "condition": tuple(each["condition"])}) for each in before["tries"]]


def write(tries: Sequence[Try], *, complete: bool) -> None:
    result: dict[str, Any] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "model": MODEL,
        "threads": THREADS,
        "settings": SETTINGS,
        "complete": complete,
        "tries": [asdict(each) for each in tries],
    }
    write_whole(RESULTS, json.dumps(result, indent=1) + "\n")


def collect(wanted: int, minutes: float, tries: list[Try]) -> None:
    """Add tries until there are enough, or the time is over."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export(MODEL, folder / MODEL) / "model.onnx"
        until = time.monotonic() + 60 * minutes
        for method in METHODS:
            for number in range(tries_made(tries, method), tries_wanted(method, wanted)):
                if time.monotonic() > until:
                    return
                print(f"{method}: try {number + 1} of {wanted}", file=sys.stderr)
                tries += one_try(method, model, number, folder)
                write(tries, complete=is_complete(tries, wanted))


def one_try(method: str, model: Path, number: int, folder: Path) -> list[Try]:
    """As it is, and slowed down."""
    if method == PROCESSES:
        return processes(model, number, folder)
    return [interleaved(model, number, slower) for slower in WANTED]


def tries_made(tries: Sequence[Try], method: str) -> int:
    return 1 + max((each.number for each in tries if each.method == method), default=-1)


def tries_wanted(method: str, wanted: int) -> int:
    return wanted if method == INTERLEAVED else wanted // 2


def is_complete(tries: Sequence[Try], wanted: int) -> bool:
    return all(tries_made(tries, each) >= tries_wanted(each, wanted) for each in METHODS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--slower", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure_one(options.model, options.slower, options.one)
        return
    tries = read_tries()
    collect(options.tries, options.minutes, tries)
    print(table(tries))
    sys.exit("\n".join(["missed:", *missed(tries)]) if missed(tries) else 0)


if __name__ == "__main__":
    main()

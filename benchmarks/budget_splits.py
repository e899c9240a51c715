"""Whether a budget that was kept on one half of the images is kept on the other half.

    python -m benchmarks.budget_splits DATA NAME=BUNDLE [NAME=BUNDLE ...]

The BUNDLEs are of one network, from the slowest to the fastest, as ``deploykit export`` made them
with other precisions; DATA has images and labels that none was calibrated on. Each bundle answers
every image once, in its form for CPUs, which rounds where an engine rounds. Then the images are
split into halves at random, again and again: one half chooses a bundle, the other half says what
that bundle loses. Two ways to choose stand beside each other: deploykit's upper bound of 95 %, in
the order of `--precision auto`, and the loss as it was seen, of which the fastest is taken.

Splits of the same images overlap, so this proves less than it counts: the tests draw images of a
known loss (``tests/unit/precision/test_budget_bounds.py``). The half that tells the loss is a
sample too, and says more or less than the truth.

The table goes to standard output, every figure to ``results/budget_splits.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.transformer_int8 import outputs
from deploykit.bundle.manifest import REFERENCE, Bundle
from deploykit.core.atomic import write_whole
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain
from deploykit.images import LabelledData, ModelClasses, open_labelled, prepare
from deploykit.precision.budget.bounds import net_upper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Right = NDArray[np.bool_]

HERE: Final = Path(__file__).parent
SPLITS: Final = 1000
BUDGETS: Final = (0.005, 0.01, 0.02)
BATCH: Final = 125


@dataclass(frozen=True)
class Row:
    """One budget and one way to choose, over all splits.

    ``beyond`` is the share of the splits whose other half loses more than the budget, ``worst`` the
    largest such loss, ``chosen`` how often each bundle was taken (``-``: none, FP32 stays).
    """

    budget: float
    way: str
    beyond: float
    mean_drop: float
    worst: float
    chosen: dict[str, int]


def drop(before: Right, after: Right) -> float:
    """Images that became wrong less those that became right, as a share."""
    return float(before.mean() - after.mean())


def by_bound(before: Right, candidates: Sequence[Right], budget: float) -> int:
    """The last before the first whose upper bound is above the budget; -1 where that is the first.

    Candidates come from the slowest to the fastest.
    """
    for at, after in enumerate(candidates):
        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        if net_upper(lost, gained, len(before)) > budget:
            return at - 1
    return len(candidates) - 1


def by_loss_seen(before: Right, candidates: Sequence[Right], budget: float) -> int:
    """The fastest whose loss on these images is within the budget; -1 where none is."""
    fitting = [at for at, after in enumerate(candidates) if drop(before, after) <= budget]
    return fitting[-1] if fitting else -1


WAYS: Final = {"bound of 95 %": by_bound, "loss as seen": by_loss_seen}


def measure(
    before: Right, named: dict[str, Right], splits: int = SPLITS, seed: int = 0
) -> list[Row]:
    """Every budget by every way, on the same random halves."""
    names, candidates = list(named), np.stack(list(named.values()))
    random, count = np.random.default_rng(seed), len(before)
    halves = [np.split(random.permutation(count)[: count // 2 * 2], 2) for _ in range(splits)]
    rows = []
    for budget in BUDGETS:
        for way, choose in WAYS.items():
            chosen = [choose(before[one], list(candidates[:, one]), budget) for one, _ in halves]
            drops = np.array(
                [
                    0.0 if at < 0 else drop(before[other], candidates[at, other])
                    for at, (_, other) in zip(chosen, halves, strict=True)
                ]
            )
            taken = {name: chosen.count(at) for at, name in enumerate(["-", *names], start=-1)}
            beyond, worst = float((drops > budget).mean()), float(drops.max())
            rows.append(Row(budget, way, beyond, float(drops.mean()), worst, taken))
    return rows


def answered_right(data: Path, bundle: Bundle, graph: Path) -> Right:
    """Whether the graph gives the label of each image."""
    (output,) = bundle.manifest.onnx.outputs
    classes = ModelClasses(int(output.shape[-1]), bundle.labels)
    source, preprocessing = (
        open_labelled(LabelledData(data), classes),
        bundle.manifest.preprocessing,
    )
    found = []
    for start in range(0, len(source), BATCH):
        places = range(start, min(start + BATCH, len(source)))
        batch = np.stack([prepare(source, place, preprocessing) for place in places])
        found.append(outputs(graph, [batch])[0].argmax(axis=1))
    is_right: Right = np.concatenate(found) == np.asarray(source.labels)
    return is_right


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| budget | chosen by | other half loses more | mean loss | worst | taken |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        taken = ", ".join(f"{name} {count}" for name, count in row.chosen.items() if count)
        lines.append(
            f"| {row.budget:.1%} | {row.way} | {row.beyond:.1%} of splits | {row.mean_drop:.2%} "
            f"| {row.worst:.1%} | {taken} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "budget_splits.json")
    asked = parser.parse_args()
    given = (each.partition("=") for each in asked.bundles)
    bundles = {name: Bundle.open(Path(place)) for name, _, place in given}
    first = next(iter(bundles.values()))
    before = answered_right(asked.data, first, first.folder / REFERENCE)
    named = {}
    for name, bundle in bundles.items():
        print(f"answers of {name}", file=sys.stderr, flush=True)
        named[name] = answered_right(asked.data, bundle, bundle.on_cpu().artifact.path)
    rows = measure(before, named)
    drops = {name: drop(before, after) for name, after in named.items()}
    content = {
        "environment": to_plain(describe()),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": len(before),
        "splits": SPLITS,
        "fp32": float(before.mean()),
        "drop_on_all": drops,
        "rows": [asdict(row) for row in rows],
    }
    write_whole(asked.out, json.dumps(content, indent=1) + "\n")
    all_of_them = ", ".join(f"{name} {share:.2%}" for name, share in drops.items())
    print(f"FP32 {before.mean():.1%}; drop on all {len(before)} images: {all_of_them}\n")
    print(table(rows))


if __name__ == "__main__":
    main()

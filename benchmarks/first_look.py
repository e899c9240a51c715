"""Whether `deploykit bench --all --quick` ranks the architectures alike when it is run again.

``python -m benchmarks.first_look`` runs it twice, the first time with nothing prepared, and keeps
both runs' times and rankings in ``benchmarks/results/first_look.json``. Nothing else should run on
the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

HERE = Path(__file__).parent
DEPLOYKIT = str(Path(sys.executable).parent / "deploykit")
LIMIT_S: Final = 180


def first_look(folder: Path) -> dict[str, Any]:
    """One run in ``folder``: how long it took, and what it says."""
    begin = time.perf_counter()
    done = subprocess.run(
        [DEPLOYKIT, "bench", "--all", "--quick", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(done.stderr or done.stdout)
    data = json.loads(done.stdout)
    (ranking,) = data["rankings"]
    remarks = {text for row in data["results"] for text in (*row["condition"], *row["warnings"])}
    return {"seconds": seconds, "ranking": ranking, "remarks": sorted(remarks)}


def places(run: dict[str, Any]) -> list[tuple[int, str]]:
    """Rank and model, in the order of the ranking; models of one rank by their name."""
    return sorted((place["rank"], place["model"]) for place in run["ranking"]["places"])


def table(runs: list[dict[str, Any]]) -> str:
    """Both rankings side by side, as Markdown."""
    latencies = [
        {place["model"]: place["latency_ms"] for place in run["ranking"]["places"]} for run in runs
    ]
    lines = ["| rank | architecture | first ms | second ms |", "|---|---|---|---|"]
    for rank, model in places(runs[0]):
        first, second = (each[model] for each in latencies)
        lines.append(f"| {rank} | {model} | {first:.3g} | {second:.3g} |")
    return "\n".join(lines)


def main() -> None:
    """Run twice, print, keep."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [first_look(Path(folder)) for _ in range(2)]
    same = places(runs[0]) == places(runs[1])
    body = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "same_ranking": same,
        "runs": runs,
    }
    path = HERE / "results" / "first_look.json"
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{table(runs)}\n\n")
    seconds = " and ".join(f"{run['seconds']:.0f} s" for run in runs)
    sys.stdout.write(f"{seconds} (limit {LIMIT_S} s), same ranking: {'yes' if same else 'no'}\n")
    if not same or any(run["seconds"] > LIMIT_S for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    main()

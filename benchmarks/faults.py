"""Plants faults in bundles, in files of strangers and around the service, and counts what came.

Run it from the root of the repository: ``python -m benchmarks.faults``. Every kind of fault is a
process of its own, so that a crash is an outcome and not the end; ``--only WORD`` runs the kinds
whose name has the word, and puts their rows in place of those of before. Commands, `deploykit.load`
and `deploykit serve` are the real ones. `faults_judge.py` says what the outcomes mean;
what is right is computed by numpy.

``--hostile-minutes 10`` runs the service with 64 hostile clients beside good ones instead.
Results are in ``results/faults.json`` and ``.md``, and in ``results/hostile_clients.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import faults_bombs, faults_disk, faults_files, faults_service
from benchmarks.faults_judge import OUTCOMES, Row
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    Plant = Callable[[Path, int, Row], None]

RESULTS: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Kind:
    """A kind of fault; ``count`` is what `plant` makes of it, ``bound_s`` the time for each."""

    name: str
    plant: Plant
    count: int = 1
    bound_s: float = 10.0


KINDS: Final = (
    Kind("readers beside 200 swaps", faults_disk.readers_beside_swaps, 200, 30),
    Kind(
        "readers beside 200 swaps in two renames", faults_disk.readers_beside_two_renames, 200, 30
    ),
    Kind("check beside builds", faults_disk.check_beside_builds, 2000, 30),
    Kind("builds stopped at each call on the disk", faults_disk.builds_stopped, 3, 30),
    Kind("swaps stopped at each call on the disk", faults_disk.swaps_stopped, 3, 30),
    Kind("swaps in two renames, the same", faults_disk.two_renames_stopped, 3, 30),
    Kind("exports killed at random times", faults_disk.exports_killed, 20, 60),
    Kind("full disks and TMPDIR during export", faults_disk.disks_full, 12, 60),
    Kind("random bytes in files of a bundle", faults_files.bytes_of_files, 400),
    Kind("other values in a signed manifest", faults_files.values_of_manifests, 400),
    Kind("random bytes in a graph, hashes made to fit", faults_files.bytes_of_graphs, 200),
    Kind("odd golden samples, hashes made to fit", faults_files.bytes_of_golden_samples, 200),
    Kind("changes of a signed bundle, hashes made to fit", faults_files.signed_bundles, 60),
    Kind("calibration tables", faults_files.calibration_tables, 1000),
    Kind("names that leave the folder", faults_files.names_that_leave),
    Kind("external weights that are not named", faults_files.external_weights),
    Kind("pipes, devices, sockets", faults_files.special_files),
    Kind("escape sequences in names", faults_files.escape_sequences),
    Kind("names that are no UTF-8", faults_files.names_that_are_no_utf_8),
    Kind("pixel bombs", faults_bombs.pixel_bombs, 1, 60),
    Kind("bombs of .npz", faults_bombs.npz_bombs, 1, 60),
    Kind("bombs of Concat and of configurations", faults_bombs.graph_bombs, 1, 60),
    Kind("exports under a running service", faults_service.exports_below, 20, 60),
    Kind("stalled clients", faults_service.stalled_clients, 24, 30),
)


def run_here(kind: Kind, count: int) -> Row:
    """Plant a kind in this process."""
    row = Row(kind.name, kind.bound_s)
    with tempfile.TemporaryDirectory() as folder:
        kind.plant(Path(folder), count, row)
    return row


def run_apart(kind: Kind, count: int) -> Row:
    """Plant a kind in a process of its own; one that crashes counts as a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.faults", "--only", kind.name]
        command += ["--here", str(out), "--count", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return row_of(json.loads(out.read_text(encoding="utf-8")))
    row = Row(kind.name, kind.bound_s)
    row.add("traceback", f"exit {done.returncode}: {done.stderr[-2000:]}")
    return row


def plain_of(row: Row) -> dict[str, Any]:
    return {**vars(row), "counts": dict(row.counts)}  # `asdict` counts the items of a Counter


def row_of(plain: dict[str, Any]) -> Row:
    return Row(**{**plain, "counts": Counter(plain["counts"])})


def table(rows: list[Row]) -> str:
    """As Markdown."""
    names = ["tried", *OUTCOMES[:1], "of these refused", *OUTCOMES[1:], "slowest s", "bound s"]
    lines = ["| kind of fault | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        first, *others = (str(row.counts[name]) for name in OUTCOMES)
        cells = [str(row.tried), first, str(row.refused), *others]
        lines.append(
            f"| {row.kind} | {' | '.join(cells)} | {row.slowest_s:.2f} | {row.bound_s:g} |"
        )
    total = [str(sum(row.counts[name] for row in rows)) for name in OUTCOMES]
    cells = [str(sum(row.tried for row in rows)), total[0], str(sum(row.refused for row in rows))]
    lines.append(f"| all | {' | '.join([*cells, *total[1:]])} | | |")
    notes = [f"Left out of {row.kind!r}: {row.left_out}." for row in rows if row.left_out]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def measured() -> dict[str, Any]:
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "load_average_before": os.getloadavg(),
    }


def write(name: str, body: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def plant_all(kinds: list[Kind], share: float) -> list[Row]:
    rows = []
    for kind in kinds:
        row = run_apart(kind, max(1, round(kind.count * share)))
        rows.append(row)
        print(f"{kind.name}: {dict(row.counts)}", *row.shown, sep="\n  ", file=sys.stderr)
    return rows


def keep(rows: list[Row], about: dict[str, Any]) -> str:
    """Write the table with these rows in place of what they were before."""
    path = RESULTS / "faults.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    known = {row.kind: row for row in (*map(row_of, before), *rows)}
    kept = [known[kind.name] for kind in KINDS if kind.name in known]
    write(path.name, {**about, "rows": [plain_of(row) for row in kept]})
    text = table(kept)
    path.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")
    return text


def hostile(minutes: float) -> bool:
    about = measured()
    with tempfile.TemporaryDirectory() as folder:
        found = faults_service.hostile_minutes(Path(folder), minutes)
    is_clean = faults_service.is_clean(found)
    write("hostile_clients.json", {**about, "is_clean": is_clean, **found})
    print(faults_service.show(found))
    return is_clean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kinds whose name has this word")
    parser.add_argument("--share", type=float, default=1.0, help="of what is planted of each kind")
    parser.add_argument("--hostile-minutes", type=float, help="the service under hostile clients")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hostile_minutes is not None:
        sys.exit(0 if hostile(options.hostile_minutes) else 1)
    if options.here:
        (kind,) = (kind for kind in KINDS if kind.name == options.only)
        options.here.write_text(
            json.dumps(plain_of(run_here(kind, options.count))), encoding="utf-8"
        )
        return
    kinds = [kind for kind in KINDS if options.only in kind.name]
    about = measured()
    rows = plant_all(kinds, options.share)
    text = table(rows)
    if options.share == 1:
        text = keep(rows, about)
    print(text)
    sys.exit(0 if all(set(row.counts) <= {"survived"} for row in rows) else 1)


if __name__ == "__main__":
    main()

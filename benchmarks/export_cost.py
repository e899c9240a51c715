"""What verification costs: `deploykit export resnet50 --fp16` beside a bare script, and start-up.

Run it with nothing else on the machine: ``python benchmarks/export_cost.py``. It alternates the
two, prints a table in Markdown and keeps every sample in ``benchmarks/results/export_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

HERE = Path(__file__).parent
LOOK_S = 0.002
"""Between two looks at the memory of a process."""

DEPLOYKIT = str(Path(sys.executable).parent / "deploykit")


@dataclass(frozen=True)
class Sample:
    """One run of one command: wall time and the largest resident memory of its process."""

    what: str
    seconds: float
    peak_mib: float


def measure(what: str, command: list[str], folder: Path) -> Sample:
    start, peak_kib = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak_kib = max(peak_kib, high_water_kib(process.pid))
            time.sleep(LOOK_S)
        seconds = time.perf_counter() - start
        errors.seek(0)
        if process.returncode:
            sys.exit(f"{what} failed:\n{errors.read()}")
    return Sample(what, seconds, peak_kib / 1024)


def high_water_kib(pid: int) -> int:
    """The most resident memory that a process had since it began; 0 of one that has just ended.

    Not ``ru_maxrss``, which begins at the peak of the process that started it.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) if found else 0


def collect(rounds: int) -> list[Sample]:
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "engines" / "resnet50-fp16"
        bare = [sys.executable, str(HERE / "bare_export.py"), str(folder / "bare.engine")]
        export = [DEPLOYKIT, "export", "resnet50", "--fp16"]
        measure("warm-up", bare, folder)
        for done in range(rounds):
            print(f"round {done + 1} of {rounds}", file=sys.stderr)
            samples.append(measure("bare script", bare, folder))
            samples.append(measure("deploykit export resnet50 --fp16", export, folder))
            samples.append(measure("deploykit check", [DEPLOYKIT, "check", str(bundle)], folder))
            samples.append(measure("deploykit --help", [DEPLOYKIT, "--help"], folder))
            samples.append(measure("deploykit list", [DEPLOYKIT, "list"], folder))
        size = sum(file.stat().st_size for file in bundle.iterdir())
        print(f"bundle: {size / 1e6:.0f} MB", file=sys.stderr)
    return samples


def table(samples: list[Sample]) -> str:
    lines = ["| command | median s | fastest s | peak MiB |", "|---|---|---|---|"]
    for what in dict.fromkeys(sample.what for sample in samples):
        mine = [sample for sample in samples if sample.what == what]
        seconds = [sample.seconds for sample in mine]
        peak = statistics.median(sample.peak_mib for sample in mine)
        lines.append(
            f"| `{what}` | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {peak:.0f} |"
        )
    return "\n".join(lines)


def ratios(samples: list[Sample]) -> str:
    bare = [s for s in samples if s.what == "bare script"]
    ours = [s for s in samples if s.what.startswith("deploykit export")]
    pairs = list(zip(ours, bare, strict=True))
    seconds = statistics.median(a.seconds / b.seconds for a, b in pairs)
    memory = statistics.median(a.peak_mib / b.peak_mib for a, b in pairs)
    return f"median of {len(pairs)} pairs: {seconds:.2f} x the time, {memory:.2f} x the memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    samples = collect(rounds)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "samples": [asdict(sample) for sample in samples],
    }
    target = HERE / "results" / "export_cost.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(samples))
    print()
    print(ratios(samples))


if __name__ == "__main__":
    main()

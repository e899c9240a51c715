"""Seconds to the first useful error for what newcomers get wrong.

``python -m benchmarks.first_hour`` makes each mistake in a process of its own, in rounds, and keeps
every sample in ``benchmarks/results/first_hour.json``. On a busy machine read the seconds of the
processor, about which an idle machine takes, and their ratios to a bare Python. The script ends
with 1 if a mistake passes, ends in a traceback, or does not say the words that lead on.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

HERE = Path(__file__).parent
BUNDLE: Final = "engines/small-fp16"


@dataclass(frozen=True)
class Mistake:
    """A call that cannot work, and words that its error has to have."""

    arguments: tuple[str, ...]
    words: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    """Modules that are not installed in this case."""

    @property
    def label(self) -> str:
        """The call as a newcomer types it."""
        call = f"deploykit {' '.join(self.arguments)}"
        return f"{call} (without {self.lacks[0]})" if self.lacks else call

    @property
    def command(self) -> list[str]:
        """The process that is started for it."""
        hide = "".join(f"sys.modules[{name!r}] = None; " for name in self.lacks)
        code = f"import sys; {hide}from deploykit.cli import main; main(prog_name='deploykit')"
        return [sys.executable, "-c", code, *self.arguments]


def mistake(call: str, *words: str, lacks: tuple[str, ...] = ()) -> Mistake:
    return Mistake(tuple(call.split()), words, lacks)


TOOL_CHAIN: Final = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors")
"""What the base installation lacks."""

MISTAKES: Final = (
    mistake("exprot resnet50", "export"),
    mistake("export resnet50 --fp61", "--fp16"),
    mistake("export resnet50 --fp16 --int8", "--fp16", "--int8"),
    mistake("export resnet5", "resnet50"),
    mistake("export resnet50 --weights imagnet", "imagenet"),
    mistake("export resnet50 --weights none.pth", "none.pth"),
    mistake("export none.onnx", "none.onnx"),
    mistake("export nets.py:small", "nets.py"),
    mistake("export microsoft/resnet-50", "hf download"),
    mistake("export resnet50 --int8", "--calib"),
    mistake("export resnet50 --int8 --calib none", "none"),
    mistake("export resnet50 --precision int9", "int8"),
    mistake("export timm:resnet18", "pip install", lacks=("timm",)),
    mistake("export resnet50", "pip install", lacks=TOOL_CHAIN),
    mistake("check small.onnx", "deploykit export"),
    mistake("eval small.onnx --data images", "deploykit export"),
    mistake("build small.onnx", "deploykit export"),
    mistake(f"predict {BUNDLE}/model.onnx cat.jpg", BUNDLE),
    mistake("check small-fp16", BUNDLE),
    mistake("check engines", BUNDLE),
    mistake(f"predict {BUNDLE} dog.jpg", "dog.jpg"),
    mistake(f"eval {BUNDLE} --data images", "label"),
    mistake(f"verify {BUNDLE}", "--trust"),
    mistake("bench --models resnet5", "resnet50"),
)
BESIDE: Final = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "deploykit --help": [sys.executable, "-m", "deploykit", "--help"],
}


def prepare(folder: Path) -> None:
    """A small network, its bundle, images without labels."""
    import numpy as np
    from PIL import Image

    from tests.bundles import write_bundle, write_classifier

    write_classifier(folder / "small.onnx")
    (folder / "engines").mkdir()
    write_bundle(folder / BUNDLE)
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
    Image.fromarray(pixels[0]).save(folder / "cat.jpg")


def timed(
    command: list[str], folder: Path
) -> tuple[tuple[float, float], subprocess.CompletedProcess[str]]:
    """Seconds from the start of the process to its end, and seconds of the processor."""
    begin, spent = time.perf_counter(), children_cpu_s()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (time.perf_counter() - begin, children_cpu_s() - spent), done


def children_cpu_s() -> float:
    """Of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wrong_with(mistake: Mistake, done: subprocess.CompletedProcess[str]) -> str | None:
    """Why the error would not have helped, or nothing."""
    if done.returncode not in (1, 2):
        return f"exit code {done.returncode}"
    if "Traceback" in done.stderr:
        return "a traceback"
    said = " ".join((done.stdout + done.stderr).split())
    missing = [word for word in mistake.words if word not in said]
    return f"does not say {', '.join(missing)}" if missing else None


def measure(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Every call once a round; the first round, which fills the disk's cache, is left out."""
    commands = {**BESIDE, **{each.label: each.command for each in MISTAKES}}
    samples: dict[str, list[tuple[float, float]]] = {label: [] for label in commands}
    said: dict[str, subprocess.CompletedProcess[str]] = {}
    for _ in range(rounds + 1):
        for label, command in commands.items():
            seconds, said[label] = timed(command, folder)
            samples[label].append(seconds)

    def row(label: str) -> dict[str, Any]:
        seconds, cpu_s = zip(*samples[label][1:], strict=True)
        return {"call": label, "seconds": seconds, "cpu_s": cpu_s}

    rows = [row(label) for label in BESIDE]
    for each in MISTAKES:
        done = said[each.label]
        rows.append(
            {
                **row(each.label),
                "exit_code": done.returncode,
                "said": (done.stdout + done.stderr).strip(),
                "wrong": wrong_with(each, done),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, and their ratios to the start of a bare Python, as Markdown."""
    medians = [statistics.median(row["cpu_s"]) for row in rows]
    lines = ["| call | processor s | wall s | ratio |", "|---|---|---|---|"]
    for row, median in zip(rows, medians, strict=True):
        wall = statistics.median(row["seconds"])
        ratio = median / medians[0]
        lines.append(f"| `{row['call']}` | {median:.2f} | {wall:.2f} | {ratio:.0f} |")
    return "\n".join(lines)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def main(rounds: int) -> None:
    """Make every mistake, print and keep the figures."""
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        rows = measure(rounds, Path(folder))
    body = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": to_plain(describe()),
        "load_average": {"before": before, "after": os.getloadavg()},
        "rows": rows,
    }
    path = HERE / "results" / "first_hour.json"
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{table(rows)}\n")
    wrong = [f"{row['call']}: {row['wrong']}\n" for row in rows if row.get("wrong")]
    sys.stdout.writelines(wrong)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()

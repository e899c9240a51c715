"""Which classifiers go through every stage: all of torchvision, and families of timm.

``python -m benchmarks.coverage torchvision|timm [--only NAME ...] [--out FILE]``. Every model is
exported by ``deploykit.exporting.steps``, untrained, at the size of its published weights: export,
comparison with torch, FP16, comparison, engine for TensorRT for RTX. The FP32 graph is then taken
to the other columns in the same way (`coverage_one.py` says what they are). Each of
these exports is a process of its own with a limit of time, so that none can stop the others.

The results are written after every one of them, and at the end as a table beside them (``.md``).
A second call goes on where the first one ended: cells stay where they were tried, but with
``--failed`` the rows are made again that have one that did not pass. Of a row that lacks a column
beside FP16 the FP32 graph alone is exported once more. ``--columns`` says which columns are wanted
beside FP16, and leaves rows that have more. With other versions of the packages that
``environment.describe()`` names the table starts anew. Of deploykit itself every cell has the hash
of the source that made it; ``--only`` makes the rows of the named models again whatever they are.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import deploykit
from benchmarks.calibration_cost import make_photographs
from deploykit.core.atomic import write_whole
from deploykit.core.environment import describe
from deploykit.core.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Found = dict[str, Any]
    Run = Callable[[str, str, Path], Found]

HERE: Final = Path(__file__).parent
ONE: Final = HERE / "coverage_one.py"
LIMIT_S: Final = 1800.0
LIBRARIES: Final = ("timm", "torchvision")
COLUMNS: Final = ("fp16", "bf16", "int8", "int8-trials", "fp8")
"""Those of `coverage_one.py`; the others start from the FP32 graph of the first."""

GRAPH_ALONE: Final = "fp32"
"""Makes the FP32 graph of a row whose first column is there; not in the table."""

GRAPHS: Final = {COLUMNS[0]: "reference.onnx", GRAPH_ALONE: "model.onnx"}
"""Where the bundles have the FP32 graph."""

EIGHT_BITS: Final = {"int8": "int8", "int8-trials": "int8", "fp8": "fp8"}
"""Columns that count the layers of eight bits, with the precision that these have."""

PHOTOGRAPHS: Final = 40
"""Cuts of the sample photographs for the column with trials: 32 calibrate, 8 judge."""

_TIMM = """
resnet26d seresnet50 skresnet18 resnest14d res2net50_26w_4s regnety_002 efficientnet_b0
efficientnetv2_rw_t mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
ghostnet_050 tinynet_e hardcorenas_a densenet121 dpn48b hrnet_w18_small vgg11_bn inception_v4
xception41 cspresnet50 darknet53 dla34 ese_vovnet19b_dw selecsls42b tresnet_m repvgg_a0 repvit_m0_9
eca_nfnet_l0 starnet_s1 convnext_atto convnextv2_atto convnext_zepto_rms
vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_336
cait_xxs24_224 xcit_nano_12_p16_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224
pvt_v2_b0 twins_pcpvt_small coat_tiny levit_128s mixer_s32_224 gmlp_ti16_224 resmlp_12_224
poolformer_s12 edgenext_xx_small mobilevit_xxs efficientformer_l1 fastvit_t8 visformer_tiny
crossvit_tiny_240 volo_d1_224 tiny_vit_5m_224 efficientvit_b0 maxvit_rmlp_pico_rw_256
"""
TIMM: Final = tuple(_TIMM.split())
"""A small model of every family that differs from the others in its operators."""


@dataclass
class Table:
    """The file of results: one row for each model, in the order in which they were made."""

    path: Path
    environment: Found
    rows: dict[str, Found] = field(default_factory=dict)
    columns: tuple[str, ...] = COLUMNS
    """Those that a row is to have."""

    @classmethod
    def open(cls, path: Path, environment: Found, columns: tuple[str, ...] = COLUMNS) -> Table:
        """The rows of before, unless they were made with other packages."""
        table = cls(path, environment, columns=columns)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["environment"]["packages"] == environment["packages"]:
                table.rows = {row["model"]: row for row in before["rows"]}
        return table

    def passed(self, model: str, column: str) -> bool:
        """Whether a model went through every stage."""
        return bool(self.rows.get(model, {}).get(column, {}).get("passed"))

    def lacking(self, model: str) -> list[str]:
        """The columns of a row that were not tried; none if its FP32 graph could not be made."""
        row = self.rows.get(model, {})
        if COLUMNS[0] in row and not self.passed(model, COLUMNS[0]):
            return []
        return [column for column in self.columns if column not in row]

    def forget(self, models: Sequence[str]) -> None:
        """Have the rows of these made anew; in the file they stay until the first new cell."""
        for model in models:
            self.rows.pop(model, None)

    def put(self, model: str, column: str, found: Found) -> None:
        """Keep what was found, in the file too."""
        self.rows.setdefault(model, {"model": model})[column] = found
        content = {"environment": self.environment, "rows": list(self.rows.values())}
        write_whole(self.path, json.dumps(content, indent=1) + "\n")


def sweep(table: Table, library: str, models: Sequence[str], run: Run) -> None:
    """Make what rows lack: the first column, and from its FP32 graph the others."""
    for number, model in enumerate(models, start=1):
        lacking = table.lacking(model)
        if COLUMNS[0] not in lacking:
            lacking.insert(0, GRAPH_ALONE)
        with tempfile.TemporaryDirectory() as name:
            target, folder = f"{library}:{model}", Path(name)
            for column in lacking:
                found = run(column, target, folder / column)
                if column != GRAPH_ALONE:
                    table.put(model, column, found)
                story = "passed" if found["passed"] else f"{found['stage']}: {found['reason']}"
                print(f"{number} of {len(models)}: {model} {column} {story}", file=sys.stderr)
                if column in GRAPHS:
                    target = str(folder / column / "bundle" / GRAPHS[column])
                    if not Path(target).exists():
                        break


def missing(table: Table, models: Sequence[str], *, failed: bool) -> list[str]:
    """The models whose rows lack something, or with ``failed`` have something not passed."""
    return [
        model
        for model in models
        if table.lacking(model)
        or (failed and not all(table.passed(model, each) for each in table.columns))
    ]


@dataclass(frozen=True)
class Process:
    """Runs `coverage_one.py` and reads what it leaves, also where it was killed."""

    limit_s: float
    source: str
    photographs: Path
    script: Path = ONE

    def __call__(self, column: str, target: str, folder: Path) -> Found:
        """One export, with how long its process took and what code it ran."""
        began = datetime.now(UTC)
        folder.mkdir(parents=True)
        # -P: this folder's own coverage.py must not hide the package of that name.
        command = [sys.executable, "-P", str(self.script), column, target, str(folder)]
        command.append(str(self.photographs))
        ended = self._wait(command, folder / "log")
        record = folder / "record.json"
        found = {"passed": False, "stage": "start", "reason": ended or _end_of(folder / "log")}
        if record.exists():
            found |= json.loads(record.read_text(encoding="utf-8"))
        if ended:
            found |= {"passed": False, "reason": ended}
        if found["passed"]:
            del found["reason"]  # the log's last line is a library's warning then
        seconds = round((datetime.now(UTC) - began).total_seconds(), 1)
        made = began.isoformat(timespec="seconds")
        return {**found, "process_s": seconds, "made": made, "source": self.source}

    def _wait(self, command: list[str], log: Path) -> str | None:
        """How the process was ended from outside, ``None`` where it ended by itself."""
        with log.open("wb") as output:
            try:
                status = subprocess.run(
                    command, stdout=output, stderr=output, timeout=self.limit_s, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                return f"took longer than {self.limit_s:g} s"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else None


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "ended without a record"


def source_hash(package: Path) -> str:
    """Of deploykit's Python files, in order; twelve digits are enough to tell two apart."""
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def torchvision_models() -> list[str]:
    """All of torchvision's classifiers, those with the fewest multiply-adds first."""
    from torchvision import models

    names = models.list_models(module=models)
    return sorted(names, key=lambda name: models.get_model_weights(name).DEFAULT.meta["_ops"])


def markdown(table: Table) -> str:
    """A line for each model, those with the fewest multiply-adds first, then the counts."""
    head = ["model", "size", "parameters"]
    for column in COLUMNS:
        head += [f"{column}: cosine", "KL", "error", "graph MB", "engine MB", "s"]
        head += ["layers"] if column in EIGHT_BITS else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in sorted(table.rows.values(), key=_work):
        cells = [row["model"], *_size_of(row.get("fp16", {}))]
        for column in COLUMNS:
            cells += _cells(row.get(column, {}), column)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join((*lines, "", *_counts(table), "", *_failures(table)))


def _work(row: Found) -> float:
    return float(row.get("fp16", {}).get("multiply_adds", inf))


def _size_of(found: Found) -> list[str]:
    size, parameters = found.get("image_size"), found.get("parameters")
    return [
        "x".join(map(str, size)) if size else "",
        f"{parameters / 1e6:.1f} M" if parameters else "",
    ]


def _cells(found: Found, column: str) -> list[str]:
    narrow = EIGHT_BITS.get(column)
    empty = [""] * (narrow is not None)
    if not found.get("passed"):
        return [f"**{found.get('stage', 'not run')}**", "", "", "", "", "", *empty]
    figures = found["validation"][narrow or column]
    cells = [
        f"{figures['min_cosine']:.6f}",
        f"{figures['max_kl']:.1e}" if "max_kl" in figures else "",
        f"{figures['max_relative']:.1e}",
        f"{found['onnx_bytes'] / 1e6:.1f}",
        f"{found['engine_bytes'] / 1e6:.1f}",
        f"{found['process_s']:.0f}",
    ]
    if narrow is None:
        return cells
    layers = found.get("layers") or {}
    return [*cells, f"{layers.get(narrow, 0)} of {sum(layers.values())}"]


def _counts(table: Table) -> list[str]:
    counts = []
    for column in COLUMNS:
        tried = [row for row in table.rows.values() if column in row]
        passed = sum(row[column]["passed"] for row in tried)
        counts.append(f"{column.upper()} {passed} of {len(tried)}")
    return counts


def _failures(table: Table) -> list[str]:
    return [
        f"- {row['model']} {column}, {row[column]['stage']}: {row[column]['reason']}"
        for row in table.rows.values()
        for column in COLUMNS
        if column in row and not row[column]["passed"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--only", nargs="+", default=[], help="names, made again in any case")
    parser.add_argument("--skip", nargs="+", default=[], help="names, left for another call")
    others = COLUMNS[1:]
    parser.add_argument("--columns", nargs="*", choices=others, default=others, help="beside fp16")
    parser.add_argument("--failed", action="store_true", help="try again what did not pass")
    parser.add_argument("--out", type=Path, help="the file of results")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each export")
    asked = parser.parse_args()
    names = torchvision_models() if asked.library == "torchvision" else list(TIMM)
    unknown = set(asked.only) - set(names)
    if unknown:
        parser.error(f"not in the list of {asked.library}: {', '.join(sorted(unknown))}")
    path = asked.out or HERE / "results" / f"coverage_{asked.library}.json"
    wanted = tuple(each for each in COLUMNS if each == COLUMNS[0] or each in asked.columns)
    table = Table.open(path, to_plain(describe()), wanted)
    chosen = asked.only or missing(table, names, failed=asked.failed)
    chosen = [name for name in chosen if name not in asked.skip]
    if asked.only or asked.failed:
        table.forget([name for name in chosen if asked.only or not table.lacking(name)])
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder), PHOTOGRAPHS)
        source = source_hash(Path(str(deploykit.__file__)).parent)
        run = Process(asked.limit, source, Path(folder))
        sweep(table, asked.library, chosen, run)
    text = markdown(table)
    write_whole(path.with_suffix(".md"), f"# {asked.library}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()

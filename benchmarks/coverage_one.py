"""One cell of `coverage.py`: a model through every stage of one column, in this process.

``python -P benchmarks/coverage_one.py COLUMN TARGET FOLDER PHOTOGRAPHS``. What was found is in
``FOLDER/record.json``, written again at the start of every stage, so that it also tells where a
process ended that was killed.

``fp32`` is no column of the table: it makes the FP32 graph that the others start from, and no
engine. Columns of eight bits start from an FP32 ``.onnx``. The ranges of ``int8`` and ``fp8`` come
from the photographs that come with deploykit, two of which are held out and judge the result; every
layer has eight bits that can. Where that does not pass, it is done again with the choices that
``export --int8`` and ``--fp8`` make by trials. ``int8-trials`` is what ``export --int8 --calib
PHOTOGRAPHS`` does.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.core.atomic import write_whole
from deploykit.core.errors import DeploykitError, ValidationError
from deploykit.core.precision import Precision
from deploykit.core.progress import SilentProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.core.progress import ProgressTask
    from deploykit.exporting.steps import ExportOptions, ExportReport
    from deploykit.precision.quantization.request import QuantizationRequest

RECORD: Final = "record.json"
COMPILER: Final = "tensorrt-rtx"
COMPUTE_CAPABILITY: Final = "8.9"
FP32_GRAPH: Final = Path("bundle", "reference.onnx")

EVERYTHING: Final = "everything in eight bits"
TRIALS: Final = "chosen by trials"


@dataclass(frozen=True)
class Column:
    """A precision, and how its choices are made: ways that are tried in order."""

    precision: Precision
    placements: tuple[str, ...] = ("",)
    photographs: bool = False
    """Whether the ranges come from the photographs of the call, not from deploykit's samples."""

    compiled: bool = True


COLUMNS: Final = {
    "fp32": Column(Precision.FP32, compiled=False),
    "fp16": Column(Precision.FP16),
    "bf16": Column(Precision.BF16),
    "int8": Column(Precision.INT8, (EVERYTHING, TRIALS)),
    "int8-trials": Column(Precision.INT8, (TRIALS,), photographs=True),
    "fp8": Column(Precision.FP8, (EVERYTHING, TRIALS)),
}

SHOWN_REASONS: Final = 5


class Record(SilentProgress):
    """What is known so far; as a `Progress` it is told of every stage that begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.perf_counter()
        self.found: dict[str, Any] = {"passed": False}

    @contextmanager
    def step(self, name: str) -> Iterator[ProgressTask]:
        """Begin a stage."""
        self.note(stage=name)
        with super().step(name) as task:
            yield task

    def note(self, **found: object) -> None:
        """Add to what is known, with the time and the memory until now."""
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = round(time.perf_counter() - self._began, 1)
        self.found |= {**found, "seconds": seconds, "peak_mib": round(peak_kib / 1024)}
        write_whole(self._path, json.dumps(self.found))


@dataclass(frozen=True)
class Call:
    """What is asked of this process."""

    column: Column
    target: str
    folder: Path
    photographs: Path


def attempt(call: Call, record: Record) -> None:
    """Note what becomes of the target; errors of any kind are what is looked for."""
    try:
        report = _exported(call, record)
        if call.column.compiled:
            record.note(**outcome(report), **_counts(call.folder / "bundle"))
        record.note(passed=True)
    except DeploykitError as exc:
        record.note(reason=f"{type(exc).__name__}: {exc}")
    except Exception as exc:  # a fault of deploykit, which the table has to show
        record.note(reason=f"unexpected {type(exc).__name__}: {exc}")


def _exported(call: Call, record: Record) -> ExportReport:
    from deploykit.exporting.steps import export_bundle

    *before, last = call.column.placements
    for placement in before:
        record.note(placement=placement)
        try:
            return export_bundle(call.target, _options(call, placement), record)
        except ValidationError as exc:
            record.note(first_reason=str(exc))
    record.note(placement=last)
    return export_bundle(call.target, _options(call, last), record)


def _options(call: Call, placement: str) -> ExportOptions:
    from deploykit.exporting.steps import ExportOptions

    is_compiled = call.column.compiled
    return ExportOptions(
        precision=call.column.precision,
        backend=COMPILER if is_compiled else "none",
        compute_capabilities=(COMPUTE_CAPABILITY,) if is_compiled else (),
        output=call.folder / "bundle",
        quantization=_request(call, placement) if placement else None,
    )


def _request(call: Call, placement: str) -> QuantizationRequest:
    from deploykit.images import open_images, sample_images
    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.precision.quantization.choice import Int8Choices
    from deploykit.precision.quantization.request import QuantizationRequest

    source = open_images(call.photographs) if call.column.photographs else sample_images()
    everything = Int8Choices("max", "int8", "int8", "int8", "off", "off", "nearest")
    return QuantizationRequest(
        CalibrationOptions(source, table=call.folder / "calibration.json"),
        everything if placement == EVERYTHING else Int8Choices(),
    )


def outcome(report: ExportReport) -> dict[str, Any]:
    """The figures of an export that passed every stage."""
    manifest = report.bundle.manifest
    (engine,) = manifest.engines
    conversion = dict(manifest.conversion)
    kept = conversion.pop("kept_fp32", None) or conversion.pop("kept", {})
    return {
        "stages": {time.name: round(time.seconds, 1) for time in report.stages},
        "image_size": list(manifest.model["image_size"]),
        "validation": {str(each.precision): worst(each.to_dict()) for each in report.validation},
        "onnx_bytes": report.bundle.model_path.stat().st_size,
        "engine_bytes": engine.bytes,
        "conversion": {
            key: value for key, value in conversion.items() if not isinstance(value, str | dict)
        },
        "exporter": conversion.get("exporter"),
        "layers": conversion.get("layers"),
        "kept": dict(Counter(kept.values()).most_common(SHOWN_REASONS)),
    }


def worst(report: dict[str, Any]) -> dict[str, float]:
    """Of all batches: the largest errors, the smallest cosine, the share of equal decisions.

    The last, and the divergence, of outputs that are known to be of classes alone.
    """
    batches = report["batches"]
    count = sum(batch["batch"] for batch in batches)
    found = {
        "max_abs": max(batch["max_abs"] for batch in batches),
        "max_relative": max(batch["max_relative"] for batch in batches),
        "min_cosine": min(batch["min_cosine"] for batch in batches),
        "images": count,
    }
    if all("agreement" in batch for batch in batches):
        found["max_kl"] = max(batch["max_kl"] for batch in batches)
        found["agreement"] = sum(batch["agreement"] * batch["batch"] for batch in batches) / count
    return found


def _counts(bundle: Path) -> dict[str, Any]:
    """Parameters and multiply-adds of the FP32 graph, where they can be counted."""
    from deploykit import graph

    reference = bundle / FP32_GRAPH.name
    try:
        summary = graph.describe_layers(graph.read_model(reference), reference.name, 1)
    except DeploykitError:
        return {}
    return {"parameters": summary.parameters, "multiply_adds": summary.multiply_adds}


def main() -> None:
    column, target, place, photographs = sys.argv[1:]
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    call = Call(COLUMNS[column], target, folder, Path(photographs))
    attempt(call, Record(folder / RECORD))


if __name__ == "__main__":
    main()

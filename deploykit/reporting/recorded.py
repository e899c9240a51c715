"""Facts of a report that a bundle's own files hold: sizes, ranges, engines, the frontier."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.manifest import CALIBRATION, MANIFEST, doubts_of
from deploykit.core.byte_sizes import byte_size
from deploykit.core.errors import DeploykitError
from deploykit.heads import worst_of
from deploykit.precision.budget.frontier import BUDGET, read_frontier
from deploykit.precision.calibration.table import read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.bundle.manifest import Bundle, Manifest
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.specs import PixelInput
    from deploykit.precision.budget.frontier import Frontier, Point


def record(bundle: Bundle) -> dict[str, Any]:
    """Plain data of what the manifest and the calibration table say."""
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "folder": str(bundle.folder),
        "precision": str(manifest.precision),
        "facts": [[label, text] for label, text in _facts(manifest).items() if text],
        "files": _files(bundle),
        "validation": [_validated(each) for each in manifest.validation],
        "doubts": doubts_of(manifest.validation),
        "ranges": _ranges(bundle),
        "quantized": _quantized(manifest.conversion),
        "engines": list(map(_engine, manifest.engines)),
        "frontier": _frontier(manifest.conversion),
    }


def _facts(manifest: Manifest) -> dict[str, str]:
    weights, calibration = manifest.weights, manifest.calibration or {}
    preprocessing = manifest.preprocessing
    images = calibration.get("images")
    packages = ", ".join(f"{name} {version}" for name, version in manifest.packages.items())
    return {
        "Network": str(manifest.model.get("name", "")),
        "Title": str(manifest.model.get("title") or ""),
        "Weights": str(weights.get("source") or ""),
        "Weights trained": _yes(weights.get("trained")),
        "Head": f"{manifest.head.kind}, output {manifest.head.output}",
        "Image": " x ".join(map(str, preprocessing.crop)) + " px",
        "Resized to": "" if preprocessing.resize is None else f"{preprocessing.resize} px",
        "Channels": preprocessing.channel_order,
        "Graph takes": _taken(preprocessing.pixels),
        "Mean": _numbers(preprocessing.mean),
        "Deviation": _numbers(preprocessing.std),
        "Opset": str(manifest.onnx.opset),
        "Exported by": str(manifest.conversion.get("exporter") or ""),
        "Calibrated on": f"{images} images of {calibration.get('source')}" if images else "",
        "Ranges by": str(calibration.get("method") or ""),
        "Made": manifest.created,
        "Packages": packages,
    }


def _yes(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, "") if isinstance(value, bool) else ""


def _taken(pixels: PixelInput | None) -> str:
    """How images are given to the graph; nothing where they are prepared."""
    if pixels is None:
        return ""
    return f"{pixels.dtype}, {pixels.layout.upper()}, {pixels.order}: it normalises them itself"


def _numbers(values: object) -> str:
    return ", ".join(f"{each:g}" for each in values) if isinstance(values, tuple) else str(values)


def _files(bundle: Bundle) -> list[dict[str, Any]]:
    """Each file that is there, the largest first."""
    found = []
    for name in (*bundle.files.expected, MANIFEST):
        with suppress(OSError):  # documented as safe to delete before shipping
            found.append({"name": name, "bytes": (bundle.folder / name).stat().st_size})
    return sorted(found, key=lambda file: -file["bytes"])


def _validated(report: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison of the export: who was compared, and the worst of its batches."""
    batches = report.get("batches", ())
    worst = worst_of(batches) if batches else {"batch": 0}
    figures = {name: worst[name] for name in _LIMITS if worst.get(name) is not None}
    return {
        "candidate": str(report.get("candidate", "")),
        "reference": str(report.get("reference", "")),
        "passed": bool(report.get("passed")),
        "images": worst["batch"],
        "limits": {name: report.get("limits", {}).get(_LIMITS[name]) for name in figures},
        **figures,
    }


_LIMITS: Final = {
    "max_relative": "max_relative",
    "min_cosine": "min_cosine",
    "agreement": "min_agreement",
}


def _ranges(bundle: Bundle) -> dict[str, Any] | None:
    """The range of each tensor by the method in use and by the others; ``None`` without a table."""
    if CALIBRATION not in bundle.manifest.files:
        return None
    calibration = bundle.manifest.calibration or {}
    method = str(calibration.get("method"))
    try:
        table = read_table(bundle.files.read(CALIBRATION).decode(), CALIBRATION)
    except (DeploykitError, UnicodeDecodeError) as exc:
        return {"reason": str(exc).splitlines()[0], "tensors": []}
    tensors = [
        {"name": name, "used": ranges.get(method, ranges.get("max")), **ranges}
        for name, ranges in table.amax.items()
    ]
    shapes = {name: list(counts) for name, counts in table.half_octaves.items()}
    return {"method": method, "images": table.images, "tensors": tensors, "shapes": shapes}


def _quantized(conversion: Mapping[str, Any]) -> dict[str, Any]:
    """The noise that export wrote down, of the worst tensors, in dB."""
    kinds = {"activations": "activation_sqnr_db", "weights": "weight_sqnr_db"}
    return {
        name: sorted(conversion[key].items(), key=lambda pair: pair[1])
        for name, key in kinds.items()
        if isinstance(conversion.get(key), dict) and conversion[key]
    }


def _engine(engine: EngineRecord) -> dict[str, Any]:
    census = ", ".join(f"{count} {kind}" for kind, count in engine.precision_census.items())
    profile = engine.profile
    return {
        "file": engine.file,
        "facts": [
            ["Compiler", f"{engine.compiler} {engine.compiler_version}"],
            ["Proven precision", str(engine.precision)],
            ["Layers", census],
            ["For compute capability", ", ".join(engine.compute_capabilities)],
            ["Batch", f"{profile.min_batch} to {profile.max_batch}, best {profile.opt_batch}"],
            ["Size", byte_size(engine.bytes)],
            ["Built in", f"{engine.build_s:.3g} s"],
            ["Ran on", engine.ran_on or "no GPU yet: it was compiled, not run"],
            ["Warnings", "; ".join(engine.warnings) or "none"],
        ],
    }


def _frontier(conversion: Mapping[str, Any]) -> dict[str, Any] | None:
    kept = conversion.get(BUDGET)
    found = read_frontier(kept) if isinstance(kept, dict) else None
    if found is None:
        return None
    return {
        "max_drop": found.max_drop,
        "gpu": found.gpu,
        "batch": found.batch,
        "chosen": found.chosen,
        "measure": next((p.loss.measure for p in found.points if p.loss is not None), "answers"),
        "points": [_point(found, point) for point in found.points],
    }


def _point(frontier: Frontier, point: Point) -> dict[str, Any]:
    layers: dict[str, int] = {}
    for group, wanted in zip(frontier.groups, point.formats, strict=True):
        layers[str(wanted)] = layers.get(str(wanted), 0) + len(group)
    return {
        "ms": point.ms,
        "loss": 0.0 if point.loss is None else point.loss.share,
        "upper": point.upper,
        "images": None if point.loss is None else point.loss.images,
        "layers": layers,
    }

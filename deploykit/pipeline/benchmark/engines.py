"""The engine of a cell: the bundle's own, or one compiled for exactly this batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.artifacts import EngineRecord, sha256_of
from deploykit.backends.trt.builder import CompileOptions
from deploykit.bundle import Bundle
from deploykit.errors import EngineIncompatibleError
from deploykit.pipeline.benchmark.prepared import BuiltEngine
from deploykit.runtime.choice import cache_of, incompatible, judge_engines
from deploykit.sizes import IMAGE_AXES, SizeRange
from deploykit.specs import ShapeProfile
from deploykit.stages.build import build_engine
from deploykit.staging import translated_write_errors, write_whole

if TYPE_CHECKING:
    from deploykit.artifacts import OnnxArtifact
    from deploykit.pipeline.benchmark.cells import Cell
    from deploykit.pipeline.benchmark.prepared import Graph
    from deploykit.runtime.choice import Fit, Machine
    from deploykit.specs import TensorSpec

RECORD: Final = "engine.json"


def prepare_engine(cell: Cell, graph: Graph, work: Path, machine: Machine) -> BuiltEngine:
    """The engine that the cell runs.

    A bundle that the user gave is measured with the engine that it would run in production. For
    anything else one is compiled whose profile is the cell's batch alone, which is what the
    compiler can do best; one that was compiled before from the same graph is used again.

    Raises:
        EngineIncompatibleError: the user's bundle has no engine of this compiler that runs here
            with this batch.
        DeploykitError: the compiler refuses the graph.
    """
    if graph.own and graph.folder is not None:
        return _own_engine(cell, Bundle.open(Path(graph.folder)), machine)
    compiler = machine.load_compiler(cell.backend)
    folder = work / "engines" / f"{cell.model}-{cell.precision}-b{cell.batch}-{compiler.name}"
    record = _usable(folder, graph.sha256, compiler.version, machine)
    if record is None:
        record = _build(cell, graph, folder, machine)
    return _built(record, folder / record.file, folder / f"{record.file}.cache")


def _own_engine(cell: Cell, bundle: Bundle, machine: Machine) -> BuiltEngine:
    records = [each for each in bundle.manifest.engines if each.compiler == cell.backend]
    fits, misfits = judge_engines(bundle, records, machine)
    if not fits:
        raise incompatible(bundle, machine, misfits)
    for fit in fits:
        if fit.record.profile.min_batch <= cell.batch <= fit.record.profile.max_batch:
            bundle.require_unchanged(fit.record.file)
            return _of_bundle(bundle, fit, machine)
    profile = fits[0].record.profile
    raise EngineIncompatibleError(
        f"{fits[0].record.file} takes batches of {profile.min_batch} to {profile.max_batch}, "
        f"not {cell.batch}\nmeasure one of those, or build the bundle's engine for more"
    )


def _of_bundle(bundle: Bundle, fit: Fit, machine: Machine) -> BuiltEngine:
    cache = cache_of(bundle, fit, machine.gpus[0])
    return _built(fit.record, bundle.folder / fit.record.file, cache)


def _build(cell: Cell, graph: Graph, folder: Path, machine: Machine) -> EngineRecord:
    compiler = machine.load_compiler(cell.backend)
    own = (machine.gpus[0].compute_capability,) if compiler.is_portable else ()
    artifact = _artifact(graph)
    profile = _profile(cell.batch, artifact.inputs[0], graph.image)
    options = CompileOptions(profile, compute_capabilities=own)
    with translated_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = build_engine(artifact, folder, compiler, options, allowed_fp32=_kept_heavy(graph))
    body = {"onnx_sha256": graph.sha256, "record": record.to_dict()}
    write_whole(folder / RECORD, json.dumps(body, indent=2) + "\n")
    return record


def _profile(batch: int, spec: TensorSpec, image: tuple[int, int] | None) -> ShapeProfile:
    """This batch alone, and of open images the size that the bundle prepares alone."""
    open_sizes = {
        label: SizeRange(size, size, size)
        for (axis, label), size in zip(IMAGE_AXES.items(), image or (), strict=False)
        if isinstance(spec.shape[axis], str)
    }
    return ShapeProfile(batch, batch, batch, **open_sizes)


def _artifact(graph: Graph) -> OnnxArtifact:
    if graph.folder is not None:
        return Bundle.open(Path(graph.folder)).manifest.onnx
    from deploykit import onnx_graph

    return onnx_graph.read_artifact(Path(graph.path))


def _kept_heavy(graph: Graph) -> int:
    if graph.folder is None:
        return 0
    return int(Bundle.open(Path(graph.folder)).manifest.conversion.get("kept_heavy", 0))


def _usable(folder: Path, onnx_sha256: str, version: str, machine: Machine) -> EngineRecord | None:
    """What was compiled before; ``None`` where anything at all is not as it has to be."""
    try:
        body = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record = EngineRecord.from_dict(body["record"])
        same = body["onnx_sha256"] == onnx_sha256 and record.compiler_version == version
        fits = machine.gpus[0].compute_capability in record.compute_capabilities
        if same and fits and sha256_of(folder / record.file) == record.sha256:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _built(record: EngineRecord, path: Path, cache: Path | None) -> BuiltEngine:
    return BuiltEngine(
        path=str(path),
        sha256=record.sha256,
        compiler=record.compiler,
        compiler_version=record.compiler_version,
        precision=record.precision,
        profile=record.profile,
        cache=None if cache is None else str(cache),
        notes=record.warnings,
    )

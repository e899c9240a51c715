"""Preparation of a cell: the graph from a target, its physical limit, and the engine."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from deploykit.backends import CompileOptions
from deploykit.backends._registry import graph_judge
from deploykit.benchmarking.matrix.cells import BuiltEngine, CellGraph
from deploykit.bundle.manifest import Bundle
from deploykit.bundle.reading import read_bundle
from deploykit.core import environment
from deploykit.core.artifacts import (
    ENGINE_SUFFIX,
    EngineRecord,
    made_of,
    sha256_of,
    sha256_of_bytes,
)
from deploykit.core.atomic import translated_write_errors, write_whole
from deploykit.core.choices import DefinitionChoices
from deploykit.core.errors import BundleError, DataError, EngineIncompatibleError, UsageError
from deploykit.core.precision import RANDOM
from deploykit.core.serialization import Source, engine_to_plain, from_plain, parse_json
from deploykit.core.sizes import (
    BATCH_AXIS,
    IMAGE_AXES,
    IMAGE_DIMS,
    ShapeProfile,
    SizeRange,
    require_sizes,
)
from deploykit.costs.estimates import limit_and_estimate
from deploykit.exporting.engines import build_engine
from deploykit.exporting.steps import ExportOptions, export_bundle
from deploykit.heads import head_named
from deploykit.precision.calibration.data import CalibrationOptions
from deploykit.precision.quantization.choice import Int8Choices
from deploykit.precision.quantization.request import QuantizationRequest
from deploykit.runtime.choice import cache_of, incompatible, rank_engines
from deploykit.runtime.inputs import BatchLimits
from deploykit.sources.definition import SourceOptions
from deploykit.sources.image_sizes import preferred_size
from deploykit.sources.targets import (
    Kind,
    digest_of,
    find_definition,
    kind_of,
    name_of,
    refuse_definition_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.benchmarking.matrix.cells import Cell
    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.core.precision import Precision
    from deploykit.core.specs import TensorSpec
    from deploykit.costs.limits import Limit
    from deploykit.costs.network import NetworkCost
    from deploykit.costs.peaks import DevicePeak
    from deploykit.graph import LoadedGraph
    from deploykit.runtime.choice import Machine


NOISE_IMAGES: Final = 8
_NOTHING_CHOSEN: Final = DefinitionChoices()
_NO_SIZES: Final = ShapeProfile()


def exported(
    target: str,
    precision: Precision,
    work: Path,
    digest: str | None,
    choices: DefinitionChoices = _NOTHING_CHOSEN,
    sizes: ShapeProfile = _NO_SIZES,
) -> Bundle:
    """The bundle of ``target`` in ``work``, without an engine; ``digest`` is that of its files.

    An export of before is used again if the target, what was said of its head and its sizes, and
    the installed packages are the same.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    place = work / f"{name_of(target)}-{precision}{_named(choices)}{_sized(sizes)}"
    known = _usable_bundle(place, digest)
    if known is not None:
        return known
    table = work / f"{place.name}.calibration.npz"
    options = ExportOptions(
        precision=precision,
        backend="none",
        profile=sizes,
        source=SourceOptions(choices=choices),
        output=place,
        replace=True,  # bench's own folder, for this use alone
        quantization=_noise(table) if precision.facts.needs_calibration else None,
    )
    return export_bundle(target, options).bundle


def _named(choices: DefinitionChoices) -> str:
    """The end of a bundle's name that tells exports of one target by other heads apart."""
    said = (choices.head, choices.head_output)
    if said == (None, None):
        return ""
    return f"-head-{sha256_of_bytes(json.dumps(said).encode())[:8]}"


def _sized(sizes: ShapeProfile) -> str:
    """The same for other heights and widths, which the file leaves open."""
    named = ("h", sizes.height), ("w", sizes.width)
    return "".join(f"-{name}{str(size).replace(',', '-')}" for name, size in named if size)


def _noise(table: Path) -> QuantizationRequest:
    """Ranges that cost nothing: every layer in INT8 that can be, nothing tried out."""
    int8_choices = Int8Choices("max", "int8", "int8", "int8", "off", weight_rounding="nearest")
    return QuantizationRequest(CalibrationOptions(RANDOM, NOISE_IMAGES, 0, table), int8_choices)


def _usable_bundle(place: Path, digest: str | None) -> Bundle | None:
    """The bundle of an earlier export, unless it was made from or by something else."""
    try:
        bundle = Bundle.open(place)
        bundle.require_unchanged(bundle.model_path.name)
    except BundleError:  # nothing there, or damaged: the export replaces it, or says why not
        return None
    here = environment.describe()
    same_tools = bundle.manifest.packages == {"deploykit": here.deploykit, **here.packages}
    manifest = bundle.manifest
    source = manifest.model.get("source_sha256")
    both = made_of(str(source), manifest.weights.get("sha256"))
    sources = (*manifest.onnx.parents, source, both)
    same_source = digest is None or digest in sources
    return bundle if same_tools and same_source else None


UNCOUNTED: Final = "no physical limit: counting a graph needs the package onnx"
NOISE: Final = "INT8 ranges from noise: the speed counts, the answers mean nothing"


def own_precisions(
    targets: Iterable[str],
    choices: DefinitionChoices = _NOTHING_CHOSEN,
    sizes: ShapeProfile = _NO_SIZES,
) -> dict[str, Precision]:
    """The targets that have their precision already: bundles, and converted ``.onnx`` files.

    ``choices`` are said of the others, which are exported to be measured. ``sizes`` has the height
    and width that files leave open.

    Raises:
        UsageError: a target has no use for ``choices`` or ``sizes``.
        MissingDependencyError: the package that a definition comes from is not installed.
        UnknownNameError: a target is neither a file, nor a bundle, nor a definition.
        ModelFileError: a file cannot be read.
        BundleError: a folder is no bundle.
    """
    found: dict[str, Precision] = {}
    for target in targets:
        kind = kind_of(target)
        if kind is not Kind.ONNX:
            _refuse_sizes(target, sizes)
        if kind is Kind.BUNDLE:
            refuse_definition_options(target, choices)
            found[target] = Bundle.open(Path(target)).manifest.precision
        elif kind is Kind.ONNX:
            from deploykit.graph import read_artifact

            precision = read_artifact(Path(target)).precision
            if not precision.facts.is_source:
                _refuse_head(target, precision, choices)
                found[target] = precision
        else:
            find_definition(target, choices)  # says what names there are
    if choices.head is not None:
        head_named(choices.head)
    return found


def _refuse_sizes(target: str, sizes: ShapeProfile) -> None:
    if sizes.has_image_sizes:
        raise UsageError(
            f"{target} has its image size: --height and --width are for .onnx files that leave it "
            "open\nleave them out, or measure it apart"
        )


def _refuse_head(target: str, precision: Precision, choices: DefinitionChoices) -> None:
    if choices.head is not None or choices.head_output is not None:
        raise UsageError(
            f"{target} is {precision} already: it is measured as it is, and nothing of it is "
            "compared\n--head and --head-output are for what is converted and validated: leave "
            "them out"
        )


def prepare_graph(  # noqa: PLR0913 - what bench is asked for, by keyword
    target: str,
    precision: Precision,
    work: Path,
    *,
    batches: Iterable[int],
    peaks: Mapping[str, DevicePeak],
    choices: DefinitionChoices = _NOTHING_CHOSEN,
    sizes: ShapeProfile = _NO_SIZES,
) -> CellGraph:
    """The verified graph of ``target`` in ``precision``, exported into ``work`` where needed.

    ``choices`` has the head by which the export is validated, and its output; ``sizes`` the height
    and width that an ``.onnx`` leaves open, whose preferred ones are measured.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    kind, digest = kind_of(target), None
    if kind is Kind.BUNDLE:
        return read_bundle(Path(target), lambda bundle: _own_graph(bundle, batches, peaks))
    if kind is Kind.ONNX:
        from deploykit.graph import read_graph

        read = read_graph(Path(target))
        artifact = read.artifact
        digest = artifact.sha256
        image = _image_size(target, artifact, sizes)
        if not artifact.precision.facts.is_source:
            artifact, notes = _as_read(target, read, work)
            costs = _Costs.of(artifact.path, batches, peaks, image)
            made = _graph(artifact, None, own=False, costs=costs)
            return replace(made, image=image, notes=(*notes, *made.notes))
        read.release()  # the export reads it again
    else:
        digest = digest_of(target)

    bundle = exported(target, precision, work, digest, choices, sizes)
    return _graph(bundle.manifest.onnx, bundle, own=False, costs=_costs(bundle, batches, peaks))


def _image_size(target: str, artifact: OnnxArtifact, sizes: ShapeProfile) -> tuple[int, int] | None:
    """Height and width where a file leaves one of them open; ``None`` where it says both.

    Raises:
        UsageError: one is open and ``sizes`` does not have it, or is fixed and it does.
    """
    images = [spec for spec in artifact.inputs if len(spec.shape) == IMAGE_DIMS]
    for spec in images:
        require_sizes(target, spec.shape, sizes)
        if any(isinstance(spec.shape[axis], str) for axis in IMAGE_AXES):
            return preferred_size(target, spec, sizes)
    if sizes.has_image_sizes and not images:
        _refuse_sizes(target, sizes)
    return None


def _own_graph(
    bundle: Bundle, batches: Iterable[int], peaks: Mapping[str, DevicePeak]
) -> CellGraph:
    bundle.require_unchanged(bundle.model_path.name)
    return _graph(bundle.manifest.onnx, bundle, own=True, costs=_costs(bundle, batches, peaks))


def _as_read(target: str, read: LoadedGraph, work: Path) -> tuple[OnnxArtifact, tuple[str, ...]]:
    """A converted file for runtimes, and notes: itself, or a copy where they would not run it.

    Its batch may be 0 or -1, which a runtime or a compiler takes literally.
    """
    from deploykit.graph import mended_of, write_model

    artifact, mended = read.artifact, mended_of(read.model)
    if not mended.changed:
        return artifact, ()
    path = work / f"{name_of(target)}-{artifact.precision}.onnx"
    with translated_write_errors(path):
        work.mkdir(parents=True, exist_ok=True)
        parents = (artifact.sha256, *artifact.parents)
        return write_model(read.model, path, artifact.precision, parents), mended.notes


def _graph(artifact: OnnxArtifact, bundle: Bundle | None, *, own: bool, costs: _Costs) -> CellGraph:
    return CellGraph(
        path=str(artifact.path),
        sha256=artifact.sha256,
        precision=artifact.precision,
        computes=costs.precision,
        folder=None if bundle is None else str(bundle.folder),
        own=own,
        limits=costs.limits,
        notes=(*_notes(bundle), *costs.notes),
        image=None if bundle is None else bundle.manifest.preprocessing.crop,
    )


@dataclass(frozen=True)
class _Costs:
    """What counting gives: the precision of most multiply-adds, limits by device and batch."""

    precision: Precision | None = None
    limits: Mapping[str, Mapping[int, Limit]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        path: Path,
        batches: Iterable[int],
        peaks: Mapping[str, DevicePeak],
        image: tuple[int, int] | None = None,
    ) -> Self:
        from deploykit.graph import read_model
        from deploykit.graph.kernel_costs import network_cost
        from deploykit.graph.shapes import fix_image_size

        model = read_model(path)
        if image is not None:
            fix_image_size(model, image)
        costs: dict[int, NetworkCost] = {}
        for batch in batches:
            with suppress(UsageError):  # a fixed batch, or a shape that is open
                costs[batch] = network_cost(model, batch, graph_judge().run_once)
        if not costs:
            return cls()
        counts = next(iter(costs.values())).multiply_adds_in
        limits = {
            device: {batch: limit_and_estimate(cost, peak) for batch, cost in costs.items()}
            for device, peak in peaks.items()
        }
        return cls(max(counts, key=lambda each: counts[each], default=None), limits)


def _costs(bundle: Bundle, batches: Iterable[int], peaks: Mapping[str, DevicePeak]) -> _Costs:
    """On a target a bundle is measured without the tools that could count its graph."""
    if find_spec("onnx_ir") is None:
        return _Costs(notes=(UNCOUNTED,))
    return _Costs.of(bundle.model_path, batches, peaks, bundle.manifest.preprocessing.crop)


def _notes(bundle: Bundle | None) -> tuple[str, ...]:
    calibration = None if bundle is None else bundle.manifest.calibration
    return (NOISE,) if calibration and calibration.get("source") == "random noise" else ()


RECORD: Final = "engine.json"


def prepare_engine(cell: Cell, graph: CellGraph, work: Path, machine: Machine) -> BuiltEngine:
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
        return read_bundle(Path(graph.folder), lambda bundle: _own_engine(cell, bundle, machine))
    compiler = machine.load_compiler(cell.backend)
    folder = work / "engines" / f"{cell.model}-{cell.precision}-b{cell.batch}-{compiler.name}"
    record = _usable(folder, graph.sha256, compiler.version, machine)
    if record is None:
        record = _build(cell, graph, folder, machine)
    return _built(record, folder / record.file, folder / f"{record.file}.cache")


def _own_engine(cell: Cell, bundle: Bundle, machine: Machine) -> BuiltEngine:
    records = [each for each in bundle.manifest.engines if each.compiler == cell.backend]
    fits, misfits = rank_engines(bundle, records, machine)
    if not fits:
        raise incompatible(bundle, machine, misfits)
    image = bundle.manifest.preprocessing.crop
    sizes = {BATCH_AXIS: cell.batch, **dict(zip(IMAGE_AXES, image, strict=True))}
    for fit in fits:
        if fit.record.profile.takes(sizes):
            bundle.require_unchanged(fit.record.file)
            cache = cache_of(bundle, fit, machine.gpus[0])
            return _built(fit.record, bundle.folder / fit.record.file, cache)
    limits = BatchLimits.of_engine(fits[0].record.profile, image)
    raise EngineIncompatibleError(
        f"{fits[0].record.file} takes batches of {limits.words}, "
        f"not {cell.batch}\nmeasure one of those, or build the bundle's engine for more"
    )


def _build(cell: Cell, graph: CellGraph, folder: Path, machine: Machine) -> EngineRecord:
    compiler = machine.load_compiler(cell.backend)
    own = (machine.gpus[0].compute_capability,) if compiler.is_portable else ()
    artifact = _artifact(graph)
    profile = _profile(cell.batch, artifact.inputs[0], graph.image)
    options = CompileOptions(profile, compute_capabilities=own)
    with translated_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = build_engine(artifact, folder, compiler, options, allowed_fp32=_kept_heavy(graph))
    body = {"onnx_sha256": graph.sha256, "record": engine_to_plain(record)}
    write_whole(folder / RECORD, json.dumps(body, indent=2) + "\n")
    for other in folder.glob(f"*{ENGINE_SUFFIX}*"):  # of before, with kernels cached for them
        if not other.name.startswith(record.file):
            other.unlink(missing_ok=True)
    return record


def _profile(batch: int, spec: TensorSpec, image: tuple[int, int] | None) -> ShapeProfile:
    """This batch alone, and of open images the size that the bundle prepares alone."""
    height, width = (
        SizeRange(size, size, size) if size and isinstance(spec.shape[axis], str) else None
        for axis, size in zip(IMAGE_AXES, image or (None, None), strict=True)
    )
    return ShapeProfile(batch, batch, batch, height, width)


def _artifact(graph: CellGraph) -> OnnxArtifact:
    if graph.folder is not None:
        return Bundle.open(Path(graph.folder)).manifest.onnx
    from deploykit.graph import read_artifact

    return read_artifact(Path(graph.path))


def _kept_heavy(graph: CellGraph) -> int:
    if graph.folder is None:
        return 0
    return int(Bundle.open(Path(graph.folder)).manifest.conversion.get("kept_heavy", 0))


def _usable(folder: Path, onnx_sha256: str, version: str, machine: Machine) -> EngineRecord | None:
    """What was compiled before; ``None`` where anything at all is not as it has to be."""
    source = Source(str(folder / RECORD))
    try:
        body = parse_json((folder / RECORD).read_bytes(), source)
        record = from_plain(EngineRecord, body["record"], source)
        same = body["onnx_sha256"] == onnx_sha256 and record.compiler_version == version
        fits = machine.gpus[0].compute_capability in record.compute_capabilities
        if same and fits and sha256_of(folder / record.file) == record.sha256:
            return record
    except (OSError, DataError, KeyError, TypeError):
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

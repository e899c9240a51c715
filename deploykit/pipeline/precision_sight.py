"""What of a target is INT8, FP16 or FP32, or would be after an export, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from deploykit import onnx_graph
from deploykit.bundle import REFERENCE
from deploykit.onnx_graph.half import FP16_MAX
from deploykit.onnx_graph.image_size import fix_image_size
from deploykit.onnx_graph.precision import Known
from deploykit.onnx_graph.precision_plan import planned_fp16, planned_int8
from deploykit.onnx_graph.precision_reading import read_precision
from deploykit.onnx_graph.qdq import QdqPolicy
from deploykit.pipeline.int8 import require_opset
from deploykit.pipeline.int8_choice import LAYERS_SHARE
from deploykit.pipeline.int8_images import affordable_probes
from deploykit.pipeline.journal import Journal
from deploykit.pipeline.precision_sources import open_given, prepare_fp32
from deploykit.specs import Precision, Progress, SilentProgress
from deploykit.stages.fp16 import HEADROOM, measure_magnitudes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.onnx_graph.precision import GraphPrecision
    from deploykit.onnx_graph.precision_plan import Planned
    from deploykit.pipeline.precision_sources import Fp32Graph, GivenGraph, SightOptions


@dataclass(frozen=True)
class Magnitudes:
    """The largest activation of the FP32 graph, on how many images, and where FP16 is left.

    A value beyond ``limit`` stays FP32.
    """

    images: int
    value: str
    largest: float
    limit: float


@dataclass(frozen=True)
class PrecisionSight:
    """The nodes of a graph that is there, or of one that an export would make.

    ``source`` is what other commands take in place of ``target``; ``has_reference`` says if the
    FP32 graph lies with it. ``magnitudes`` belong to a plan.
    """

    target: str
    source: str
    precision: Precision
    graph: GraphPrecision
    magnitudes: Magnitudes | None
    notes: tuple[str, ...]
    has_reference: bool = False

    @property
    def planned(self) -> bool:
        """Whether no file has this graph."""
        return self.magnitudes is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "precision": str(self.precision),
            "planned": self.planned,
            **self.graph.to_dict(),
            "magnitudes": None if self.magnitudes is None else asdict(self.magnitudes),
            "notes": list(self.notes),
        }


def see_precision(
    target: str, options: SightOptions, progress: Progress | None = None
) -> PrecisionSight:
    """Read the precision of each node of ``target``, or make the plan of an export and read that.

    A plan needs the FP32 graph, verified as an export does it, and its activations on images.
    INT8 is planned by the rules; what an export tries out on images is noted as open.

    Raises:
        UsageError: options that have no meaning for ``target``.
        DeploykitError: the error of the stage that failed.
    """
    journal = Journal(progress or SilentProgress())
    given = open_given(target, options)
    if given is None or given.artifact.precision is Precision.FP32:
        return _plan(target, given, options, journal)
    return _read(target, given, options, journal)


def _read(
    target: str, given: GivenGraph, options: SightOptions, journal: Journal
) -> PrecisionSight:
    precision = given.artifact.precision
    with journal.stage("read"):
        model = onnx_graph.read_model(given.artifact.path)
        onnx_graph.tidy(model, rename=False)
        size = given.image_size(options.source.choices.image_size)
        if size is not None:
            fix_image_size(model, size)
        graph = read_precision(model, precision, options.batch, Known(given.reasons))
    notes: tuple[str, ...] = ()
    if graph.integer_ops:
        found = ", ".join(f"{count} {kind}" for kind, count in graph.integer_ops.items())
        notes = (f"{found}: TensorRT takes no such operator, only Q/DQ pairs",)
    kept = given.bundle is not None and REFERENCE in given.bundle.manifest.files
    return PrecisionSight(target, target, precision, graph, None, notes, kept)


def _plan(
    target: str, given: GivenGraph | None, options: SightOptions, journal: Journal
) -> PrecisionSight:
    precision = options.planned
    with TemporaryDirectory() as folder:
        source = prepare_fp32(target, given, Path(folder), options, journal)
        model = onnx_graph.read_model(source.artifact.path)
        onnx_graph.tidy(model, rename=False)
        with journal.stage("magnitudes") as task:
            open_runner = source.runners.measuring
            amax = measure_magnitudes(model, source.batches, open_runner=open_runner, task=task)
        with journal.stage(f"plan {precision}"):
            planned = _planned(model, source, amax, options)
            fix_image_size(planned.model, source.batches[0].shape[2:])
            graph = read_precision(planned.model, precision, options.batch, planned.known)
    first = source.artifact.inputs[0].shape[0]
    batch = first if isinstance(first, int) else options.batch
    largest = max(amax, key=lambda name: amax[name])
    images = sum(map(len, source.batches))
    seen = Magnitudes(images, largest, amax[largest], FP16_MAX / HEADROOM)
    notes = (
        *journal.notes,
        *_notes(options, source, seen),
        *_open_choices(planned, graph, batch),
        *_refusals(options, graph),
    )
    exported = target if given is None or given.bundle is None else str(given.bundle.model_path)
    return PrecisionSight(target, exported, precision, graph, seen, notes)


def _planned(
    model: Any, source: Fp32Graph, amax: Mapping[str, float], options: SightOptions
) -> Planned:
    if options.planned is Precision.FP16:
        return planned_fp16(model, amax, HEADROOM)
    require_opset(source.artifact)
    return planned_int8(model, amax, HEADROOM, QdqPolicy(exclude=options.exclude))


def _notes(options: SightOptions, source: Fp32Graph, seen: Magnitudes) -> list[str]:
    notes = []
    if options.precision is None:
        notes.append("it is FP32: this is what --int8 shows; for FP16: --fp16")
    if source.trained is False:
        notes.append("the weights are untrained: trained ones may keep other nodes in FP32")
    if options.source.data is None:
        notes.append(
            f"magnitudes are of {seen.images} photographs that come with deploykit; "
            "of your own images: --data PATH"
        )
    return notes


def _refusals(options: SightOptions, graph: GraphPrecision) -> list[str]:
    if options.planned is Precision.INT8 and not graph.int8_weights:
        return ["nothing of it can be INT8: an export with --int8 refuses it"]
    return []


def _open_choices(planned: Planned, graph: GraphPrecision, batch: int) -> list[str]:
    """What an export of INT8 decides by trials on images."""
    counts = Counter(planned.known.trials.values())
    found = [f"{counts[what]} {what}{'s' * (counts[what] > 1)}" for what in counts]
    costs = {node.name: node.multiply_adds // batch for node in graph.nodes if node.multiply_adds}
    if graph.multiply_adds_in[Precision.INT8] and affordable_probes(costs, insist=False):
        found.append(f"sensitive layers of {LAYERS_SHARE:.1%} of the multiply-adds at most")
    if not found:
        return []
    return [f"which of these stay INT8, an export decides by trials on images: {', '.join(found)}"]

"""What a look at precision is given: a graph that is converted, or one to make a plan of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import onnx_graph
from deploykit.bundle import MODEL, REFERENCE, Bundle
from deploykit.errors import UsageError
from deploykit.pipeline.references import make_reference
from deploykit.pipeline.runners import Runners
from deploykit.pipeline.samples import BATCHES, sample_batches
from deploykit.pipeline.sources import SourceOptions
from deploykit.pipeline.targets import (
    Kind,
    find_definition,
    kind_of,
    refuse_definition_options,
)
from deploykit.sizes import IMAGE_AXES, ShapeProfile, SizeRange
from deploykit.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.artifacts import OnnxArtifact
    from deploykit.pipeline.journal import Journal


@dataclass(frozen=True)
class SightOptions:
    """What is looked at, and from what a plan is made.

    ``precision`` is that of an export that was not made; ``None``: what the graph has, and for an
    FP32 graph the plan of INT8. ``exclude`` are patterns of nodes as of the export. ``batch`` is
    what multiply-adds are counted for; ``source`` is for definitions and their images.
    """

    precision: Precision | None = None
    exclude: tuple[str, ...] = ()
    batch: int = 1
    source: SourceOptions = field(default_factory=SourceOptions)

    @property
    def planned(self) -> Precision:
        """What a plan is made of."""
        return self.precision or Precision.INT8


@dataclass(frozen=True)
class GivenGraph:
    """The graph that a target already has; ``reasons`` are those that were written down with it."""

    artifact: OnnxArtifact
    bundle: Bundle | None

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a node is not lower, by its name, as the export recorded it."""
        conversion = {} if self.bundle is None else self.bundle.manifest.conversion
        return {**conversion.get("kept_fp32", {}), **conversion.get("kept", {})}

    @property
    def open_axes(self) -> tuple[str, ...]:
        """Which of height and width the graph leaves open."""
        shapes = [spec.shape for spec in self.artifact.inputs[:1]]
        return tuple(
            label
            for axis, label in IMAGE_AXES.items()
            for shape in shapes
            if len(shape) > axis and isinstance(shape[axis], str)
        )

    def image_size(self, asked: int | None) -> tuple[int, int] | None:
        """Height and width where they are open: the ``asked``, or what a bundle prepares."""
        if asked is not None:
            return asked, asked
        return None if self.bundle is None else self.bundle.manifest.preprocessing.crop


@dataclass(frozen=True)
class Fp32Graph:
    """A verified graph, the images that magnitudes are measured on, and if its weights are real."""

    artifact: OnnxArtifact
    batches: list[NDArray[np.float32]]
    trained: bool | None
    runners: Runners


def open_given(target: str, options: SightOptions) -> GivenGraph | None:
    """The graph of a file or a bundle; ``None`` for a definition.

    Raises:
        UsageError: an option has no meaning for this target.
        ModelFileError: the file cannot be read.
        BundleError: the folder is no bundle.
        IntegrityError: the bundle's graph is not as it was written.
    """
    if options.exclude and options.planned is not Precision.INT8:
        raise UsageError(f"--exclude keeps nodes out of INT8: leave out --{options.planned}")
    kind, path = kind_of(target), Path(target)
    if kind is Kind.DEFINITION:
        return None
    if kind is Kind.ONNX:
        given = GivenGraph(onnx_graph.read_artifact(path), None)
    else:
        bundle = Bundle.open(path)
        bundle.require_unchanged(bundle.model_path.name)
        given = GivenGraph(bundle.manifest.onnx, bundle)
    _refuse_choices(target, given, options)
    if given.artifact.precision is not Precision.FP32:
        _refuse_plan(target, options, given)
    return given


def prepare_fp32(
    target: str, given: GivenGraph | None, folder: Path, options: SightOptions, journal: Journal
) -> Fp32Graph:
    """The FP32 graph that an export would convert, made in ``folder`` as the export makes it.

    Raises:
        DeploykitError: the error of the stage that failed.
    """
    path = folder / MODEL
    if given is not None and given.bundle is not None:
        return _of_bundle(given, given.bundle, options)
    if given is not None:
        asked = options.source.choices.image_size
        sizes = None if asked is None else SizeRange(asked, asked, asked)
        profile = ShapeProfile(**dict.fromkeys(given.open_axes, sizes))
        found = make_reference(Path(target), path, journal, options.source, profile)
    else:
        spec = find_definition(target, options.source.choices)
        found = make_reference(spec, path, journal, options.source)
    return Fp32Graph(found.artifact, found.batches, found.weights.get("trained"), found.runners)


def _of_bundle(given: GivenGraph, bundle: Bundle, options: SightOptions) -> Fp32Graph:
    prepared = options.source.choices.preprocessing.applied_to(bundle.manifest.preprocessing)
    size = given.image_size(options.source.choices.image_size)
    if options.source.choices.image_size is not None and size is not None:
        prepared = replace(prepared, crop=size, resize=size)
    batch = given.artifact.inputs[0].shape[0]
    sizes = (batch,) if isinstance(batch, int) else BATCHES
    batches = sample_batches(prepared, options.source.data, sizes)
    trained = bundle.manifest.weights.get("trained")
    return Fp32Graph(given.artifact, batches, trained, Runners.of_bundle(bundle))


def _refuse_choices(target: str, given: GivenGraph, options: SightOptions) -> None:
    """A file or bundle is what it is, but for a size that it leaves open."""
    choices, open_axes = options.source.choices, given.open_axes
    size = choices.image_size if not open_axes else None
    refuse_definition_options(target, replace(choices, image_size=size), options.source.weights)
    if open_axes and given.image_size(choices.image_size) is None:
        raise UsageError(
            f"{target} takes images whose {' and '.join(open_axes)} may be anything\n"
            "multiply-adds and magnitudes depend on it: --input-size PX, for example 224"
        )


def _refuse_plan(target: str, options: SightOptions, given: GivenGraph) -> None:
    """What is converted already has nothing to plan, and nothing to measure for it."""
    wishes = {
        f"--{options.precision}": options.precision is not None,
        "--exclude": bool(options.exclude),
        "--data": options.source.data is not None,
    }
    asked = next((name for name, is_given in wishes.items() if is_given), None)
    if asked is None:
        return
    own, bundle = given.artifact.precision, given.bundle
    lines = [f"{target} is {own} already, and {asked} is for a plan of what is FP32"]
    if bundle is not None and REFERENCE in bundle.manifest.files:
        plan = f"--{options.planned}"
        lines.append(
            f"plan that of its FP32 graph: deploykit inspect {bundle.folder / REFERENCE} {plan}"
        )
    raise UsageError("\n".join([*lines, f"what it has: deploykit inspect {target} --precision"]))

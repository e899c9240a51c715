"""`deploykit calibrate`: the ranges of a model's activations on real images, kept for later."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.bundle.golden import runners_of_bundle
from deploykit.bundle.manifest import MODEL, REFERENCE
from deploykit.bundle.reading import read_bundle
from deploykit.core.errors import BundleError, UsageError
from deploykit.core.progress import Journal, Progress, SilentProgress
from deploykit.core.sizes import ShapeProfile, require_sizes
from deploykit.graph import LoadedGraph, read_graph
from deploykit.graph.card import card_of
from deploykit.precision.calibration.graphs import Calibrated, calibrate_graph
from deploykit.sources.definition import notes_on_images
from deploykit.sources.references import find_source, make_reference
from deploykit.sources.targets import Kind, kind_of, refuse_definition_options

if TYPE_CHECKING:
    from deploykit.bundle.manifest import Bundle
    from deploykit.comparison.reference import Runners
    from deploykit.core.specs import Preprocessing
    from deploykit.precision.calibration.data import CalibrationOptions
    from deploykit.sources.definition import SourceOptions


_ANY: Final = ShapeProfile()


def calibrate_target(
    target: str,
    options: CalibrationOptions,
    source_options: SourceOptions,
    progress: Progress | None = None,
    sizes: ShapeProfile = _ANY,
) -> tuple[Calibrated, Journal]:
    """Calibrate a definition, an FP32 ``.onnx`` file, or the FP32 graph of a bundle.

    Torch is needed for a definition only, which is exported as `deploykit export` does it.
    ``sizes`` has the height and width that an ``.onnx`` leaves open: the preferred ones are
    calibrated.

    Raises:
        UsageError: ``target`` has no use for what it is told.
        DataError: the images cannot be used.
    """
    journal = Journal(progress or SilentProgress())
    if kind_of(target) is Kind.BUNDLE:
        options = replace(options, bundle=Path(target))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / MODEL
        graph, name, preprocessing, runners = _fp32_graph(
            target, scratch, source_options, journal, sizes
        )
        calibrated = calibrate_graph(graph, name, preprocessing, options, journal, runners)
    return calibrated, journal


def _fp32_graph(
    target: str,
    scratch: Path,
    source_options: SourceOptions,
    journal: Journal,
    sizes: ShapeProfile,
) -> tuple[LoadedGraph, str, Preprocessing, Runners]:
    if kind_of(target) is Kind.BUNDLE:
        refuse_definition_options(target, source_options.choices, source_options.weights)
        if sizes.has_image_sizes:
            raise UsageError(
                f"{target} is a bundle: it is calibrated at the size that it prepares\n"
                "leave out --height and --width, they are for an .onnx"
            )
        bundle, graph, runners = read_bundle(Path(target), _read)
        preprocessing = source_options.choices.preprocessing.applied_to(
            bundle.manifest.preprocessing
        )
        journal.notes += notes_on_images(source_options, preprocessing)
        name = str(bundle.manifest.model["name"])
        return graph, name, preprocessing, runners
    # Prepared as an export does it, so that the table fits the graph of a later export.
    source = find_source(target, source_options, journal)
    if not isinstance(source, Path):
        require_sizes(source.name, source.inputs[0].shape, sizes)
    reference = make_reference(source, scratch, journal, source_options, sizes)
    name = str(reference.model["name"])
    return reference.graph, name, reference.preprocessing, reference.runners


def _read(bundle: Bundle) -> tuple[Bundle, LoadedGraph, Runners]:
    """The bundle's FP32 graph, and what it takes beside images.

    Raises:
        UsageError: bytes or results were put around it, which ranges are not measured with.
        BundleError: the bundle has none.
    """
    _require_plain(bundle)
    own = bundle.manifest.precision.facts.is_source
    name = bundle.model_path.name if own else REFERENCE
    if name not in bundle.manifest.files or not (bundle.folder / name).exists():
        raise BundleError(
            f"{bundle.folder} keeps no {REFERENCE}, its FP32 graph\n"
            "calibrate what it was exported from, or export it again"
        )
    bundle.require_unchanged(name)
    return bundle, _as_exported(read_graph(bundle.folder / name)), runners_of_bundle(bundle)


def _require_plain(bundle: Bundle) -> None:
    added = [each for each in ("input", "result") if each in bundle.manifest.conversion]
    if added:
        raise UsageError(
            f"{bundle.folder} was exported with --{added[0]}: its graphs are no longer those that "
            "ranges are of\ncalibrate what it was exported from: deploykit calibrate TARGET"
        )


def _as_exported(graph: LoadedGraph) -> LoadedGraph:
    """The graph under the hash that it had before its card was added, as a later export has it."""
    before = card_of(graph.model.metadata_props, graph.artifact.path.name).graph_sha256
    if before is None:
        return graph
    return LoadedGraph(replace(graph.artifact, sha256=before), graph.model)

"""Pictures of graphs, which have no gradients: the filters of the first layer, and occlusion.

For a bundle of lower precision the FP32 graph that it keeps is shown beside it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.bundle.golden import runners_of_bundle
from deploykit.bundle.manifest import REFERENCE
from deploykit.comparison.converted import open_as_engine
from deploykit.comparison.reference import Runners
from deploykit.graph import LoadedGraph, mended_of, read_graph, read_model
from deploykit.graph.card import card_of
from deploykit.graph.first_layer import first_filters
from deploykit.heads import head_of
from deploykit.images import notes_on_data, open_images, sample_images
from deploykit.images.byte_images import bytes_of
from deploykit.sources.cards import notes_on_card
from deploykit.sources.definition import SourceOptions
from deploykit.sources.onnx_inputs import image_of, preprocessing_of, side_inputs_of
from deploykit.visualization.first_layer import (
    FILTERS_TEXT,
    FirstLayer,
    filters_line,
    filters_sheet,
)
from deploykit.visualization.of_images import (
    Covered,
    NoScoresError,
    Seen,
    changed_images,
    scores_of,
    show_occlusion,
    spread_images,
)
from deploykit.visualization.results import Findings, Item, Method, Picture, PictureGroup, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.bundle.manifest import Bundle
    from deploykit.core.choices import DefinitionChoices
    from deploykit.core.progress import Progress
    from deploykit.core.specs import Preprocessing, Runner
    from deploykit.heads import Head
    from deploykit.images import ImageSet


@dataclass(frozen=True)
class GraphWish:
    """What is asked of a graph; without ``images`` the photographs that come with deploykit.

    ``is_asked`` says that the user named the methods.
    """

    methods: frozenset[Method]
    is_asked: bool
    images: Path | None
    max_pixels: int | None = None

    def opened(self) -> ImageSet:
        """The images.

        Raises:
            DataError: they cannot be read.
        """
        return sample_images() if self.images is None else open_images(self.images, self.max_pixels)


@dataclass(frozen=True)
class _Side:
    """One graph: what it is called, how it is opened, and its first convolution."""

    name: str
    graph: LoadedGraph
    open: Callable[[], Runner]


@dataclass(frozen=True)
class _Look:
    """How images are prepared, what outputs mean where that is known, and names of classes.

    Where ``preprocessing`` has ``pixels``, the graph takes these bytes. They are made of prepared
    images right before it runs: what is covered and shown are always prepared images, in which 0
    is the mean colour.
    """

    preprocessing: Preprocessing
    head: Head | None = None
    labels: Sequence[str] | None = None


def show_file(
    path: Path,
    choices: DefinitionChoices,
    wish: GraphWish,
    findings: Findings,
    progress: Progress,
) -> None:
    """Pictures of an ``.onnx`` file, prepared as it says itself and with its names of classes.

    Raises:
        ModelFileError: it cannot be read, takes no images, or says what deploykit does not write.
        UsageError: it has no score per class to cover up.
    """
    with progress.step(f"read {path.name}"):
        read = read_graph(path)
    # One output is looked at, whatever kind of head it has.
    card = replace(card_of(read.model.metadata_props, path.name), head=None)
    image = image_of(path.name, read.artifact.inputs, card.preprocessing)
    runners = Runners(side_inputs_of(read.artifact, image, choices.side_inputs))

    def opened() -> Runner:
        if mended_of(read.model).runs_as_written:
            return open_as_engine(runners, read.artifact)
        return runners.open(read.split())

    side = _Side(path.stem, read, opened)
    order = "rgb" if card.preprocessing is None else card.preprocessing.channel_order
    _show_filters([side], choices.preprocessing.channel_order or order, wish, findings)
    if Method.OCCLUSION not in wish.methods:
        return
    look = choices.preprocessing.applied_to(preprocessing_of(card, path.name, image))
    findings.notes += notes_on_card(card, path.name, SourceOptions(choices=choices), look)
    others = [each.name for each in read.artifact.inputs if each.name != image.name]
    if others and choices.side_inputs is None:
        findings.notes.append(f"{', '.join(others)}: noise; values of yours: --side-inputs FILE")
    _occlude([side], _Look(look, labels=card.classes), wish, findings, progress)


def show_bundle(bundle: Bundle, wish: GraphWish, findings: Findings, progress: Progress) -> None:
    """Pictures of a bundle's graph, beside those of the FP32 graph that it keeps.

    Raises:
        IntegrityError: a file is not as it was written.
        UsageError: it has no score per class to cover up.
    """
    manifest = bundle.manifest
    bundle.require_unchanged(bundle.model_path.name)
    runners = runners_of_bundle(bundle)
    own = LoadedGraph(manifest.onnx, read_model(bundle.model_path))
    sides = [_Side(_upper(bundle), own, lambda: open_as_engine(runners, manifest.onnx))]
    kept = bundle.folder / REFERENCE
    if REFERENCE in manifest.files and kept.is_file():
        bundle.require_unchanged(REFERENCE)
        reference = read_graph(kept)
        sides.insert(0, _Side("FP32", reference, lambda: runners.of_artifact(reference.artifact)))
    else:
        why = "it is FP32 itself" if manifest.precision.facts.is_source else "it was deleted"
        findings.notes.append(f"the bundle keeps no {REFERENCE} to compare with: {why}")
    order = manifest.preprocessing.channel_order
    _show_filters(sides, order, wish, findings)
    if Method.OCCLUSION in wish.methods:
        look = _Look(manifest.preprocessing, head_of(manifest.head), bundle.labels)
        _occlude(sides, look, wish, findings, progress)


def _upper(bundle: Bundle) -> str:
    return str(bundle.manifest.precision).upper()


def _show_filters(
    sides: Sequence[_Side], channel_order: str, wish: GraphWish, findings: Findings
) -> None:
    if Method.FILTERS not in wish.methods:
        return
    found = [(side.name, first_filters(side.graph.model)) for side in sides]
    layers = [(name, FirstLayer(*each)) for name, each in found if each is not None]
    if len(layers) < len(sides):
        findings.notes.append("filters: there is no convolution of constant filters (O, I, H, W)")
        return
    largest = max(float(np.abs(layer.filters).max()) for _, layer in layers)
    items = tuple(
        _sheet(name, layer, number, channel_order, largest)
        for number, (name, layer) in enumerate(layers)
    )
    findings.sections.insert(0, Section("First layer", FILTERS_TEXT, (PictureGroup("", items),)))
    told: dict[str, Any] = {name: layer.to_dict() for name, layer in layers}
    if len(layers) > 1 and layers[0][1].filters.shape == layers[1][1].filters.shape:
        reference, own = (layer.filters for _, layer in layers)
        told["largest_difference"] = float(np.abs(own - reference).max())
        size = float(np.linalg.norm(reference))
        told["relative_difference"] = float(np.linalg.norm(own - reference)) / size if size else 0.0
    findings.numbers["first_layer"] = told


def _sheet(name: str, layer: FirstLayer, number: int, channel_order: str, largest: float) -> Item:
    pixels = filters_sheet(layer, channel_order=channel_order, largest=largest)
    file = "filters.png" if number == 0 else f"filters-{number}.png"
    return Item(name, (Picture.of(file, pixels, layer.name),), filters_line(layer))


def _occlude(
    sides: Sequence[_Side],
    look: _Look,
    wish: GraphWish,
    findings: Findings,
    progress: Progress,
) -> None:
    images = wish.opened()
    with ExitStack() as stack:
        runners = [(side.name, stack.enter_context(side.open())) for side in sides]
        models = [
            Seen(name, scores_of(_first_output(runner, look.preprocessing), name))
            for name, runner in runners
        ]
        covered = Covered(images, replace(look.preprocessing, pixels=None), look.labels)
        try:
            _require_scores(models, covered)
        except NoScoresError as error:
            if wish.is_asked:
                raise
            findings.notes.append(f"no occlusion: {str(error).splitlines()[0]}")
            return
        findings.notes += notes_on_data(wish.images)
        if wish.images is None:
            findings.notes.append(_OWN_IMAGES)
        if look.head is not None and len(models) > 1:
            pair = models[0], models[1]
            with progress.step("answers") as task:
                chosen = changed_images(pair, covered, look.head.losses, task)
        else:
            chosen = spread_images(covered)
        if chosen.unreadable:
            findings.notes.append(f"{chosen.unreadable} of {len(images)} images cannot be read")
        show_occlusion(models, chosen, covered, findings, progress)


_OWN_IMAGES: Final = "the images are the photographs that come with deploykit: --images"


def _require_scores(models: Sequence[Seen], covered: Covered) -> None:
    """Refuse outputs that are no scores, by a blank image, before any image is read."""
    blank = np.zeros((1, *covered.preprocessing.image_shape), np.float32)
    for model in models:
        model.scores(blank)


def _first_output(
    runner: Runner, preprocessing: Preprocessing
) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Runs prepared images (N, C, H, W) in batches that the graph takes; the last is filled up."""
    feed, first = runner.inputs[0], runner.outputs[0].name

    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        size = feed.fixed_batch or len(images)
        found = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            full = np.resize(batch, (size, *batch.shape[1:]))
            given = full if preprocessing.pixels is None else bytes_of(full, preprocessing)
            found.append(np.asarray(runner.run({feed.name: given})[first])[: len(batch)])
        return np.concatenate(found)

    return run

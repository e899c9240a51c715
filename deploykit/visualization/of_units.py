"""Pictures of what filters answer to: images, the way back to their pixels, an ideal image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.images import name_of, pixels_before, prepare
from deploykit.visualization.deconvnet import deconvnet, require_rules, without_rule
from deploykit.visualization.guided import guided_backpropagation, has_rectifier
from deploykit.visualization.maximisation import maximise
from deploykit.visualization.pictures import cut, scaled_to, sheet, signed
from deploykit.visualization.results import (
    OF_UNITS,
    Findings,
    Item,
    Method,
    Picture,
    PictureGroup,
    Section,
    file_name,
)
from deploykit.visualization.top_images import LayerPeaks, find_top_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.core.progress import Progress
    from deploykit.images import ImageSet
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.pictures import Pixels
    from deploykit.visualization.top_images import Peak, TopImages
    from deploykit.visualization.tracing import TracedLayer

_TILE_PX: Final = (48, 72)
"""The longer side of a tile, at least and at most."""
_COLUMNS: Final = 3
_BATCH: Final = 16

_CAPTIONS: Final = {
    Method.TOP: "images",
    Method.DECONVNET: "DeconvNet",
    Method.GUIDED: "guided backpropagation",
    Method.MAXIMISE: "activation maximised",
}


@dataclass(frozen=True)
class UnitWish:
    """Which filters of which layers, by which methods."""

    layers: tuple[TracedLayer, ...]
    methods: frozenset[Method]
    filters: int
    seed: int


def rules_for(
    network: ShownNetwork,
    layers: Sequence[TracedLayer],
    methods: frozenset[Method],
    *,
    is_asked: bool,
) -> tuple[frozenset[Method], list[str]]:
    """The methods that have rules for these layers, and notes on those that do not.

    What was asked for by name is refused; what was taken by default is replaced by guided
    backpropagation.

    Raises:
        UsageError: DeconvNet was asked for, and has no rule for an operation.
    """
    notes: list[str] = []
    if Method.DECONVNET in methods:
        if is_asked:
            for layer in layers:
                require_rules(network, layer)
        unknown = {layer.name: without_rule(network, layer) for layer in layers}
        found = dict.fromkeys(each for several in unknown.values() for each in several)
        if found:
            notes.append(
                f"DeconvNet has no rule for {', '.join(found)}: guided backpropagation instead"
            )
            methods = methods - {Method.DECONVNET} | {Method.GUIDED}
    if Method.GUIDED in methods and not any(has_rectifier(network, each) for each in layers):
        notes.append("guided backpropagation: there is no ReLU, so these are plain gradients")
    return methods, notes


def show_units(
    network: ShownNetwork,
    wish: UnitWish,
    images: ImageSet | None,
    findings: Findings,
    progress: Progress,
) -> None:
    """Add the section about filters of layers to ``findings``, and the numbers."""
    top = None
    if images is not None and wish.methods & {Method.TOP, Method.DECONVNET, Method.GUIDED}:
        with progress.step("images through the network") as task:
            top = find_top_images(network, wish.layers, images, batch=_BATCH, task=task)
        findings.notes += _notes(top)
        findings.numbers["images"] = {"seen": top.images, "unreadable": top.unreadable}
    pairs = [_layer(network, layer, wish, (images, top), progress) for layer in wish.layers]
    groups = tuple(group for group, _ in pairs)
    findings.numbers["layers"] = [numbers for _, numbers in pairs]
    findings.sections.append(Section("What filters answer to", _text(wish.methods), groups))


def _text(methods: frozenset[Method]) -> str:
    parts = []
    if Method.TOP in methods:
        parts.append(
            "Nine images that activate a filter most, the strongest first, each cut to the "
            "receptive field of its strongest unit."
        )
    if methods & {*_BACKWARDS}:
        of_these = "these" if Method.TOP in methods else "the nine images that activate it most"
        parts.append(f"What of {of_these} the strongest unit came from, back to the pixels.")
    if Method.MAXIMISE in methods:
        parts.append("An image made from noise that activates the filter.")
    parts.append("Filters are spread evenly over those that any image activates.")
    return " ".join(parts)


def _notes(top: TopImages) -> list[str]:
    if not top.unreadable:
        return []
    return [f"{top.unreadable} of {top.images + top.unreadable} images cannot be read"]


def _layer(
    network: ShownNetwork,
    layer: TracedLayer,
    wish: UnitWish,
    found: tuple[ImageSet | None, TopImages | None],
    progress: Progress,
) -> tuple[PictureGroup, dict[str, Any]]:
    images, top = found
    peaks = LayerPeaks.nothing(layer.channels) if top is None else top.peaks[layer.name]
    channels = peaks.spread(wish.filters)
    made = None
    if Method.MAXIMISE in wish.methods:
        with progress.step(f"maximise {layer.name}") as task:
            made = maximise(network, layer, channels, seed=wish.seed, task=task)
    items, numbers = [], []
    with progress.step(f"pictures of {layer.name}") as task:
        for at, channel in enumerate(channels):
            unit = _Unit(network, layer, channel, peaks.of(channel), images)
            pictures = list(unit.pictures(wish.methods))
            told = unit.numbers()
            if made is not None:
                pictures.append(_made_picture(network, layer, channel, made.images[at]))
                told["maximised"] = {"before": made.before[at], "after": made.after[at]}
            items.append(Item(f"filter {channel}", tuple(pictures), _item_text(told)))
            numbers.append(told)
            task.update(at + 1, len(channels))
    return PictureGroup(layer.name, tuple(items), layer_text(layer)), {
        **layer_numbers(layer),
        "filters": numbers,
    }


def layer_text(layer: TracedLayer) -> str:
    """Kind, filters, map and receptive field of a layer, in a sentence."""
    height, width = layer.field.largest
    size = " x ".join(map(str, layer.shape[1:]))
    maps = f" of {size}" if layer.is_map else ""
    if not layer.field.is_whole:
        seen = f"receptive field {height} x {width} px"
    elif layer.field.reason:
        seen = f"each unit sees the whole image: {layer.field.reason}"
    else:
        seen = "each unit sees the whole image"
    return f"{layer.kind}, {layer.channels} filters{maps}; {seen}"


def layer_numbers(layer: TracedLayer) -> dict[str, Any]:
    """Plain data of a layer."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "receptive_field": list(layer.field.largest),
        "whole_image": layer.field.is_whole,
        "whole_image_because": layer.field.reason if layer.field.is_whole else None,
    }


def _item_text(told: dict[str, Any]) -> str:
    parts = []
    if told["images"]:
        strengths = [each["activation"] for each in told["images"]]
        parts.append(f"activation {strengths[0]:.3g} to {strengths[-1]:.3g}")
    if "maximised" in told:
        parts.append(f"mean {told['maximised']['before']:.3g} to {told['maximised']['after']:.3g}")
    return "; ".join(parts)


@dataclass(frozen=True)
class _Unit:
    """One filter of a layer, and the images that it answers to most."""

    network: ShownNetwork
    layer: TracedLayer
    channel: int
    peaks: tuple[Peak, ...]
    source: ImageSet | None

    def pictures(self, methods: frozenset[Method]) -> list[Picture]:
        if self.source is None or not self.peaks:
            return []
        look = self.network.preprocessing
        prepared = np.stack([prepare(self.source, peak.image, look) for peak in self.peaks])
        found = []
        for method in (each for each in OF_UNITS if each in methods):
            if method is Method.TOP:
                tiles = self._cut([pixels_before(one, look) for one in prepared])
            elif method in _BACKWARDS:
                back = _BACKWARDS[method]
                values = back(self.network, self.layer, self.channel, prepared, self.peaks)
                tiles = self._signed(values)
            else:
                continue
            found.append(Picture.of(self._file(method), _montage(tiles), _CAPTIONS[method]))
        return found

    def _file(self, method: Method) -> str:
        return f"{file_name(self.layer.name)}/{self.channel}-{method}.png"

    def _cut(self, several: Sequence[Pixels]) -> list[Pixels]:
        size = self.layer.field.largest
        return [
            cut(pixels, self.layer.field.box(peak.row, peak.column), size)
            for pixels, peak in zip(several, self.peaks, strict=True)
        ]

    def _signed(self, values: NDArray[np.float32]) -> list[Pixels]:
        """Each on a scale of its own, as the paper shows them."""
        turned = values[:, ::-1] if self.network.preprocessing.channel_order == "bgr" else values
        return self._cut([signed(one) for one in turned])

    def numbers(self) -> dict[str, Any]:
        return {"filter": self.channel, "images": [self._peak(peak) for peak in self.peaks]}

    def _peak(self, peak: Peak) -> dict[str, Any]:
        field, source = self.layer.field, self.source
        return {
            "image": "" if source is None else name_of(source, peak.image),
            "index": peak.image,
            "activation": peak.activation,
            "row": peak.row,
            "column": peak.column,
            "box": list(field.box(peak.row, peak.column)),
        }


_BACKWARDS: Final = {Method.DECONVNET: deconvnet, Method.GUIDED: guided_backpropagation}


def _montage(tiles: Sequence[Pixels]) -> Pixels:
    return sheet([scaled_to(tile, *_TILE_PX) for tile in tiles], _COLUMNS)


def _made_picture(
    network: ShownNetwork, layer: TracedLayer, channel: int, image: NDArray[np.float32]
) -> Picture:
    pixels = scaled_to(pixels_before(image, network.preprocessing), 150, 224)
    file = f"{file_name(layer.name)}/{channel}-{Method.MAXIMISE}.png"
    return Picture.of(file, pixels, _CAPTIONS[Method.MAXIMISE])

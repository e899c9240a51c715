"""Pictures of a module: the filters of its first layer, what its units answer to, attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.core.errors import UsageError
from deploykit.images import notes_on_data, open_images
from deploykit.visualization.first_layer import (
    FILTERS_TEXT,
    filters_line,
    filters_sheet,
    first_layer_of,
)
from deploykit.visualization.layers import tensor_of
from deploykit.visualization.of_images import (
    Covered,
    Seen,
    scores_of,
    show_grad_cam,
    show_occlusion,
    spread_images,
)
from deploykit.visualization.of_units import UnitWish, rules_for, show_units
from deploykit.visualization.results import (
    OF_UNITS,
    Findings,
    Item,
    Method,
    Picture,
    PictureGroup,
    Section,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.core.progress import Progress
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.tracing import TracedLayer


@dataclass(frozen=True)
class ModuleWish:
    """What is asked of a module; ``is_asked`` says that the user named the methods."""

    methods: frozenset[Method]
    is_asked: bool
    layers: tuple[str, ...]
    filters: int
    seed: int
    images: Path | None
    max_pixels: int | None = None


def show_module(
    network: ShownNetwork,
    wish: ModuleWish,
    labels: Sequence[str] | None,
    findings: Findings,
    progress: Progress,
) -> frozenset[Method]:
    """Make the pictures that are asked for; returns the methods that were used.

    Raises:
        UsageError: a layer is not there, or a method has no rule for it.
        DataError: the images cannot be read.
    """
    # First what can be wrong: what follows takes minutes.
    layers = network.chosen(wish.layers)
    of_units = wish.methods & {*OF_UNITS}
    if of_units and not layers:
        raise UsageError(
            "the network has no layer that returns a map (N, C, H, W)\n"
            "name others, which return (N, C): --layer NAME"
        )
    of_units, notes = rules_for(network, layers, of_units, is_asked=wish.is_asked)
    cam_layers = _cam_layers(network, wish, findings)
    findings.notes += notes
    images = None if wish.images is None else open_images(wish.images, wish.max_pixels)
    findings.notes += notes_on_data(wish.images)
    if Method.FILTERS in wish.methods:
        _show_filters(network, findings)
    if of_units:
        asked = UnitWish(layers, of_units, wish.filters, wish.seed)
        show_units(network, asked, images, findings, progress)
    if images is not None:
        _show_images(
            network,
            wish,
            Covered(images, network.preprocessing, labels),
            findings,
            progress,
            cam_layers,
        )
    return wish.methods - {*OF_UNITS} | of_units


def _cam_layers(
    network: ShownNetwork, wish: ModuleWish, findings: Findings
) -> tuple[TracedLayer, ...]:
    """Layers for Grad-CAM: of those that were named the ones with positions, else the last."""
    if Method.GRADCAM not in wish.methods:
        return ()
    if wish.layers:
        named = network.chosen(wish.layers)
        maps = tuple(layer for layer in named if layer.is_map and layer.shape[1:] != (1, 1))
    else:
        last = network.last_map()
        maps = () if last is None else (last,)
    if not maps and wish.is_asked:
        raise UsageError(
            "Grad-CAM needs a layer that returns a map (N, C, H, W), and there is none of these\n"
            "possible without: --method occlusion"
        )
    if not maps:
        findings.notes.append("Grad-CAM: no layer returns a map (N, C, H, W); --method occlusion")
    return maps


def _show_filters(network: ShownNetwork, findings: Findings) -> None:
    layer = first_layer_of(network)
    if layer is None:
        findings.notes.append("filters: the network has no convolution to show")
        return
    pixels = filters_sheet(layer, channel_order=network.preprocessing.channel_order)
    item = Item("", (Picture.of("filters.png", pixels, layer.name),), filters_line(layer))
    findings.sections.append(Section("First layer", FILTERS_TEXT, (PictureGroup("", (item,)),)))
    findings.numbers["first_layer"] = layer.to_dict()


def _show_images(
    network: ShownNetwork,
    wish: ModuleWish,
    covered: Covered,
    findings: Findings,
    progress: Progress,
    cam_layers: Sequence[TracedLayer],
) -> None:
    if cam_layers:
        show_grad_cam(network, cam_layers, covered, findings, progress)
    if Method.OCCLUSION in wish.methods:
        model = Seen("network", scores_of(_runs(network), "the network"))
        show_occlusion([model], spread_images(covered), covered, findings, progress)


def _runs(network: ShownNetwork) -> Any:
    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        import torch

        with torch.inference_mode():
            found: NDArray[Any] = network.network(tensor_of(images)).numpy()
        return found

    return run

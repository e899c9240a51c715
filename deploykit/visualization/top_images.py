"""The images that activate each filter most, and where: the top nine of any number of images.

Zeiler, Fergus 2013, "Visualizing and Understanding Convolutional Networks", figure 2,
https://arxiv.org/abs/1311.2901. Of each image its strongest position counts, so that the nine are
of nine images. What is kept between batches is nine numbers and places per filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from deploykit.core.errors import DataError
from deploykit.images import batches, name_of
from deploykit.visualization.layers import tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from deploykit.core.progress import ProgressTask
    from deploykit.images import ImageSet
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.tracing import TracedLayer

TOP: Final = 9


class Peak(NamedTuple):
    """The strongest activation of a filter on one image, and its place in the layer's map."""

    image: int
    activation: float
    row: int
    column: int


@dataclass(frozen=True, eq=False)
class LayerPeaks:
    """For each filter its strongest images, the strongest first: four arrays (top, C)."""

    activations: NDArray[np.float32]
    images: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def nothing(cls, channels: int) -> LayerPeaks:
        """Before any image."""
        empty = np.zeros((0, channels), np.int64)
        return cls(empty.astype(np.float32), empty, empty, empty)

    def with_batch(self, batch: LayerPeaks, most: int) -> LayerPeaks:
        """The ``most`` strongest of both; of equal ones those that came first."""
        pairs = (
            (self.activations, batch.activations),
            (self.images, batch.images),
            (self.rows, batch.rows),
            (self.columns, batch.columns),
        )
        joined: list[NDArray[Any]] = [np.concatenate(pair) for pair in pairs]
        order = np.argsort(-joined[0], axis=0, kind="stable")[:most]
        return LayerPeaks(*(np.take_along_axis(each, order, axis=0) for each in joined))

    def of(self, channel: int) -> tuple[Peak, ...]:
        """The peaks of one filter, the strongest first."""
        several = zip(
            self.images[:, channel].tolist(),
            self.activations[:, channel].tolist(),
            self.rows[:, channel].tolist(),
            self.columns[:, channel].tolist(),
            strict=True,
        )
        return tuple(Peak(*each) for each in several)

    def spread(self, count: int) -> tuple[int, ...]:
        """At most ``count`` filters, spread evenly over those that any image activates."""
        alive = (
            np.flatnonzero(self.activations[0] > 0) if len(self.activations) else np.zeros(0, int)
        )
        chosen = alive if len(alive) else np.arange(self.activations.shape[1])
        at = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)
        return tuple(int(channel) for channel in chosen[at])


@dataclass(frozen=True)
class TopImages:
    """What one pass over images found, by the name of each layer."""

    peaks: dict[str, LayerPeaks]
    images: int
    unreadable: int


def find_top_images(
    network: ShownNetwork,
    layers: Sequence[TracedLayer],
    images: ImageSet,
    *,
    batch: int,
    task: ProgressTask,
    top: int = TOP,
) -> TopImages:
    """Run every image once; memory does not grow with their number.

    An image that cannot be read is left out and counted.

    Raises:
        DataError: no image can be read, or a layer gives NaN for one.
    """
    import torch

    found = {layer.name: LayerPeaks.nothing(layer.channels) for layer in layers}
    seen: dict[str, Any] = {}
    hooks = [
        network.part(layer).register_forward_hook(_peaks_into(seen, layer.name)) for layer in layers
    ]
    count = 0
    try:
        for prepared, indices in batches(images, network.preprocessing, batch, on_corrupt="skip"):
            with torch.inference_mode():
                network.network(tensor_of(prepared))
            for layer in layers:
                peaks = _placed(seen[layer.name], layer, images, indices)
                found[layer.name] = found[layer.name].with_batch(peaks, top)
            count += len(indices)
            task.update(indices[-1] + 1, len(images))
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise DataError(f"none of the {len(images)} images can be read\nlook at the files")
    return TopImages(found, count, len(images) - count)


def _peaks_into(seen: dict[str, Any], name: str) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps the largest value of each map and its place, and not the map."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        # At once: the next layer may work in place.
        values, places = output.flatten(2).max(2) if output.ndim > 2 else (output, None)  # noqa: PLR2004 - (N, C)
        seen[name] = values.numpy().copy(), None if places is None else places.numpy().copy()

    return keep


def _placed(
    seen: tuple[Any, Any], layer: TracedLayer, images: ImageSet, indices: Sequence[int]
) -> LayerPeaks:
    values, places = seen
    bad = np.flatnonzero(np.isnan(values).any(axis=1))
    if len(bad):
        raise DataError(
            f"{layer.name} gives NaN for {name_of(images, indices[bad[0]])}\n"
            "leave that image out, or look at the weights"
        )
    rows = columns = np.zeros(values.shape, np.int64)
    if places is not None:
        rows, columns = np.divmod(places, layer.shape[-1])
    of_images = np.broadcast_to(np.array(indices, np.int64)[:, None], values.shape)
    return LayerPeaks(values, of_images, rows, columns)

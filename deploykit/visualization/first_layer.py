"""The filters of the first layer as pictures, all on one scale.

Krizhevsky, Sutskever, Hinton 2012, figure 3 of "ImageNet Classification with Deep Convolutional
Neural Networks". A filter of three inputs is a picture in colours; of one input, or of another
number, each input is a picture in grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit.visualization.pictures import scaled_to, sheet, signed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.pictures import Pixels

_COLOURS: Final = 3
_TILE_PX: Final = 36
_SHEET_PX: Final = 620
"""Width of a sheet, about: a page of a desktop has room for two."""


FILTERS_TEXT: Final = (
    "Every filter on one scale: grey is 0, white and black are the largest weight of any filter. "
    "Filters of three inputs are in colours."
)


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """Name of the first convolution, and its filters (O, I, H, W)."""

    name: str
    filters: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: counts, sizes and the largest weight, which the scale is of."""
        count, inputs, height, width = self.filters.shape
        return {
            "name": self.name,
            "filters": count,
            "inputs": inputs,
            "size": [height, width],
            "largest_weight": float(np.abs(self.filters).max()),
        }


def first_layer_of(network: ShownNetwork) -> FirstLayer | None:
    """Of a module, the first convolution that an image meets; ``None`` where there is none."""
    from torch import nn

    for layer in network.layers:
        part = network.part(layer)
        if isinstance(part, nn.Conv2d):
            return FirstLayer(layer.name, part.weight.detach().numpy())
    return None


def filters_sheet(
    layer: FirstLayer, *, channel_order: str = "rgb", largest: float | None = None
) -> Pixels:
    """All filters on one sheet, grey for 0, white and black for the largest weight of any.

    ``largest`` is the weight of the full scale, so that two sheets can share it.
    """
    most = float(np.abs(layer.filters).max()) if largest is None else largest
    tiles = [signed(each, most) for each in _pictures(layer.filters, channel_order)]
    if max(tiles[0].shape[:2]) == 1:
        tiles = [tile.repeat(_TILE_PX // 2, 0).repeat(_TILE_PX // 2, 1) for tile in tiles]
    tiles = [scaled_to(tile, _TILE_PX, 4 * _TILE_PX) for tile in tiles]
    inputs = layer.filters.shape[1]
    columns = max(1, _SHEET_PX // (tiles[0].shape[1] + 2))
    if inputs not in (1, _COLOURS):
        columns = max(1, columns // inputs) * inputs  # the inputs of a filter stay side by side
    return sheet(tiles, columns)


def filters_line(layer: FirstLayer) -> str:
    """Counts and sizes of a first layer, in a line."""
    count, inputs, height, width = layer.filters.shape
    largest = float(np.abs(layer.filters).max())
    return (
        f"{layer.name}: {count} filters of {height} x {width} on {inputs} inputs, "
        f"largest weight {largest:.3g}"
    )


def _pictures(filters: NDArray[np.float32], channel_order: str) -> list[NDArray[np.float32]]:
    if filters.shape[1] == _COLOURS:
        return list(filters[:, ::-1] if channel_order == "bgr" else filters)
    return [each for one in filters for each in one]

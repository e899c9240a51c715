"""Guided backpropagation: the gradient of one unit, without what would lessen it.

Springenberg et al. 2014, "Striving for Simplicity: The All Convolutional Net", section 3.4,
https://arxiv.org/abs/1412.6806: at each ReLU a gradient passes where the forward pass was positive
and the gradient is. Other functions keep their own gradient; without any ReLU it is the plain one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.visualization.relu_rules import Rule, from_units, operations_before

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.top_images import Peak
    from deploykit.visualization.tracing import TracedLayer


def guided_backpropagation(
    network: ShownNetwork,
    layer: TracedLayer,
    channel: int,
    images: NDArray[np.float32],
    peaks: Sequence[Peak],
) -> NDArray[np.float32]:
    """Guided gradients (N, C, H, W) of the units at ``peaks`` of ``channel``, one of each image."""
    return from_units(network, layer, channel, images, peaks, Rule.GUIDED)


def has_rectifier(network: ShownNetwork, layer: TracedLayer) -> bool:
    """Whether there is a ReLU before the layer's output; without one the gradient is plain."""
    return bool(operations_before(network, layer).rectifiers)

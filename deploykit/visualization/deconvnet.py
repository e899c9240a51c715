"""DeconvNet: from one activation of a layer back to the pixels that it came from.

Zeiler, Fergus 2013, "Visualizing and Understanding Convolutional Networks", section 2.1,
https://arxiv.org/abs/1311.2901: all other activations of the layer are set to 0; what is left is
unpooled with the switches of the forward pass, rectified, and filtered with transposed filters,
again and again. Sums, concatenations and batch normalisation, which the paper's networks did not
have, are linear, and have the transposed operator in the same way. For other functions, as a
sigmoid or a product of two activations, there is no rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.core.errors import UsageError
from deploykit.visualization.relu_rules import Rule, from_units, operations_before

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.top_images import Peak
    from deploykit.visualization.tracing import TracedLayer


def without_rule(network: ShownNetwork, layer: TracedLayer) -> tuple[str, ...]:
    """The operations before a layer that DeconvNet has no rule for, in words."""
    return operations_before(network, layer).without_rule


def require_rules(network: ShownNetwork, layer: TracedLayer) -> None:
    """Refuse a layer that DeconvNet has no rule for.

    Raises:
        UsageError: an operation before it is neither linear, nor a maximum, nor a ReLU.
    """
    unknown = without_rule(network, layer)
    if unknown:
        raise UsageError(
            f"DeconvNet has no rule for {', '.join(unknown)}, which is before {layer.name!r}\n"
            "it is defined for convolutions, poolings, ReLU, and what is linear\n"
            "guided backpropagation takes any gradient: --method guided"
        )


def deconvnet(
    network: ShownNetwork,
    layer: TracedLayer,
    channel: int,
    images: NDArray[np.float32],
    peaks: Sequence[Peak],
) -> NDArray[np.float32]:
    """What of ``images`` (N, C, H, W) the units at ``peaks`` of ``channel`` came from.

    One unit of each image; the values (N, C, H, W) are in the network's units. A layer is taken as
    it is: name one behind its ReLU, as the paper does.
    """
    return from_units(network, layer, channel, images, peaks, Rule.DECONVNET)

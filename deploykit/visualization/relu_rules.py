"""Gradients with another rule at rectifiers: DeconvNet, and guided backpropagation.

Springenberg et al. 2014, section 3.4, https://arxiv.org/abs/1412.6806: the three ways back differ
only in what they do where the network has a ReLU. All else is the transposed operator, which is
what automatic differentiation computes: transposed filters of a convolution, the switches of a
maximum pooling, copies to both sides of a sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from deploykit.visualization.layers import require_recorded, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.autograd.graph import Node

    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.top_images import Peak
    from deploykit.visualization.tracing import TracedLayer

    Gradients = Sequence[Tensor | None]


class Rule(StrEnum):
    """What is done at a ReLU on the way back."""

    DECONVNET = "deconvnet"
    GUIDED = "guided"


_RECTIFIER: Final = "Relu"

_SWITCHED: Final = frozenset({"MaxPool2DWithIndices", "AdaptiveMaxPool2D"})

_LINEAR: Final = frozenset((
    "AdaptiveAvgPool2D", "Add", "Addmm", "Alias", "AsStrided", "AvgPool2D", "Cat", "Clone",
    "ConstantPadNd", "Convolution", "CudnnBatchNorm", "Expand", "Mean", "Mm", "NativeBatchNorm",
    "Neg", "Permute", "ReflectionPad2D", "ReplicationPad2D", "ReshapeAlias", "Select", "Slice",
    "Split", "SplitWithSizes", "Squeeze", "Sub", "Sum", "T", "ToCopy", "Transpose", "UnsafeView",
    "Unsqueeze", "UpsampleBilinear2D", "UpsampleNearest2D", "View",
))  # fmt: skip
"""Linear in what comes from the image, once the weights are fixed, as batch normalisation is."""

_SCALING: Final = frozenset({"Div", "Mul"})
"""Linear where only one of the two comes from the image."""

_FLAT: Final = 2
"""Dimensions of (N, C)."""

_LEAF: Final = "AccumulateGrad"

_KNOWN_AS: Final[Mapping[str, str]] = {
    "Gelu": "GELU",
    "Hardtanh": "ReLU6 or hardtanh",
    "LeakyRelu": "leaky ReLU",
    "Mul": "a product of two activations",
    "Div": "a quotient of two activations",
    "NativeLayerNorm": "layer normalisation",
    "NativeGroupNorm": "group normalisation",
    "ScaledDotProductFlashAttentionForCpu": "attention",
    "Sigmoid": "sigmoid",
    "Silu": "SiLU",
    "Softmax": "softmax",
}


@dataclass(frozen=True)
class Operations:
    """The operations between the images and a layer: rectifiers, and those that have no rule."""

    rectifiers: tuple[Node, ...]
    without_rule: tuple[str, ...]


def operations_behind(output: Tensor) -> Operations:
    """What of the autograd graph of ``output`` the two methods have a rule for."""
    nodes = _nodes(output)
    kinds = {node: _kind(node) for node in nodes}
    unknown = dict.fromkeys(
        _KNOWN_AS.get(kind, kind) for node, kind in kinds.items() if not _has_rule(node, kind)
    )
    rectifiers = tuple(node for node, kind in kinds.items() if kind == _RECTIFIER)
    return Operations(rectifiers, tuple(unknown))


def _nodes(output: Tensor) -> list[Node]:
    found: dict[Node, None] = {}
    left = [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in found:
            continue
        found[node] = None
        left += [before for before, _ in node.next_functions]
    return list(found)


def _kind(node: Node) -> str:
    return re.sub(r"Backward\w*$", "", node.name().rpartition("::")[2])


def _has_rule(node: Node, kind: str) -> bool:
    if kind in _SCALING:
        return sum(before is not None for before, _ in node.next_functions) == 1
    return kind in _LINEAR | _SWITCHED or kind in {_RECTIFIER, _LEAF}


def operations_before(network: ShownNetwork, layer: TracedLayer) -> Operations:
    """The operations between the images and a layer's output, found on a blank image.

    Raises:
        UsageError: the network keeps no record of gradients.
    """
    import numpy as np

    blank = np.zeros((1, *network.preprocessing.image_shape), np.float32)
    images = tensor_of(blank, with_gradients=True)
    return operations_behind(require_recorded(network.up_to(layer, images)))


def from_units(
    network: ShownNetwork,
    layer: TracedLayer,
    channel: int,
    images: NDArray[np.float32],
    peaks: Sequence[Peak],
    rule: Rule,
) -> NDArray[np.float32]:
    """One unit of each image, at ``peaks`` of ``channel``, carried back to ``images`` (N, C, H, W).

    DeconvNet carries the activation, guided backpropagation the gradient, which begins as 1.
    """
    leaf = tensor_of(images, with_gradients=True)
    output = require_recorded(network.up_to(layer, leaf))
    seed = one_unit(output, channel, peaks)
    if rule is Rule.DECONVNET:
        seed = output.detach() * seed
    found: NDArray[np.float32] = backwards(leaf, output, seed, rule).numpy()
    return found


def one_unit(output: Tensor, channel: int, peaks: Sequence[Peak]) -> Tensor:
    """1 at one unit of each image, 0 elsewhere, in the shape of a layer's output."""
    import torch

    seed = torch.zeros_like(output)
    for at, peak in enumerate(peaks):
        place = (at, channel) if output.ndim == _FLAT else (at, channel, peak.row, peak.column)
        seed[place] = 1
    return seed


def backwards(images: Tensor, output: Tensor, seed: Tensor, rule: Rule) -> Tensor:
    """``seed``, of the shape of ``output``, carried back to ``images`` (N, C, H, W) by a rule."""
    import torch

    hook = _HOOKS[rule]
    handles = [node.register_hook(hook) for node in operations_behind(output).rectifiers]
    try:
        (found,) = torch.autograd.grad(output, images, seed, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _deconvnet(_: Gradients, coming: Gradients) -> Any:
    """The signal on the way back is rectified itself; what passed forward does not matter."""
    return tuple(None if one is None else one.clamp(min=0) for one in coming)


def _guided(going: Gradients, _: Gradients) -> Any:
    """The gradient, which is 0 where nothing passed forward, is rectified too."""
    return tuple(None if one is None else one.clamp(min=0) for one in going)


_HOOKS: Final[Mapping[Rule, Callable[[Gradients, Gradients], Any]]] = {
    Rule.DECONVNET: _deconvnet,
    Rule.GUIDED: _guided,
}

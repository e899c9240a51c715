"""Convolutions whose weights are standardised anew for every image, with it done once.

BiT, NFNet and some hybrids train with "weight standardization" (Qiao et al. 2019,
https://arxiv.org/abs/1903.10520): each filter has mean 0 and variance 1 before it is used.
The exporters leave that in the graph where weights are large. Every batch then pays for it, and
INT8 finds no constant to quantize.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from deploykit.environment import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLASSES: Final = frozenset(
    {
        ("timm.layers.std_conv", "ScaledStdConv2d"),
        ("timm.layers.std_conv", "ScaledStdConv2dSame"),
        ("timm.layers.std_conv", "StdConv2d"),
        ("timm.layers.std_conv", "StdConv2dSame"),
        ("transformers.models.bit.modeling_bit", "WeightStandardizedConv2d"),
    }
)
"""Home and name of each; a class derived from one may compute something else."""


class PaddedConv2d(nn.Conv2d):
    """A convolution behind a padding that depends on the size of the image."""

    pad: Callable[[Tensor], Tensor]

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, C', H', W') of ``images`` (N, C, H, W)."""
        return super().forward(self.pad(images))


class SamePad(nn.Module):
    """TensorFlow's padding "SAME", as timm computes it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.sizes = layer.kernel_size, layer.stride, layer.dilation

    def forward(self, images: Tensor) -> Tensor:
        """``images`` (N, C, H, W) with zeros around them."""
        padded: Tensor = require("timm.layers").pad_same(images, *self.sizes)
        return padded


def has_standardised(network: nn.Module) -> bool:
    """Whether a convolution in ``network`` standardises its weights as it runs."""
    return any(True for _ in _standardised(network))


def standardise_once(network: nn.Module) -> None:
    """Replace such convolutions of ``network`` by plain ones that compute the same, in place."""
    for parent, name, layer in list(_standardised(network)):
        setattr(parent, name, _plain(layer))


def _standardised(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in network.modules():
        for name, child in parent.named_children():
            if (type(child).__module__, type(child).__name__) in _CLASSES:
                yield parent, name, child


def _plain(layer: Any) -> nn.Conv2d:
    pad = SamePad(layer) if getattr(layer, "same_pad", False) else getattr(layer, "pad", None)
    kind = nn.Conv2d if pad is None else PaddedConv2d
    plain = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = nn.Parameter(_weight(layer)), layer.bias
    if pad is not None:
        plain.pad = pad
    return plain


@torch.no_grad()
def _weight(layer: Any) -> Tensor:
    """The weight (O, I, H, W) as the layer uses it; by the same call, so that the sum rounds alike.

    NFNet's gain for each filter is in it.
    """
    weight = layer.weight
    gain = (layer.gain * layer.scale).view(-1) if hasattr(layer, "gain") else None
    filters = weight.reshape(1, layer.out_channels, -1)
    batch_norm = nn.functional.batch_norm
    return batch_norm(
        filters, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps
    ).reshape_as(weight)

"""Network In Network.

Lin, Chen, Yan 2013, https://arxiv.org/abs/1312.4400, in the ImageNet form that its authors
published for Caffe: four blocks of one convolution and two 1x1 convolutions, and global average
pooling in place of fully connected layers. Pooling rounds up, as Caffe's does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

from deploykit.models._initialise import he_normal

if TYPE_CHECKING:
    from deploykit.models._card import FamilyCard

CARD: Final[FamilyCard] = {
    "title": "Network In Network",
    "paper": "https://arxiv.org/abs/1312.4400",
    "year": 2013,
    "image_size": 224,
    # One pixel is left after the last pooling; with 38 there is none.
    "min_image_size": 39,
    "num_classes": 1000,
    "preprocessing": {
        "resize": 256,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "labels": None,
    "variants": {
        "nin": {"parameters": 7_595_176, "multiply_adds": 1_100_188_800, "torchvision": None}
    },
}


class Convolution(NamedTuple):
    """The first, spatial convolution of a block."""

    channels: int
    kernel: int
    stride: int
    padding: int


BLOCKS: Final = (
    Convolution(96, kernel=11, stride=4, padding=0),
    Convolution(256, kernel=5, stride=1, padding=2),
    Convolution(384, kernel=3, stride=1, padding=1),
)
LAST_BLOCK: Final = Convolution(1024, kernel=3, stride=1, padding=1)


class NiN(nn.Module):
    """Three blocks with max pooling, a fourth with one channel per class, global average."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convolution in BLOCKS:
            layers.append(_mlpconv(channels, convolution, convolution.channels))
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True))
            channels = convolution.channels
        layers.append(nn.Dropout(0.5))
        layers.append(_mlpconv(channels, LAST_BLOCK, num_classes))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, num_classes); no logit is negative, the last layer has a ReLU."""
        return torch.flatten(self.avgpool(self.features(x)), 1)


def build(variant: str, *, num_classes: int, image_size: int) -> nn.Module:  # noqa: ARG001  (one variant, every size)
    """An untrained ``nin``."""
    network = NiN(num_classes)
    he_normal(network)
    return network


def _mlpconv(in_channels: int, first: Convolution, out_channels: int) -> nn.Sequential:
    """Figure 1b of the paper: a small perceptron slides over the image."""
    width, kernel, stride, padding = first
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, stride, padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, out_channels, kernel_size=1),
        nn.ReLU(inplace=True),
    )

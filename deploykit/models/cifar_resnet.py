"""Deep Residual Learning for Image Recognition: the CIFAR-10 networks of section 4.2.

He et al. 2015, https://arxiv.org/abs/1512.03385: 6n + 2 layers, three stages of n basic blocks
with 16, 32 and 64 channels, and shortcuts without parameters (option A). The names of the
state dict are those of https://github.com/akamaster/pytorch_resnet_cifar10, whose trained
weights fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models._initialise import damp_residuals, he_normal

if TYPE_CHECKING:
    from deploykit.models._card import FamilyCard

CARD: Final[FamilyCard] = {
    "title": "Deep Residual Learning for Image Recognition",
    "paper": "https://arxiv.org/abs/1512.03385",
    "year": 2015,
    "image_size": 32,
    "min_image_size": 1,
    "num_classes": 10,
    "preprocessing": {
        "resize": None,
        "interpolation": "bilinear",
        # Those of ImageNet: the published weights were trained with them.
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "labels": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "variants": {
        "resnet20": {"parameters": 269_722, "multiply_adds": 40_551_040, "torchvision": None},
        "resnet32": {"parameters": 464_154, "multiply_adds": 68_862_592, "torchvision": None},
        "resnet44": {"parameters": 658_586, "multiply_adds": 97_174_144, "torchvision": None},
        "resnet56": {"parameters": 853_018, "multiply_adds": 125_485_696, "torchvision": None},
        "resnet110": {"parameters": 1_727_962, "multiply_adds": 252_887_680, "torchvision": None},
    },
}

WIDTHS: Final = (16, 32, 64)
"""Channels of the three stages, on images of 32x32, 16x16 and 8x8."""

BLOCKS: Final = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
"""n, the number of blocks in each stage."""


class PaddedShortcut(nn.Module):
    """Option A of section 4.1: every second pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        # A maximum over one pixel: slices would say the same, in many more ONNX nodes.
        self.subsample = nn.MaxPool2d(kernel_size=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, H / 2, W / 2), half of the zeros on each side."""
        before = self.new_channels // 2
        padding = (0, 0, 0, 0, before, self.new_channels - before)
        return functional.pad(self.subsample(x), padding)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None if stride == 1 else PaddedShortcut(width - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        out: Tensor = self.relu(branch + shortcut)
        return out


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of n blocks, global average pooling, one linear layer."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.avgpool(x), 1))
        return logits


def build(variant: str, *, num_classes: int, image_size: int) -> nn.Module:  # noqa: ARG001  (every size)
    """An untrained ``resnet20`` to ``resnet110``."""
    network = CifarResNet(BLOCKS[variant], num_classes)
    he_normal(network)
    blocks = [block for block in network.modules() if isinstance(block, CifarBlock)]
    damp_residuals([block.bn2 for block in blocks])
    return network


def _stage(in_channels: int, width: int, blocks: int) -> nn.Sequential:
    """The blocks of one stage; the first of a wider stage halves the image."""
    stride = 1 if in_channels == width else 2
    first = CifarBlock(in_channels, width, stride)
    return nn.Sequential(first, *(CifarBlock(width, width, 1) for _ in range(blocks - 1)))

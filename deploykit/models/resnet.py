"""Deep Residual Learning for Image Recognition, and its wider relatives.

ResNet-18 to -152: He et al. 2015, https://arxiv.org/abs/1512.03385, table 1. The bottleneck
takes its stride in the 3x3 convolution ("v1.5"), as torchvision and NVIDIA do; the names are
torchvision's, so that its weights fit.
ResNeXt (grouped bottlenecks): Xie et al. 2016, https://arxiv.org/abs/1611.05431.
Wide ResNet (bottlenecks of twice the width): Zagoruyko, Komodakis 2016,
https://arxiv.org/abs/1605.07146.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

from deploykit.models._initialise import damp_residuals, he_normal

if TYPE_CHECKING:
    from deploykit.models._card import FamilyCard

CARD: Final[FamilyCard] = {
    "title": "Deep Residual Learning for Image Recognition",
    "paper": "https://arxiv.org/abs/1512.03385",
    "year": 2015,
    "image_size": 224,
    "min_image_size": 1,
    "num_classes": 1000,
    "preprocessing": {
        "resize": 256,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "labels": None,
    "variants": {
        "resnet18": {
            "parameters": 11_689_512,
            "multiply_adds": 1_814_073_344,
            "torchvision": "resnet18",
        },
        "resnet34": {
            "parameters": 21_797_672,
            "multiply_adds": 3_663_761_408,
            "torchvision": "resnet34",
        },
        "resnet50": {
            "parameters": 25_557_032,
            "multiply_adds": 4_089_184_256,
            "torchvision": "resnet50",
        },
        "resnet101": {
            "parameters": 44_549_160,
            "multiply_adds": 7_801_405_440,
            "torchvision": "resnet101",
        },
        "resnet152": {
            "parameters": 60_192_808,
            "multiply_adds": 11_513_626_624,
            "torchvision": "resnet152",
        },
        "resnext50_32x4d": {
            "title": "Aggregated Residual Transformations for Deep Neural Networks",
            "paper": "https://arxiv.org/abs/1611.05431",
            "year": 2016,
            "parameters": 25_028_904,
            "multiply_adds": 4_230_479_872,
            "torchvision": "resnext50_32x4d",
        },
        "resnext101_32x8d": {
            "title": "Aggregated Residual Transformations for Deep Neural Networks",
            "paper": "https://arxiv.org/abs/1611.05431",
            "year": 2016,
            "parameters": 88_791_336,
            "multiply_adds": 16_414_015_488,
            "torchvision": "resnext101_32x8d",
        },
        "wide_resnet50_2": {
            "title": "Wide Residual Networks",
            "paper": "https://arxiv.org/abs/1605.07146",
            "year": 2016,
            "parameters": 68_883_240,
            "multiply_adds": 11_398_021_120,
            "torchvision": "wide_resnet50_2",
        },
        "wide_resnet101_2": {
            "title": "Wide Residual Networks",
            "paper": "https://arxiv.org/abs/1605.07146",
            "year": 2016,
            "parameters": 126_886_696,
            "multiply_adds": 22_753_050_624,
            "torchvision": "wide_resnet101_2",
        },
    },
}


class BasicBlock(nn.Module):
    """Figure 5, left: two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation that ends the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        out: Tensor = self.relu(branch + shortcut)
        return out


class Bottleneck(nn.Module):
    """Figure 5, right: a 3x3 convolution between two 1x1 convolutions, around a shortcut."""

    def __init__(self, in_channels: int, widths: tuple[int, int], stride: int, groups: int) -> None:
        super().__init__()
        inner, outer = widths
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, outer, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, outer, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        out: Tensor = self.relu(branch + shortcut)
        return out


class Column(NamedTuple):
    """One column of table 1: blocks in each stage, and how a bottleneck is shaped.

    ``inner_width`` is that of the 3x3 convolution in the first stage, over all its groups; it
    doubles with every stage. ``None``: the network has basic blocks.
    """

    blocks: tuple[int, int, int, int]
    inner_width: int | None
    groups: int = 1


WIDTHS: Final = (64, 128, 256, 512)
"""Channels of the four stages; a bottleneck puts out four times as many."""

EXPANSION: Final = 4

TABLE_1: Final = {
    "resnet18": Column((2, 2, 2, 2), None),
    "resnet34": Column((3, 4, 6, 3), None),
    "resnet50": Column((3, 4, 6, 3), 64),
    "resnet101": Column((3, 4, 23, 3), 64),
    "resnet152": Column((3, 8, 36, 3), 64),
    "resnext50_32x4d": Column((3, 4, 6, 3), 32 * 4, groups=32),
    "resnext101_32x8d": Column((3, 4, 23, 3), 32 * 8, groups=32),
    "wide_resnet50_2": Column((3, 4, 6, 3), 2 * 64),
    "wide_resnet101_2": Column((3, 4, 23, 3), 2 * 64),
}


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, global average pooling and one linear layer."""

    def __init__(self, column: Column, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        expansion = 1 if column.inner_width is None else EXPANSION
        inputs = (WIDTHS[0], *(width * expansion for width in WIDTHS))
        self.layer1 = _stage(column, 0, inputs[0])
        self.layer2 = _stage(column, 1, inputs[1])
        self.layer3 = _stage(column, 2, inputs[2])
        self.layer4 = _stage(column, 3, inputs[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def build(variant: str, *, num_classes: int, image_size: int) -> nn.Module:  # noqa: ARG001  (every size)
    """An untrained ``resnet18`` to ``wide_resnet101_2``."""
    network = ResNet(TABLE_1[variant], num_classes)
    he_normal(network)
    blocks = [block for block in network.modules() if isinstance(block, BasicBlock | Bottleneck)]
    damp_residuals([block.last_norm for block in blocks])
    return network


def _stage(column: Column, index: int, in_channels: int) -> nn.Sequential:
    """The blocks of stage ``index`` (from 0); all but the first stage halve the image."""
    # The stem has halved the image twice before the first stage.
    stride = 1 if index == 0 else 2
    blocks: list[nn.Module] = []
    for _ in range(column.blocks[index]):
        if column.inner_width is None:
            blocks.append(BasicBlock(in_channels, WIDTHS[index], stride))
            in_channels = WIDTHS[index]
        else:
            widths = (column.inner_width * 2**index, WIDTHS[index] * EXPANSION)
            blocks.append(Bottleneck(in_channels, widths, stride, column.groups))
            in_channels = WIDTHS[index] * EXPANSION
        stride = 1
    return nn.Sequential(*blocks)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Option B of section 4.1: project where the shape changes, otherwise the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )

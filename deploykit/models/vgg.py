"""Very Deep Convolutional Networks for Large-Scale Image Recognition.

Simonyan, Zisserman 2014, https://arxiv.org/abs/1409.1556: configurations A, B, D and E of its
table 1. The ``_bn`` networks have batch normalisation after every convolution, as torchvision
has them, whose names are kept so that its weights fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from deploykit.models._initialise import he_normal, linear_to_fill
from deploykit.models._pooling import average_to_grid

if TYPE_CHECKING:
    from deploykit.models._card import FamilyCard

CARD: Final[FamilyCard] = {
    "title": "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    "paper": "https://arxiv.org/abs/1409.1556",
    "year": 2014,
    "image_size": 224,
    # Five poolings by 2 leave one pixel.
    "min_image_size": 32,
    "num_classes": 1000,
    "preprocessing": {
        "resize": 256,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "labels": None,
    "variants": {
        "vgg11": {
            "parameters": 132_863_336,
            "multiply_adds": 7_609_090_048,
            "torchvision": "vgg11",
        },
        "vgg11_bn": {
            "parameters": 132_868_840,
            "multiply_adds": 7_609_090_048,
            "torchvision": "vgg11_bn",
        },
        "vgg13": {
            "parameters": 133_047_848,
            "multiply_adds": 11_308_466_176,
            "torchvision": "vgg13",
        },
        "vgg13_bn": {
            "parameters": 133_053_736,
            "multiply_adds": 11_308_466_176,
            "torchvision": "vgg13_bn",
        },
        "vgg16": {
            "parameters": 138_357_544,
            "multiply_adds": 15_470_264_320,
            "torchvision": "vgg16",
        },
        "vgg16_bn": {
            "parameters": 138_365_992,
            "multiply_adds": 15_470_264_320,
            "torchvision": "vgg16_bn",
        },
        "vgg19": {
            "parameters": 143_667_240,
            "multiply_adds": 19_632_062_464,
            "torchvision": "vgg19",
        },
        "vgg19_bn": {
            "parameters": 143_678_248,
            "multiply_adds": 19_632_062_464,
            "torchvision": "vgg19_bn",
        },
    },
}

WIDTHS: Final = (64, 128, 256, 512, 512)
"""Channels of the five stages; each ends with a 2x2 max pooling."""

CONVOLUTIONS: Final = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Number of 3x3 convolutions in each stage: columns A, B, D and E of table 1."""

GRID: Final = 7
"""Height and width of the last feature map at the published image size."""


class VGG(nn.Module):
    """Five stages of 3x3 convolutions and three fully connected layers, as in table 1."""

    def __init__(self, features: nn.Sequential, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = average_to_grid(image_size // 2 ** len(WIDTHS), GRID)
        # The order is torchvision's, whose weights are named by their places: 0, 3 and 6.
        self.classifier = nn.Sequential(
            linear_to_fill(WIDTHS[-1] * GRID * GRID, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            linear_to_fill(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, num_classes)."""
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def build(variant: str, *, num_classes: int, image_size: int) -> nn.Module:
    """An untrained ``vgg11`` to ``vgg19_bn`` for images of (N, 3, image_size, image_size)."""
    column = CONVOLUTIONS[variant.removesuffix("_bn")]
    features = _stages(column, batch_norm=variant.endswith("_bn"))
    network = VGG(features, num_classes, image_size)
    he_normal(network)
    return network


def _stages(column: tuple[int, ...], *, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, convolutions in zip(WIDTHS, column, strict=True):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)

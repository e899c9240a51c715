"""AlexNet, with two towers as it was published and with one as it is used today.

``alexnet2012``: ImageNet Classification with Deep Convolutional Neural Networks
(Krizhevsky, Sutskever, Hinton 2012),
https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks

``alexnet``: One weird trick for parallelizing convolutional neural networks (Krizhevsky 2014),
https://arxiv.org/abs/1404.5997: one tower, fewer filters in layers 1, 2 and 4, no response
normalisation. It has torchvision's names, so that torchvision's weights fit.

Both read 224x224 images with a padding of 2, which gives the 55x55 outputs of the first layer
that the 2012 paper describes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models._initialise import he_normal, linear_to_fill
from deploykit.models._pooling import average_to_grid

if TYPE_CHECKING:
    from deploykit.models._card import FamilyCard

CARD: Final[FamilyCard] = {
    "title": "ImageNet Classification with Deep Convolutional Neural Networks",
    "paper": "https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks",
    "year": 2012,
    "image_size": 224,
    # One pixel is left after the last pooling; with 62 there is none.
    "min_image_size": 63,
    "num_classes": 1000,
    "preprocessing": {
        "resize": 256,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "labels": None,
    "variants": {
        "alexnet2012": {
            "parameters": 60_965_224,
            "multiply_adds": 724_406_816,
            "torchvision": None,
        },
        "alexnet": {
            "title": "One weird trick for parallelizing convolutional neural networks",
            "paper": "https://arxiv.org/abs/1404.5997",
            "year": 2014,
            "parameters": 61_100_840,
            "multiply_adds": 714_188_480,
            "torchvision": "alexnet",
        },
    },
}

GRID: Final = 6
"""Height and width of the last feature map at the published image size."""


class LocalResponseNorm(nn.Module):
    """Brightness normalisation across neighbouring channels, section 3.3 of the 2012 paper.

    b_i = a_i / (k + alpha sum_j a_j^2)^beta over the n = 5 channels around i, with k = 2,
    alpha = 1e-4 and beta = 0.75. (``nn.LocalResponseNorm`` divides alpha by n.)
    """

    k, alpha, beta, n = 2.0, 1e-4, 0.75, 5

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), the shape is kept."""
        # alpha goes in before the square: FP16 would overflow at activations above 256.
        squares = (x * self.alpha**0.5).square().permute(0, 2, 3, 1)
        # Pooling windows lie on the last two axes, which are width and channels here.
        window = (1, self.n)
        # The average counts the padding, so that n times the mean is the sum at the borders too.
        means = functional.avg_pool2d(squares, window, stride=1, padding=(0, self.n // 2))
        sums = means.permute(0, 3, 1, 2) * self.n
        return x / (self.k + sums) ** self.beta


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers."""

    def __init__(self, features: nn.Sequential, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = average_to_grid(_feature_size(image_size), GRID)
        # The order is torchvision's, whose weights are named by their places: 1, 4 and 6.
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            linear_to_fill(256 * GRID * GRID, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            linear_to_fill(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, num_classes)."""
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def build(variant: str, *, num_classes: int, image_size: int) -> nn.Module:
    """An untrained ``alexnet`` or ``alexnet2012`` for images of (N, 3, image_size, image_size)."""
    features = {"alexnet": _one_tower, "alexnet2012": _two_towers}[variant]()
    network = AlexNet(features, num_classes, image_size)
    he_normal(network)
    return network


def _one_tower() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


def _two_towers() -> nn.Sequential:
    """Features of the 2012 network: its towers, one per GPU, are two groups, joined in layer 3."""
    return nn.Sequential(
        nn.Conv2d(3, 96, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        LocalResponseNorm(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
        nn.ReLU(inplace=True),
        LocalResponseNorm(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(256, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


def _feature_size(image_size: int) -> int:
    """Height and width after layer 1 (kernel 11, stride 4, padding 2) and three poolings."""
    size = (image_size + 2 * 2 - 11) // 4 + 1
    for _ in range(3):
        size = (size - 3) // 2 + 1
    return size

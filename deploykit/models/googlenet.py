"""Going Deeper with Convolutions.

Szegedy et al. 2014, https://arxiv.org/abs/1409.4842, with batch normalisation after every
convolution (Ioffe, Szegedy 2015, https://arxiv.org/abs/1502.03167) and torchvision's names, so
that torchvision's weights fit. They also decide two details. The "5x5" branch has 3x3 filters,
as in the network that those weights were ported from. And they were trained on pixels scaled to
-1...1: torchvision converts its usual normalisation to that inside the network
(``transform_input``), which equals preprocessing with mean 0.5 and standard deviation 0.5, so
the card says that and the network has no such switch.

The two auxiliary heads help training only: in evaluation mode they are not computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

from deploykit.models._initialise import he_normal

if TYPE_CHECKING:
    from deploykit.models._card import FamilyCard

CARD: Final[FamilyCard] = {
    "title": "Going Deeper with Convolutions",
    "paper": "https://arxiv.org/abs/1409.4842",
    "year": 2014,
    "image_size": 224,
    "min_image_size": 15,
    "num_classes": 1000,
    "preprocessing": {
        "resize": 256,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
    "labels": None,
    "variants": {
        "googlenet": {
            "parameters": 6_624_904,
            "multiply_adds": 1_498_376_192,
            "torchvision": "googlenet",
        },
    },
}


class Widths(NamedTuple):
    """One Inception row of table 1: output channels of its six convolutions."""

    ones: int
    threes_reduce: int
    threes: int
    fives_reduce: int
    fives: int
    pool_projection: int

    @property
    def total(self) -> int:
        """Channels of the concatenated branches."""
        return self.ones + self.threes + self.fives + self.pool_projection


STEM: Final = (64, 64, 192)
TABLE_1: Final = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}


class TrainingOutputs(NamedTuple):
    """Outputs in training mode, each (N, num_classes).

    The paper adds the two auxiliary losses with a weight of 0.3.
    """

    logits: Tensor
    aux2: Tensor
    aux1: Tensor


class ConvNormReLU(nn.Module):
    """Convolution, batch normalisation, ReLU; height and width change by the stride only."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False
        )
        # torchvision's epsilon, which its weights were trained with; torch's default is 1e-5.
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class Inception(nn.Module):
    """Figure 2b of the paper: four branches, concatenated."""

    def __init__(self, in_channels: int, widths: Widths) -> None:
        super().__init__()
        self.branch1 = ConvNormReLU(in_channels, widths.ones, kernel=1)
        self.branch2 = nn.Sequential(
            ConvNormReLU(in_channels, widths.threes_reduce, kernel=1),
            ConvNormReLU(widths.threes_reduce, widths.threes, kernel=3),
        )
        self.branch3 = nn.Sequential(
            ConvNormReLU(in_channels, widths.fives_reduce, kernel=1),
            ConvNormReLU(widths.fives_reduce, widths.fives, kernel=3),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            ConvNormReLU(in_channels, widths.pool_projection, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, widths.total, H, W)."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)


class AuxiliaryHead(nn.Module):
    """A small classifier on a middle layer (section 5 of the paper)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = ConvNormReLU(in_channels, 128, kernel=1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)."""
        x = torch.flatten(self.conv(self.pool(x)), 1)
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return logits


class GoogLeNet(nn.Module):
    """Nine Inception modules on a stem of three convolutions."""

    training_only = ("aux1", "aux2")
    """Submodules that a deployed network does without; each may be ``None``."""

    aux1: AuxiliaryHead | None
    aux2: AuxiliaryHead | None

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = ConvNormReLU(3, STEM[0], kernel=7, stride=2)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        self.conv2 = ConvNormReLU(STEM[0], STEM[1], kernel=1)
        self.conv3 = ConvNormReLU(STEM[1], STEM[2], kernel=3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        channels = STEM[-1]
        for row, widths in TABLE_1.items():
            self.add_module(f"inception{row}", Inception(channels, widths))
            channels = widths.total
        self.maxpool3 = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        # 2x2 as in torchvision, where table 1 has 3x3.
        self.maxpool4 = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        self.aux1 = AuxiliaryHead(TABLE_1["4a"].total, num_classes)
        self.aux2 = AuxiliaryHead(TABLE_1["4d"].total, num_classes)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        """(N, 3, S, S) -> (N, num_classes); in training mode with both auxiliary heads."""
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self._rows(x, "3a", "3b"))
        after_4a = self._rows(x, "4a")
        after_4d = self._rows(after_4a, "4b", "4c", "4d")
        x = self.maxpool4(self._rows(after_4d, "4e"))
        x = self.avgpool(self._rows(x, "5a", "5b"))
        logits: Tensor = self.fc(self.dropout(torch.flatten(x, 1)))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return TrainingOutputs(logits, self.aux2(after_4d), self.aux1(after_4a))
        return logits

    def _rows(self, x: Tensor, *rows: str) -> Tensor:
        for row in rows:
            x = self.get_submodule(f"inception{row}")(x)
        return x


def build(variant: str, *, num_classes: int, image_size: int) -> nn.Module:  # noqa: ARG001  (one variant, every size)
    """An untrained ``googlenet`` with its auxiliary heads."""
    network = GoogLeNet(num_classes)
    he_normal(network)
    return network

"""Tiny modules that tests of pictures look into, and networks of weights above 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.core.specs import Preprocessing
from deploykit.visualization.layers import ShownNetwork

if TYPE_CHECKING:
    from numpy.typing import NDArray


def look(size: int, width: int | None = None) -> Preprocessing:
    return Preprocessing((size, width or size), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def network_of(module: nn.Module, size: int, width: int | None = None) -> ShownNetwork:
    return ShownNetwork.of(module, module, look(size, width))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with normal weights; statistics of batch normalisation are as after training."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.4)
                if "running_var" in name:
                    tensor.abs_().add_(0.5)
    return module.eval()


def positive(module: nn.Module) -> nn.Module:
    """All weights above 0 and in float64: with positive images every unit answers to each pixel."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    return module.double().eval()


def noise(count: int, size: int, width: int | None = None, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(count, 3, size, width or size))
    return drawn.astype(np.float32)


class Plain(nn.Module):
    """Two convolutions around a pooling, as DeconvNet was made for; one ReLU is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.pool(functional.relu(self.conv1(x)))
        return self.head(self.relu(self.conv2(x)).mean((2, 3)))


class Branches(nn.Module):
    """Everything that the arithmetic of windows has: dilation, groups, slices, pads, two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 0))
        self.left = nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2)
        self.right = nn.Conv2d(4, 4, 2, padding="same")
        self.pool = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = self.pool(self.left(x) + self.right(x))
        sliced = functional.pad(x[:, :, ::2, 1:], (0, 1, 1, 0), mode="replicate")
        tall = functional.interpolate(sliced, size=x.shape[2:], mode="bilinear")
        both = torch.cat([x, tall], 1).chunk(2, dim=1)
        joined: Tensor = self.last(torch.cat([self.up(both[0]), self.up(both[1])], 1))
        return joined

"""Small networks, trained here on scikit-learn's digits: depthwise ones, a ViT and a ConvNeXt.

The digits are 1,797 images of 8x8 pixels; they are enlarged to 32x32. Of a seeded order the first
700 are trained on, the next 512 calibrate and fine-tune, and the others judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nnf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

SIZE: Final = 32
TRAINED_ON: Final = 700
CALIBRATED_ON: Final = 512
BATCH: Final = 50
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images, (N, 32, 32, 3), and their labels, in a seeded order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images.astype(np.float32))[:, None] * (255 / 16)
    large = nnf.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    grey = large[:, 0].round().clamp(0, 255).numpy().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(grey))
    return np.stack([grey] * 3, axis=-1)[order], data.target[order].astype(np.int64)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, given: int, made: int, stride: int, *, is_efficient: bool) -> None:
        super().__init__()
        wide = given * 4
        activation = nn.SiLU if is_efficient else nn.ReLU6
        self.narrow = nn.Sequential(
            nn.Conv2d(given, wide, 1, bias=False), nn.BatchNorm2d(wide), activation(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            activation(),
        )  # fmt: skip
        # Squeeze and excitation, as EfficientNet has it (Tan and Le 2019, arXiv:1905.11946).
        self.gate = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide // 4, 1), nn.SiLU(),
                nn.Conv2d(wide // 4, wide, 1), nn.Sigmoid(),
            )
            if is_efficient
            else None
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made))
        self.skips = stride == 1 and given == made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        found = self.narrow(x)
        if self.gate is not None:
            found = found * self.gate(found)
        found = self.project(found)
        return x + found if self.skips else found  # type: ignore[no-any-return]


def inverted_residuals(*, is_efficient: bool) -> nn.Module:
    """A network of nine inverted residuals for ten classes."""
    activation = nn.SiLU if is_efficient else nn.ReLU6
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), activation()
    ]  # fmt: skip
    given = 16
    for made, stride in (
        (16, 1),
        (24, 2),
        (24, 1),
        (32, 2),
        (32, 1),
        (32, 1),
        (64, 2),
        (64, 1),
        (64, 1),
    ):
        layers.append(InvertedResidual(given, made, stride, is_efficient=is_efficient))
        given = made
    head = [nn.Conv2d(given, 256, 1, bias=False), nn.BatchNorm2d(256), activation()]
    return nn.Sequential(
        *layers, *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)
    )  # fmt: skip


def vit() -> nn.Module:
    """ViT of torchvision, four blocks of 96 channels, on 64 patches of 4x4 pixels."""
    from torchvision.models import VisionTransformer

    made: nn.Module = VisionTransformer(
        image_size=SIZE, patch_size=4, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=384,
        num_classes=10,
    )  # fmt: skip
    return made


def convnext() -> nn.Module:
    """ConvNeXt of torchvision, six blocks of 32 to 128 channels."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)]
    made: nn.Module = ConvNeXt(sizes, stochastic_depth_prob=0.0, layer_scale=1e-1, num_classes=10)
    return made


@dataclass(frozen=True)
class Training:
    """How a network is made, and trained on one cycle of its rate."""

    make: Callable[[], nn.Module]
    epochs: int
    optimiser: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    highest_rate: float


_sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
_adam = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
NETWORKS: Final = {
    "mobile": Training(partial(inverted_residuals, is_efficient=False), 10, _sgd, 0.2),
    "efficient": Training(partial(inverted_residuals, is_efficient=True), 10, _sgd, 0.2),
    "vit": Training(vit, 40, _adam, 1e-3),
    "convnext": Training(convnext, 40, _adam, 2e-3),
}


def trained(name: str) -> nn.Module:
    """One of `NETWORKS`, trained on the first images, some tens of seconds on two cores."""
    images, labels = digits()
    scaled = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    inputs = torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())[:TRAINED_ON]
    targets = torch.from_numpy(labels)[:TRAINED_ON]
    training = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = training.make()
        steps = training.epochs * (TRAINED_ON // BATCH)
        optimiser = training.optimiser(module.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, training.highest_rate, total_steps=steps
        )
        module.train()
        for _ in range(training.epochs):
            for chosen in torch.randperm(TRAINED_ON).reshape(-1, BATCH):
                optimiser.zero_grad()
                loss = nnf.cross_entropy(module(inputs[chosen]), targets[chosen])
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
    return module.eval()

"""torchvision's networks, untrained, and which images they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torchvision import models

from deploykit.models._untrained import draw_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "googlenet": ("aux1", "aux2"),
    "inception_v3": ("AuxLogits",),
}
"""Submodules that only training uses."""


def build(name: str, num_classes: int, image_size: int) -> nn.Module:
    """An untrained network in evaluation mode, drawn from torch's random state.

    A network with heads that only training uses has them, and lists them as ``training_only``.
    """
    network = _made(name, num_classes, image_size)
    draw_values(network, (image_size, image_size))
    return network


def refusal(name: str, num_classes: int, image_size: int) -> str | None:
    """Why torchvision's network does not take square images of this size; ``None``: it does.

    It is tried on torch's meta device, where nothing is allocated or computed.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            _made(name, num_classes, image_size)(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def _made(name: str, num_classes: int, image_size: int) -> nn.Module:
    device = torch.get_default_device()
    # RegNet computes its widths with tensors, which must have values.
    with torch.device("cpu" if name.startswith("regnet_") else device):
        network = models.get_model(
            name, weights=None, num_classes=num_classes, **_own_arguments(name, image_size)
        )
    network.training_only = HEADS.get(name, ())
    return cast("nn.Module", network.eval().to(device))


def _own_arguments(name: str, image_size: int) -> dict[str, Any]:
    if name in HEADS:
        # The values are drawn again anyway, and torchvision's way takes seconds.
        return {"aux_logits": True, "init_weights": False, "transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}

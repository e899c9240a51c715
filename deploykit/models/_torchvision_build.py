"""torchvision's networks with starting values under which they compute something.

As torchvision leaves them without training, most of its classifiers cannot be checked: the logits
of a MobileNet differ by 1e-10 from image to image, those of a ViT are zero, and an Inception v3
reaches 2e9, far beyond FP16. So the values are drawn again, and every batch normalisation gets
the statistics that it would have after training: those of what really reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn
from torchvision import models

from deploykit.models._initialise import he_normal

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "googlenet": ("aux1", "aux2"),
    "inception_v3": ("AuxLogits",),
}
"""Submodules that only training uses."""

IMAGES: Final = 8
"""Over which the statistics are taken; the last normalisation may see one pixel of each."""

OCTAVE: Final = 0.6
"""Deviation of each octave: eight of them, and the colour, give a deviation of about 1.5."""

COLOUR: Final = 0.3
"""Deviation of a colour channel from grey; channels of photographs are nearly equal."""


def build(name: str, num_classes: int, image_size: int) -> nn.Module:
    """An untrained network in evaluation mode, drawn from torch's random state.

    A network with heads that only training uses has them, and lists them as ``training_only``.
    """
    network = _made(name, num_classes, image_size)
    he_normal(network)
    _settle(network, image_size)
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


def _settle(network: nn.Module, image_size: int) -> None:
    """Give each batch normalisation the mean and variance of one batch of noise."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not norms or norms[0].weight.is_meta:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(_pink_noise(image_size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _pink_noise(image_size: int) -> Tensor:
    """(N, 3, S, S) with as much variance in every octave, as photographs have it.

    In white noise deep layers see the same everywhere, and channels whose variance is next to
    nothing then make a photograph overflow. Source: Field 1987, "Relations between the statistics
    of natural images and the response properties of cortical cells".
    """
    batch = torch.zeros(IMAGES, 3, image_size, image_size)
    for octave in range(image_size.bit_length()):
        side = 2**octave
        grey, colour = torch.randn(IMAGES, 1, side, side), torch.randn(IMAGES, 3, side, side)
        batch += OCTAVE * nn.functional.interpolate(
            grey + COLOUR * colour, (image_size, image_size), mode="bilinear"
        )
    return batch

"""Starting values under which other people's networks compute something worth comparing.

As their packages leave them without training, most classifiers cannot be checked: the logits of a
MobileNet differ by 1e-10 from image to image, those of a ViT are zero, the residual branches of a
ConvNeXt are multiplied by 1e-6, and an Inception v3 reaches 2e9, far beyond FP16. So the values
are drawn again, silent branches are given a voice, and every batch normalisation gets the
statistics that it would have after training: those of what really reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from deploykit.models._initialise import construction, draws_values, he_normal

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)

IMAGES: Final = 8
"""Over which the statistics are taken; the last normalisation may see one pixel of each."""

OCTAVE: Final = 0.6
"""Deviation of each octave: eight of them, and the colour, give a deviation of about 1.5."""

COLOUR: Final = 0.3
"""Deviation of a colour channel from grey; channels of photographs are nearly equal."""

OFFSET: Final = 0.5
"""What batch normalisations add: with 0 FP16 is 5 % of ResNet-101's largest logit, so 0.1 %."""

SILENT: Final = 0.01
"""Scales start at one, or, where the branch is to be silent at first, between 0 and this."""

ADDED: Final = ("bias", "beta", "embed", "latent", "token")
"""Parts of the names of what is added, not multiplied: starting at zero it silences nothing."""


def draw_values(network: nn.Module, size: tuple[int, int]) -> None:
    """Give ``network``, in evaluation mode, values from torch's random state, in place.

    ``size`` is the height and width of its images. Nothing is done where `nothing_drawn` holds.
    """
    if not draws_values():
        return
    with construction():
        he_normal(network)
    wake(network)
    _calm(network)
    _settle(network, size)


def wake(network: nn.Module) -> None:
    """Set every scale that silences what it scales to 1 / sqrt(number of them), in place.

    These are the factors of LayerScale and SkipInit, the gains of standardised convolutions and
    the weights of normalisations, where they start at zero or next to it so that a residual
    branch says nothing before training. One over the root of their number neither silences nor
    explodes the branches (Marion et al. 2025, https://arxiv.org/abs/2206.06929).
    """
    scales = list(_silent_scales(network))
    for scale in scales:
        nn.init.constant_(scale, len(scales) ** -0.5)


def _silent_scales(network: nn.Module) -> Iterator[nn.Parameter]:
    for layer in network.modules():
        for name, value in layer.named_parameters(recurse=False):
            if not value.is_meta and _is_scale(layer, name, value) and _is_silent(value):
                yield value


def _is_scale(layer: nn.Module, name: str, value: nn.Parameter) -> bool:
    """Whether ``value`` is one factor, or one for each channel."""
    is_filled = name == "weight" and isinstance(layer, nn.Conv2d | nn.Linear)
    if is_filled or any(part in name for part in ADDED):
        return False
    return value.numel() == max(value.shape, default=1)


def _is_silent(value: nn.Parameter) -> bool:
    lowest, highest = value.detach().aminmax()
    return bool(lowest == highest) and 0 <= float(highest) <= SILENT


def _calm(network: nn.Module) -> None:
    """Let batch normalisations add `OFFSET`, so that rounding errors do not grow with depth.

    As torch leaves them, half of what they pass on is cut off by the ReLU behind them; each layer
    then makes any difference 1.21 times as large, and rounding becomes a thousand times as large
    in 36 of them (Yang et al. 2019, https://arxiv.org/abs/1902.08129: the variance of gradients
    grows by pi / (pi - 1)). Behind an offset a ReLU cuts off less: 1.12 per layer.
    """
    for layer in network.modules():
        if isinstance(layer, BATCH_NORMS) and layer.affine and not layer.bias.is_meta:
            nn.init.constant_(layer.bias, OFFSET)


def _settle(network: nn.Module, size: tuple[int, int]) -> None:
    """Give each batch normalisation the mean and variance of one batch of noise."""
    norms = [layer for layer in network.modules() if isinstance(layer, BATCH_NORMS)]
    if not norms or any(value.is_meta for value in network.state_dict().values()):
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(pink_noise(size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def pink_noise(size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) with as much variance in every octave, as photographs have it.

    In white noise deep layers see the same everywhere, and channels whose variance is next to
    nothing then make a photograph overflow. Source: Field 1987, "Relations between the statistics
    of natural images and the response properties of cortical cells".
    """
    batch = torch.zeros(IMAGES, 3, *size)
    for octave in range(max(size).bit_length()):
        side = 2**octave
        grey, colour = torch.randn(IMAGES, 1, side, side), torch.randn(IMAGES, 3, side, side)
        batch += OCTAVE * nn.functional.interpolate(grey + COLOUR * colour, size, mode="bilinear")
    return batch

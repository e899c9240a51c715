"""Activation maximisation: an image that a filter answers to most, by gradient ascent from noise.

Simonyan et al. 2013, section 2, https://arxiv.org/abs/1312.6034 (ascent with L2 decay); Yosinski
et al. 2015, section 3, https://arxiv.org/abs/1506.06579 (a little blur every few steps);
Mordvintsev et al. 2015, "Inceptionism" (steps of one size, and the image moved by some pixels at
each, so that no pixel is favoured). What is maximised is the mean of the filter's map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.visualization.layers import require_recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from deploykit.core.progress import ProgressTask
    from deploykit.core.specs import Preprocessing
    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.tracing import TracedLayer

_MAP_AXES: Final = (2, 3)
_LARGEST_JITTER_SHARE: Final = 16
"""Of the shorter side, the part by which the image is moved at most."""


@dataclass(frozen=True)
class Ascent:
    """Steps of the ascent and its regularisers.

    ``step`` is the mean change of a value, in the network's units. Each step the image loses the
    share ``decay`` of its distance from the mean colour; every ``blur_every`` steps it is blurred
    with a deviation of ``blur_px``, but for the last steps.
    """

    steps: int = 128
    step: float = 0.05
    decay: float = 0.005
    blur_px: float = 0.5
    blur_every: int = 4


@dataclass(frozen=True, eq=False)
class Maximised:
    """Images (F, C, H, W), one for each filter, and the mean activation before and after."""

    images: NDArray[np.float32]
    before: tuple[float, ...]
    after: tuple[float, ...]


DEFAULT_ASCENT: Final = Ascent()


def maximise(
    network: ShownNetwork,
    layer: TracedLayer,
    channels: Sequence[int],
    *,
    seed: int,
    task: ProgressTask,
    ascent: Ascent = DEFAULT_ASCENT,
) -> Maximised:
    """An image for each of ``channels``, all in one batch; the same for the same ``seed``.

    Each channel's noise is of the seed and its own number, so that it does not depend on the
    others. The best image of the ascent is kept: an activation never ends below where it began.
    """
    import torch

    low, high = _limits(network.preprocessing)
    images = _noise(network.preprocessing, channels, seed)
    before = _activations(network, layer, images, channels).tolist()
    best, most = images, np.array(before)
    moves = np.random.default_rng(seed)
    reach = min(network.preprocessing.crop) // _LARGEST_JITTER_SHARE
    for at in range(ascent.steps):
        shift = tuple(int(each) for each in moves.integers(-reach, reach + 1, 2))
        moved = torch.roll(images, shift, _MAP_AXES).requires_grad_()
        reached = require_recorded(_activations(network, layer, moved, channels))
        (gradient,) = torch.autograd.grad(reached.sum(), moved)
        images = _stepped(moved.detach(), gradient, ascent)
        images = torch.roll(images, tuple(-each for each in shift), _MAP_AXES)
        if (at + 1) % ascent.blur_every == 0 and at + ascent.blur_every < ascent.steps:
            images = _blurred(images, ascent.blur_px)
        images = images.clamp(low, high)
        with torch.no_grad():
            now = _activations(network, layer, images, channels).numpy()
        better = torch.from_numpy(now > most)
        best = torch.where(better[:, None, None, None], images, best)
        most = np.maximum(most, now)
        task.update(at + 1, ascent.steps)
    return Maximised(best.numpy(), tuple(before), tuple(float(each) for each in most))


def _limits(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Values of black and white, each (C, 1, 1)."""
    import torch

    mean, std = (
        torch.tensor(each).view(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std)
    )
    black, white = -mean / std, (1 - mean) / std
    return torch.minimum(black, white), torch.maximum(black, white)


def _noise(preprocessing: Preprocessing, channels: Sequence[int], seed: int) -> Tensor:
    """Faint noise around the mean colour, (F, C, H, W)."""
    import torch

    shape = preprocessing.image_shape
    drawn = [np.random.default_rng((seed, channel)).normal(0, 0.1, shape) for channel in channels]
    return torch.tensor(np.stack(drawn), dtype=torch.float32)


def _activations(
    network: ShownNetwork, layer: TracedLayer, images: Tensor, channels: Sequence[int]
) -> Tensor:
    """Of image f the mean of the map of ``channels[f]``, (F,)."""
    import torch

    output = network.up_to(layer, images)
    own = output[torch.arange(len(channels)), list(channels)]
    return own.flatten(1).mean(1) if own.ndim > 1 else own


def _stepped(images: Tensor, gradient: Tensor, ascent: Ascent) -> Tensor:
    size = gradient.abs().mean((1, 2, 3), keepdim=True)
    # Where no unit answers there is no way up, and noise stays noise.
    step = ascent.step * gradient / size.clamp(min=1e-12)
    return (images + step) * (1 - ascent.decay)


def _blurred(images: Tensor, deviation_px: float) -> Tensor:
    """A Gaussian of five values along each axis; beyond the edge the image goes on as at it."""
    import torch

    taps = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * deviation_px**2))
    colours = images.shape[1]
    taps = (taps / taps.sum()).expand(colours, 1, 1, 5)
    pad, conv = torch.nn.functional.pad, torch.nn.functional.conv2d
    across = conv(pad(images, (2, 2, 0, 0), mode="replicate"), taps, groups=colours)
    return conv(pad(across, (0, 0, 2, 2), mode="replicate"), taps.transpose(2, 3), groups=colours)

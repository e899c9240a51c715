"""Reconstruction block by block: roundings, scales and shifts with which a block computes as FP32.

Each weight is rounded up or down by a variable of its own, a rectified sigmoid that a growing
penalty drives to 0 or 1 (Nagel et al. 2020, AdaRound, https://arxiv.org/abs/2004.10568, equations
21 to 24). What is compared is the output of a block (Li et al. 2021, BRECQ,
https://arxiv.org/abs/2102.05426), whose input is what the blocks before it give in eight bits, so
that it makes up for their noise. Scales of activations are fitted with it, in logarithms (Jain et
al. 2020, TQT, https://arxiv.org/abs/1903.08066), and the biases. A block stays as it was unless
images that it was not fitted to come out better.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from deploykit.precision.finetuning.state import Moved

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from deploykit.core.progress import ProgressTask
    from deploykit.graph.qdq import Block
    from deploykit.precision.finetuning.network import TorchNetwork
    from deploykit.precision.finetuning.state import Grid, TuningState

STRETCH: Final = (-0.1, 1.1)
"""Ends of the sigmoid before it is cut to 0 and 1; AdaRound, below equation 23."""

SHARPNESS: Final = (20.0, 2.0)
"""Exponent of the penalty, from the first step that has one to the last."""

WARM_UP: Final = 0.2
"""Share of the steps without the penalty."""

PENALTY: Final = 1.0
"""Weight of the mean penalty of a rounding; the loss of the nearest numbers is 1."""

ROUNDING_RATE: Final = 3e-2
SCALE_RATE: Final = 1e-3
SHIFT_RATE: Final = 1e-2
"""Of Adam, for a rounding's variable, the logarithm of a scale, and a shift in its unit."""

GAIN: Final = 0.01
"""Share of a block's error that must go on images that it was not fitted to."""


@dataclass(frozen=True)
class FittedBlock:
    """A block that has layers, and its error over its signal's power before and after.

    Both are of images that it was not fitted to. ``is_kept`` says whether the fit was taken.
    """

    name: str
    before: float
    after: float
    is_kept: bool


@dataclass(frozen=True)
class TuningFit:
    """How a block or the network is fitted: so many ``steps`` on batches of ``batch`` images."""

    steps: int
    batch: int
    seed: int = 0

    def rate(self, first: float, step: int) -> float:
        """The rate at a step: it falls to 0 by a cosine, so that the fit comes to rest."""
        return first * (1 + cos(pi * step / self.steps)) / 2

    def batches(self, count: int) -> list[NDArray[np.int64]]:
        """Places of each step's images out of ``count``: all in turn, in a new order each time."""
        random = np.random.default_rng(self.seed)
        size = min(self.batch, count)
        order = np.concatenate(
            [
                random.permutation(count)[: count // size * size]
                for _ in range(-(-self.steps // max(1, count // size)))
            ]
        )
        return list(order.reshape(-1, size)[: self.steps])


def reconstruct(
    network: TorchNetwork,
    state: TuningState,
    images: tuple[Tensor, Tensor],
    fit: TuningFit,
    task: ProgressTask,
) -> tuple[TuningState, list[FittedBlock]]:
    """Fit each block in turn to the first of ``images`` (N, C, H, W), and judge by the others."""
    count = len(images[0])
    exact = narrow = torch.cat(images)
    found: list[FittedBlock] = []
    for number, block in enumerate(network.blocks, 1):
        wanted = run_all(network, block, exact, None, fit.batch)
        given = BlockData(narrow[:count], wanted[:count], narrow[count:], wanted[count:])
        if any(str(node.name) in state.plan.layers for node in block.nodes):
            state, fitted = _fitted(network, block, state, given, fit)
            found.append(fitted)
            kept = "kept" if fitted.is_kept else "stays"
            what = f"block {number}, error {fitted.before:.2e} -> {fitted.after:.2e}, {kept}"
            task.update(number, len(network.blocks), what)
        narrow = run_all(network, block, narrow, state, fit.batch)
        exact = wanted
    return state, found


def run_all(
    network: TorchNetwork, block: Block, given: Tensor, state: TuningState | None, batch: int
) -> Tensor:
    """What a block makes of all images, in eight bits with a ``state``."""
    with torch.no_grad():
        narrow = None if state is None else state.narrow()
        return torch.cat([network.part(block, each, narrow) for each in torch.split(given, batch)])


@dataclass(frozen=True)
class BlockData:
    """Inputs of a block in eight bits and its outputs in FP32: to fit to, and to judge by."""

    given: Tensor
    wanted: Tensor
    other_given: Tensor
    other_wanted: Tensor


class _Roundings:
    """The variable of each rounding of a weight; AdaRound's V."""

    def __init__(self, grid: Grid, state: TuningState) -> None:
        self._lower, upper = grid.neighbours(state.plan.format)
        self._width = upper - self._lower
        self._is_free = self._width > 0
        share = (grid.exact - self._lower) / torch.where(self._is_free, self._width, 1.0)
        low, high = STRETCH
        self.variable = torch.logit((share.clamp(0, 1) - low) / (high - low)).requires_grad_()

    @property
    def shares(self) -> Tensor:
        """From 0, rounded down, to 1, rounded up."""
        low, high = STRETCH
        return (torch.sigmoid(self.variable) * (high - low) + low).clamp(0, 1)

    def soft(self) -> Tensor:
        """Steps between the two neighbours."""
        return self._lower + self._width * self.shares

    def hard(self) -> Tensor:
        """Steps on the grid."""
        return self._lower + self._width * (self.shares >= 0.5)  # noqa: PLR2004

    def penalty(self, sharpness: float) -> Tensor:
        """How undecided the roundings are, 0 to 1; AdaRound's equation 24."""
        return ((1 - (2 * self.shares - 1).abs().pow(sharpness)) * self._is_free).mean()


def _fitted(
    network: TorchNetwork, block: Block, state: TuningState, data: BlockData, fit: TuningFit
) -> tuple[TuningState, FittedBlock]:
    before = _error(network, block, state, data, fit.batch)
    changed = fit_block(network, block, state, (data.given, data.wanted), fit)
    after = _error(network, block, changed, data, fit.batch)
    is_kept = after < before * (1 - GAIN)
    fitted = FittedBlock(block.end, before, after, is_kept)
    return (changed if is_kept else state), fitted


def _error(
    network: TorchNetwork, block: Block, state: TuningState, data: BlockData, batch: int
) -> float:
    found = run_all(network, block, data.other_given, state, batch)
    power = float(data.other_wanted.square().mean())
    return float((found - data.other_wanted).square().mean()) / power if power else 0.0


def fit_block(
    network: TorchNetwork,
    block: Block,
    state: TuningState,
    data: tuple[Tensor, Tensor],
    fit: TuningFit,
) -> TuningState:
    """The state with this block fitted to ``data``: inputs in eight bits, outputs in FP32."""
    names = [str(node.name) for node in block.nodes]
    roundings = {
        tensor: _Roundings(state.grids[tensor], state)
        for tensor, weight in state.weights.items()
        if weight.node in names
    }
    moved = Moved(state, names)
    given, wanted = data
    optimiser = torch.optim.Adam(
        [
            {"params": [each.variable for each in roundings.values()], "lr": ROUNDING_RATE},
            *moved.parameters(SCALE_RATE, SHIFT_RATE),
        ]
    )
    # Of the nearest numbers: where the fit starts, weights lie between two of them.
    first = float((run_all(network, block, given, state, fit.batch) - wanted).square().mean())
    rates = [group["lr"] for group in optimiser.param_groups]
    for step, chosen in enumerate(fit.batches(len(given))):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = fit.rate(rate, step)
        places = torch.from_numpy(chosen)
        narrow = state.narrow(
            {name: each.soft() for name, each in roundings.items()}, moved.scales, moved.shifts
        )
        noise = (network.part(block, given[places], narrow) - wanted[places]).square().mean()
        loss = noise / (first or 1.0)
        if step >= WARM_UP * fit.steps and roundings:
            far = (step / fit.steps - WARM_UP) / (1 - WARM_UP)
            sharpness = SHARPNESS[0] + far * (SHARPNESS[1] - SHARPNESS[0])
            penalties = [each.penalty(sharpness) for each in roundings.values()]
            loss = loss + PENALTY * torch.stack(penalties).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        hard = {name: each.hard() for name, each in roundings.items()}
        return state.changed(hard, moved.scales, moved.shifts)

"""Distillation: the whole network of eight bits fitted to the answers of its FP32 form.

The teacher is the network itself, so that no label is needed (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531). Weights move in steps of their grid and are rounded in each pass,
through which the gradient goes as it is (Bengio et al. 2013, https://arxiv.org/abs/1308.3432);
scales and biases move with them. The state that does best on images that are not fitted to is
taken, which may be the one at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as nnf

from deploykit.precision.finetuning.state import Moved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from deploykit.core.progress import ProgressTask
    from deploykit.precision.finetuning.network import Narrow, TorchNetwork
    from deploykit.precision.finetuning.reconstruction import TuningFit
    from deploykit.precision.finetuning.state import TuningState

    Loss = Callable[[Tensor, Tensor], Tensor]

WEIGHT_RATE: Final = 1e-2
"""Of Adam for a weight, in steps of its grid."""

SCALE_RATE: Final = 1e-3
SHIFT_RATE: Final = 1e-2
"""Likewise of the logarithm of a scale, and of a shift in its unit."""

LOOKS: Final = 10
"""Times that the network is looked at on images that it is not fitted to."""

PATIENCE: Final = 3
"""Looks without gain after which it ends."""


@dataclass(frozen=True)
class Distilled:
    """The steps that were taken, those of the best state, and the loss on images to stop by.

    ``before`` is that of the first state, ``reconstructed`` of the last one that was given, and
    ``after`` of the best.
    """

    steps: int
    best_step: int
    before: float
    reconstructed: float
    after: float


def logits_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """KL divergence of the probabilities plus the error of the logits over their power."""
    exact = torch.log_softmax(wanted, 1)
    divergence = nnf.kl_div(
        torch.log_softmax(found, 1), exact, log_target=True, reduction="batchmean"
    )
    return divergence + value_loss(found, wanted)


def value_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over the mean square."""
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def distil(
    network: TorchNetwork,
    states: Sequence[TuningState],
    images: tuple[Tensor, Tensor],
    fit: TuningFit,
    loss: Loss,
    task: ProgressTask,
) -> tuple[TuningState, Distilled]:
    """Fit the best of ``states`` to the first of ``images`` (N, C, H, W).

    What is best is said by the others, of ``states`` and on the way.
    """
    seen, others = images
    wanted, other_wanted = (answers(network, each, None, fit.batch) for each in images)

    def look(narrow: Narrow) -> float:
        return float(loss(answers(network, others, narrow, fit.batch), other_wanted))

    starts = [look(each.narrow()) for each in states]
    before, at = starts[0], min(range(len(states)), key=starts.__getitem__)
    state, after = states[at], starts[at]
    free = {
        name: state.grids[name].start(state.plan.format).requires_grad_() for name in state.weights
    }
    moved = Moved(state, [str(node.name) for node in network.nodes])
    optimiser = torch.optim.Adam(
        [
            {"params": list(free.values()), "lr": WEIGHT_RATE},
            *moved.parameters(SCALE_RATE, SHIFT_RATE),
        ]
    )
    rates = [group["lr"] for group in optimiser.param_groups]

    def steps() -> dict[str, Tensor]:
        grids, wish = state.grids, state.plan.format
        return {name: grids[name].rounded(each, wish) for name, each in free.items()}

    best, best_step, done, reconstructed = state, 0, 0, starts[-1]
    every = max(1, fit.steps // LOOKS)
    for chosen in fit.batches(len(seen)):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = fit.rate(rate, done)
        places = torch.from_numpy(chosen)
        narrow = state.narrow(steps(), moved.scales, moved.shifts)
        now = loss(network.whole(seen[places], narrow), wanted[places])
        optimiser.zero_grad()
        torch.autograd.backward(now)
        optimiser.step()
        done += 1
        if done % every:
            continue
        with torch.no_grad():
            candidate = state.changed(steps(), moved.scales, moved.shifts)
        found = look(candidate.narrow())
        task.update(done, fit.steps, f"distillation, loss {before:.2e} -> {min(found, after):.2e}")
        if found < after:
            best, best_step, after = candidate, done, found
        elif done - best_step >= PATIENCE * every:
            break
    return best, Distilled(done, best_step, before, reconstructed, after)


def answers(network: TorchNetwork, images: Tensor, narrow: Narrow | None, batch: int) -> Tensor:
    """The first output for all images."""
    with torch.no_grad():
        return torch.cat([network.whole(each, narrow) for each in torch.split(images, batch)])

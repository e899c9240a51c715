"""Grad-CAM: where in an image the evidence for an answer lies.

Selvaraju et al. 2016, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", equations 1 and 2, https://arxiv.org/abs/1610.02391: the maps A of a layer are added
up, each weighted by the mean over positions of the gradient of the class's score with respect to
it, and what is left below 0 is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.core.errors import UsageError
from deploykit.visualization.layers import require_recorded, tensor_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from deploykit.visualization.layers import ShownNetwork
    from deploykit.visualization.tracing import TracedLayer

_SCORES = 2
"""Dimensions of (N, K)."""


def grad_cam(
    network: ShownNetwork,
    layer: TracedLayer,
    images: NDArray[np.float32],
    classes: Sequence[int] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The maps (N, h, w) of a layer for ``images`` (N, C, H, W), and the outputs (N, K).

    The score is the network's output, of the class with the largest one where ``classes`` are not
    given.

    Raises:
        UsageError: the network does not return a value per class.
    """
    import torch

    outputs, maps = _run(network, layer, images)
    if outputs.ndim != _SCORES:
        raise UsageError(
            f"Grad-CAM needs a value per class, (N, K), and the network returns "
            f"{tuple(outputs.shape)}\npossible for it: --method top, deconvnet, guided, maximise"
        )
    chosen = outputs.argmax(1) if classes is None else torch.tensor(list(classes))
    score = require_recorded(outputs.gather(1, chosen[:, None]).sum())
    (gradient,) = torch.autograd.grad(score, maps)
    weights = gradient.mean((2, 3), keepdim=True)
    found: NDArray[np.float32] = (weights * maps).sum(1).clamp(min=0).detach().numpy()
    return found, outputs.detach().numpy()


def _run(
    network: ShownNetwork, layer: TracedLayer, images: NDArray[np.float32]
) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what follows may work in place

    hook = network.part(layer).register_forward_hook(keep)
    try:
        outputs: Tensor = network.network(tensor_of(images, with_gradients=True))
    finally:
        hook.remove()
    return outputs, require_recorded(kept[0])

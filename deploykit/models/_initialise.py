"""Starting values under which an untrained network keeps its signal at every depth.

The families do not keep the constants of their papers: normal values with a standard deviation
of 0.01 (AlexNet, NiN, GoogLeNet) let the signal vanish without training, and an untrained
network must still tell one image from another to be of use in a check.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_DRAWS: Final = ContextVar("draws", default=True)


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Within it networks are built for a state dict that replaces every value.

    Drawing them first takes a second for each hundred million, statistics of batch normalisations
    a pass of the network.
    """
    before = _DRAWS.set(False)
    try:
        yield
    finally:
        _DRAWS.reset(before)


def draws_values() -> bool:
    """Whether starting values are wanted, see `nothing_drawn`."""
    return _DRAWS.get()


def construction() -> AbstractContextManager[object]:
    """Within it torch's own layers draw their first weights only where somebody will read them.

    Nobody does within `nothing_drawn`, where they are zeros, and on the meta device. It stands
    around what is deploykit's or another package's: a user's factory may keep a value that no
    state dict has.
    """
    is_read = draws_values() and torch.get_default_device().type != "meta"
    return nullcontext() if is_read else _Undrawn()


_OF_LAYERS: Final = nn.init.kaiming_uniform_
"""What linear layers and convolutions call, at once and for their weight alone."""

_OF_ANYTHING: Final = frozenset(
    {nn.init.uniform_, nn.init.normal_, nn.init.constant_, Tensor.uniform_, Tensor.normal_}
)
"""Left out on the meta device alone: where memory is real, a loop may wait for what they draw."""


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is _OF_LAYERS or func in _OF_ANYTHING:
            tensor: Tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
            if func is _OF_LAYERS:
                return nn.init.zeros_(tensor)
        return func(*args, **given)


def he_normal(network: nn.Module) -> None:
    """Fill every convolution and linear layer of ``network`` in place.

    Weights: normal with variance 2 / fan-in (He et al. 2015, https://arxiv.org/abs/1502.01852,
    equation 10). Biases: uniform within 1 / sqrt(fan-in), torch's own rule, rather than the
    paper's zeros, so that a bias lost on the way to the engine shows. Batch normalisation keeps
    torch's values: in evaluation mode it does nothing until it is trained.
    """
    if not draws_values():
        return
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                bound = layer.weight[0].numel() ** -0.5
                nn.init.uniform_(layer.bias, -bound, bound)


def linear_to_fill(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer whose values are left for `he_normal` to draw.

    ``nn.Linear`` draws its own first; for the hundred million weights of VGG's first fully
    connected layer that costs as much again.
    """
    device = torch.get_default_device()
    # A tensor on "meta" has a shape and no memory, so that nothing is drawn for it.
    with torch.device("meta"):
        layer = nn.Linear(in_features, out_features)
    return layer.to_empty(device=device)


def damp_residuals(last_norms: list[nn.BatchNorm2d]) -> None:
    """Set the scale of each residual branch's last normalisation to 1 / sqrt(branches).

    Without training, batch normalisation in evaluation mode does nothing, and every residual
    block then doubles the variance: 2^50 in ResNet-152, beyond FP16. One over the square root
    of the number of blocks is the only scale that neither explodes nor silences the branches
    (Marion et al. 2025, https://arxiv.org/abs/2206.06929).
    """
    for norm in last_norms:
        nn.init.constant_(norm.weight, len(last_norms) ** -0.5)

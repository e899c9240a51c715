"""Modules that return more than logits, or return them under a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from deploykit.core.errors import UsageError, typed_first_line

if TYPE_CHECKING:
    from deploykit.heads import Head

LOGITS: Final = "logits"
"""What libraries call them where a module returns several things by name."""


class LogitsOf(nn.Module):
    """A network of which only the logits (N, classes) are deployed."""

    def __init__(self, network: nn.Module, place: str | int) -> None:
        super().__init__()
        self.network = network
        self.place = place

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of ``images`` (N, C, H, W)."""
        return cast("Tensor", self.network(images)[self.place])


def network_of(module: nn.Module) -> nn.Module:
    """The module that a state dict is for."""
    return module.network if isinstance(module, LogitsOf) else module


def logits_only(network: nn.Module, place: str | int | None) -> nn.Module:
    """``network`` itself where it returns nothing but logits."""
    return network if place is None else LogitsOf(network, place)


def find_output(
    network: nn.Module, image_size: int, name: str, head: Head
) -> tuple[str | int | None, tuple[int, ...]]:
    """Where the output that ``head`` fits is in what ``network`` returns, and an image's shape.

    It is the tensor that it returns, the one called "logits", or the first that fits of a
    sequence. One batch of noise is run to find out.

    Raises:
        UsageError: the network does not take a batch of such images, or returns nothing of the
            kind.
    """
    batch = torch.randn(2, 3, image_size, image_size)
    try:
        with torch.no_grad():
            result = network.eval()(batch)
    except Exception as error:  # a user's own code can raise anything
        raise UsageError(
            f"{name} does not take images (2, 3, {image_size}, {image_size})\n"
            f"{typed_first_line(error)}\n"
            "give the size that it takes: --input-size PX"
        ) from error
    for place, value in _candidates(result):
        if _fits(value, len(batch), head):
            return place, tuple(value.shape[1:])
    raise UsageError(
        f"{name} returns {_described(result)} for 2 images\n"
        f"expected {head.noun} {head.layout.replace('batch', str(len(batch)))}: a tensor, the "
        f'first of a tuple, or "{LOGITS}" of a dict'
    )


def _candidates(result: Any) -> list[tuple[str | int | None, Any]]:
    if isinstance(result, Tensor):
        return [(None, result)]
    if isinstance(result, Mapping):
        return [(LOGITS, result.get(LOGITS))]
    if isinstance(result, Sequence):
        return list(enumerate(result))
    return []


def _fits(value: Any, count: int, head: Head) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return head.fits(tuple(value.shape)) and value.shape[0] == count and value.numel() > 0


def _described(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"{str(result.dtype).removeprefix('torch.')} {tuple(result.shape)}"
    if isinstance(result, Mapping):
        return f"a {type(result).__name__} of {', '.join(map(str, result)) or 'nothing'}"
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {', '.join(map(_described, result)) or 'nothing'}"
    return f"a {type(result).__name__}"

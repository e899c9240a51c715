"""timm's networks: untrained, with the weights that timm publishes, and which images they take."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import timm
import torch

from deploykit.models._untrained import draw_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn


def build(name: str, num_classes: int, size: tuple[int, int]) -> nn.Module:
    """An untrained network in evaluation mode, drawn from torch's random state.

    ``name`` is timm's, with the tag of the weights that it is built for; ``size`` is height and
    width.
    """
    network = _made(name, num_classes, size)
    draw_values(network, size)
    return network


def refusal(name: str, num_classes: int, size: tuple[int, int]) -> str | None:
    """Why timm's network does not turn such images into so many logits; ``None``: it does.

    It is tried on torch's meta device, where nothing is allocated or computed.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            logits = _made(name, num_classes, size)(torch.zeros(1, 3, *size))
    except Exception as error:  # each family of timm has its own checks, or none
        return next(iter(str(error).splitlines()), type(error).__name__)
    found = tuple(getattr(logits, "shape", ())) or type(logits).__name__
    return None if found == (1, num_classes) else f"it returns {found}, not (1, {num_classes})"


def adapted(
    name: str, num_classes: int, size: tuple[int, int], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The published ``state`` as the network of this size has it.

    timm gives old files today's names and resamples tables of positions.

    Raises:
        RuntimeError: ``state`` is not of this network.
    """
    return _made(name, num_classes, size, state).state_dict()


def _made(
    name: str, num_classes: int, size: tuple[int, int], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if timm.models.get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = size
    if state is not None:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}
    with _quiet():
        return cast("nn.Module", timm.create_model(name, **arguments).eval())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without timm's warnings of its own old names, and its log of what it loads."""
    logger = logging.getLogger("timm")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [logging.NullHandler()], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate

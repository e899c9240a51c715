"""A definition's layers, by watching one forward pass that computes nothing."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deploykit.errors import UsageError
from deploykit.summary import LayerInfo, ModelSummary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def inspect_definition(
    build: Callable[[], nn.Module], shape: tuple[int, ...], name: str
) -> ModelSummary:
    """The layers that one batch of ``shape`` (N, C, H, W) passes through.

    The module lives on torch's meta device: shapes are real, nothing is allocated or computed.
    A row stands for one call of one module, blocks included and pure containers left out, as
    torchsummary does; a module that is called twice has two rows and counts its parameters once.

    Raises:
        UsageError: the definition does not take this shape.
    """
    with torch.device("meta"):
        module, batch = build(), torch.zeros(shape)
    layers: list[LayerInfo] = []
    watched = {child: path for path, child in module.named_modules() if _is_layer(child, module)}
    seen: set[nn.Parameter] = set(module.parameters(recurse=False))
    handles = [
        child.register_forward_hook(_recorder(layers, path, seen))
        for child, path in watched.items()
    ]
    try:
        with torch.no_grad():
            module(batch)
    except (RuntimeError, ValueError) as exc:
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise UsageError(f"{name} does not take an input of {shape}\n{reason}") from exc
    finally:
        for handle in handles:
            handle.remove()
    return ModelSummary(name, shape, tuple(layers), _count(seen))


def _is_layer(child: nn.Module, root: nn.Module) -> bool:
    return child is not root and not isinstance(child, _CONTAINERS)


def _recorder(
    layers: list[LayerInfo], path: str, seen: set[nn.Parameter]
) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        fresh = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(fresh)
        shape = tuple(output.shape)
        work = _multiply_adds(module, inputs[0].shape, shape)
        layers.append(LayerInfo(path, type(module).__name__, shape, _count(fresh), work))

    return record


def _multiply_adds(module: nn.Module, given: torch.Size, made: tuple[int, ...]) -> int:
    """Products per output element times output elements; the bias is not counted."""
    if isinstance(module, nn.ConvTranspose2d):
        return prod(given) * module.out_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, nn.Conv2d):
        return prod(made) * module.in_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return prod(made) * module.in_features
    return 0


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
